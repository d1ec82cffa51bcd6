"""Images of every sort: what they declare of volumes, commands and users changes nothing about the sandbox."""

import re
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from harness.base_image import BUSYBOX
from harness.bodies import dockerfile
from harness.engine import PrivateEngine
from harness.holdings import holdings_of
from harness.run_box import MIB, PERF, RunBox, launched, script
from imagejobd.model.ownership import job_repository, resource_name

SUCCESS = r"Successful - Model performance : 0\.500000"
ONBUILD = "imagejobd-test/onbuild:1"
ONBUILD_TEXT = dockerfile("ONBUILD RUN echo 0.5 > /n", script('echo "{\\"perf\\": $(cat /n)}" > /data/perf.json'))


class Case(NamedTuple):
    """A Dockerfile, what the run API must say of it in the end, and the error's code where it fails."""

    text: str
    says: str = SUCCESS
    code: str = ""


def volumes(declared: str, *places: str) -> Case:
    """Places that must be writable, and full long before 8 MiB."""
    fill = "touch {0}/x && ! dd if=/dev/zero of={0}/big bs=1M count=8 2>/dev/null || exit 1"
    return Case(dockerfile(declared, script(*(fill.format(place) for place in places), PERF)))


def exits(how: str, says: str) -> Case:
    return Case(
        dockerfile(script(PERF, "echo the last words", how)), f"Failed - .*{says}.*the last words", "run_failed"
    )


ONE_LINE_PERF = PERF.replace('"', '\\"')
CASES = {
    "VOLUME": volumes("VOLUME /cache", "/cache"),
    "VOLUME of data and tmp": volumes('VOLUME ["/data", "/tmp"]', "/tmp"),
    "VOLUME in VOLUME": Case(
        dockerfile("VOLUME /a /a/b", script(PERF)), "Failed - .*VOLUME /a/b inside VOLUME /a", "run_failed"
    ),
    "VOLUME in data": volumes("VOLUME /data/inner", "/data/inner"),
    "VOLUME in odd spellings": volumes("VOLUME /cache/ /c//d /e/../f", "/cache", "/c/d", "/f"),
    "VOLUME behind a link": volumes("RUN mkdir /real && ln -s /real /link\nVOLUME /link", "/real"),
    "VOLUME of shm": volumes("VOLUME /dev/shm", "/dev/shm"),
    "VOLUMEs, a hundred": Case(
        dockerfile("VOLUME " + " ".join(f"/v{number}" for number in range(100)), script(PERF)),
        "Failed - .*100 VOLUMEs",
        "run_failed",
    ),
    "VOLUME with the shell in it": Case(dockerfile("VOLUME /bin", script(PERF)), "(Successful|Failed) - .*"),
    "data is a link": Case(dockerfile("RUN mkdir /real && ln -s /real /data", script(PERF))),
    "data is a link to tmp": Case(dockerfile("RUN ln -s /tmp /data", script(PERF)), "(Successful|Failed) - .*"),
    "data is a file": Case(dockerfile("RUN touch /data", script(PERF)), "Failed - .*data", "run_failed"),
    "ENTRYPOINT with CMD": Case(dockerfile('ENTRYPOINT ["/bin/sh", "-c"]', f'CMD ["{ONE_LINE_PERF}"]')),
    "ENTRYPOINT as shell": Case(dockerfile(f"ENTRYPOINT {PERF}")),
    "WORKDIR": Case(dockerfile("WORKDIR /data", "CMD printf '{\"perf\": 0.5}' > perf.json")),
    "SHELL": Case(dockerfile('SHELL ["/bin/busybox", "sh", "-c"]', f"CMD {PERF}")),
    "other": Case(dockerfile("STOPSIGNAL SIGCONT", "EXPOSE 80", "ENV A=b", f"CMD {PERF}")),
    "ONBUILD": Case(f"FROM {ONBUILD}\n"),
    "no command": Case(f"FROM scratch\nCOPY --from={BUSYBOX} / /\n", "Failed - .*command", "run_failed"),
    "no such command": Case(dockerfile('CMD ["/no/such"]'), "Failed - .*([Nn]o such file|not found)", "run_failed"),
    "command no program": Case(dockerfile('CMD ["/etc/passwd"]'), "Failed - .*[Pp]ermission denied", "run_failed"),
    "empty command": Case(dockerfile('CMD [""]'), "Failed - .*", "run_failed"),
    "no such user": Case(dockerfile("USER stranger", script(PERF)), "Failed - .*stranger", "run_failed"),
    "no such group": Case(dockerfile("USER nobody:strangers", script(PERF)), "Failed - .*strangers", "run_failed"),
    "working folder is a file": Case(
        dockerfile("WORKDIR /etc/passwd", script(PERF)), "Failed - .*not a directory", "build_failed"
    ),
    "exit 1": exits("exit 1", "code 1;"),
    "exit 125": exits("exit 125", "code 125;"),
    "exit 127": exits("exit 127", "code 127;"),
    "SIGKILL": exits("kill -KILL $$", r"code 137 \(SIGKILL: most often for want of memory"),
    "SIGSEGV": exits("kill -SEGV $$", r"code 139 \(SIGSEGV\)"),
    "long last words": exits(
        "i=0; while [ $i -lt 20 ]; do printf '%0150d\\n' 0; i=$((i + 1)); done; echo the last words; exit 2", "code 2;"
    ),
    **{f"the same, {number}": Case(dockerfile(script("sleep 0.3", PERF))) for number in (1, 2, 3)},
}


@pytest.fixture(scope="module")
def jobs(engine: PrivateEngine) -> Iterator[tuple[RunBox, dict[str, str]]]:
    """All of them at once, on a box whose files and tmpfs are small enough to be filled."""
    engine.docker("build", "--network=none", "--tag", ONBUILD, "-", input=ONBUILD_TEXT.encode())
    run = {"tmp_max_bytes": 4 * MIB, "file_max_bytes": 4 * MIB, "timeout_s": 60}
    with RunBox(engine, limits={"run": 4}, kinds={"run": run}) as box:
        with launched(box, {name: case.text for name, case in CASES.items()}) as ids:
            yield box, ids
        box.check_healthy()
    engine.docker("rmi", ONBUILD)


@pytest.mark.parametrize("name", CASES)
def test_image(jobs: tuple[RunBox, dict[str, str]], name: str) -> None:
    """It runs or fails as it should, is tried once, and neither volume nor container nor image stays of it."""
    box, ids = jobs
    outcome = box.outcome(ids[name])
    job = box.job(ids[name])
    print(outcome)
    assert re.fullmatch(f"{CASES[name].says}.*", outcome), f"{outcome}\n{box.log(ids[name])}"
    assert job["attempt"] == 1
    assert not CASES[name].code or job["error"]["code"] == CASES[name].code


def test_label_of_another_job(jobs: tuple[RunBox, dict[str, str]], engine: PrivateEngine) -> None:
    """An image that bears another job's label takes nothing from that job, and no job builds on another's image."""
    box, _ = jobs
    victim = box.launch(
        dockerfile(script("trap go=1 USR1", "echo at work", 'until [ "$go" ]; do sleep 0.1; done', PERF))
    )
    box.prints(victim, "at work")
    installation = box.daemon.installation
    assert box.post(f"FROM {job_repository(installation, victim)}:1\n").status == 422
    thief = box.launch(dockerfile(f"LABEL imagejobd.job={victim}", script(PERF)))
    assert re.fullmatch(SUCCESS, box.outcome(thief))
    assert box.job(victim)["state"] == "running"
    name = resource_name(installation, victim, 1)
    assert "container" in {held.sort for held in holdings_of(engine, victim) if name in held.name}
    engine.docker("kill", "--signal=USR1", name)
    assert re.fullmatch(SUCCESS, box.outcome(victim))
    assert box.job(victim)["attempt"] == 1
