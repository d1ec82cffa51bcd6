"""The run API end to end on a real engine: what is measured, what a client is told, and that nothing stays."""

import json
import shutil
import subprocess
from collections.abc import Iterator

import pytest
from calls import curl, until

from harness.base_image import BUSYBOX
from harness.client import stopped_after_s
from harness.daemon import Daemon
from harness.engine import PrivateEngine
from harness.services import program, require

FROM = f"FROM {BUSYBOX}\n"
PERF = """CMD echo '{"perf": 0.5}' > /data/perf.json"""
LAUNCHED = "Job was launched with id "
SMALL_BYTES = 4096
# Bounds that a container reaches at once.
TIGHT = {
    "memory_bytes": 24 * 1024 * 1024,
    "file_max_bytes": 1024 * 1024,
    "perf_max_bytes": SMALL_BYTES,
    "output_max_bytes": 64 * 1024,
}


@pytest.fixture(scope="module")
def tight_daemon(engine: PrivateEngine) -> Iterator[Daemon]:
    """A daemon that gives a container little of everything."""
    require("curl")
    with Daemon({"kinds": {"run": TIGHT}}, engine_host=engine.host) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def hasty_daemon(engine: PrivateEngine) -> Iterator[Daemon]:
    """A daemon that gives it little time as well."""
    require("curl")
    with Daemon({"kinds": {"run": TIGHT | {"timeout_s": 2.0}}}, engine_host=engine.host) as daemon:
        yield daemon


def launch(daemon: Daemon, dockerfile: str) -> str:
    answer = curl(daemon, "/run", "--form-string", f"file={dockerfile}")
    assert answer.status == 200, answer.text
    assert answer.text.startswith(LAUNCHED)
    return answer.text.removeprefix(LAUNCHED)


def said(daemon: Daemon, job: str) -> str:
    """The last word on a job, without its name."""
    answer = until(lambda: curl(daemon, f"/status?id={job}"), lambda answer: answer.status != 202)
    assert answer.status == 200, answer.text
    return answer.text.removeprefix(f"Job {job} was ")


def log_of(daemon: Daemon, job: str) -> str:
    return curl(daemon, f"/api/v2/jobs/{job}/log").text


def traces(engine: PrivateEngine, job: str) -> str:
    """What the engine has of a job: containers, volumes, images."""
    label = f"label=imagejobd.job={job}"
    return (
        engine.docker("ps", "--all", "--quiet", "--filter", label)
        + engine.docker("volume", "ls", "--quiet", "--filter", label)
        + engine.docker("images", "--quiet", f"imagejobd/{job}")
    )


def test_the_documents_own_line(daemon: Daemon, engine: PrivateEngine) -> None:
    """The curl line of the document, with its boundary beside curl's own, launches a job that a client can follow."""
    dockerfile = f"{FROM}RUN sleep 1\nCMD sleep 1 && echo '{{\"perf\": 0.99}}' > /data/perf.json"
    done = subprocess.run(
        [
            str(program("curl")),
            *("--silent", "--show-error", "--request", "POST"),
            *("--url", f"{daemon.url}/run"),
            *("--header", "Content-Type: multipart/form-data; boundary=---011000010111000001101001"),
            *("--form", f"file={dockerfile}"),
        ],
        capture_output=True,
        check=True,
        text=True,
    )
    assert done.stdout.startswith(LAUNCHED)
    job = done.stdout.removeprefix(LAUNCHED)
    seen: list[tuple[int, str]] = []

    def look() -> int:
        answer = curl(daemon, f"/status?id={job}")
        if (answer.status, answer.text) not in seen[-1:]:
            seen.append((answer.status, answer.text))
        return answer.status

    until(look, lambda status: status == 200)
    assert seen[-1] == (200, f"Job {job} was Successful - Model performance : 0.990000")
    words = [text.removeprefix(f"Job {job} is ") for status, text in seen if status == 202]
    assert words[-2:] == ["Building", "Running"]
    assert traces(engine, job) == ""


def test_version_and_own_result(daemon: Daemon) -> None:
    """The image is told the job's id as `version`, and perf-<id>.json comes before perf.json."""
    dockerfile = (
        f"{FROM}ARG version\nENV version=$version\n"
        "CMD printf 'version %s' $version; echo '{\"perf\": 2}' > /data/perf.json; "
        'echo "{\\"perf\\": 1, \\"version\\": \\"$version\\"}" > /data/perf-$version.json\n'
    )
    job = launch(daemon, dockerfile)
    assert said(daemon, job) == "Successful - Model performance : 1.000000"
    assert curl(daemon, f"/status?id={job}", "-H", "Accept: application/json").json == {
        "id": job,
        "status": "Successful",
        "phase": None,
        "perf": 1.0,
        "metrics": {"perf": 1, "version": job},
        "error": None,
    }
    assert f"\nversion {job}\nexited with code 0 " in log_of(daemon, job)
    phases = curl(daemon, f"/api/v2/jobs/{job}").json["phases"]
    assert [phase["name"] for phase in phases] == ["building", "running", "collecting", "purging"]


def test_results_in_sql(daemon: Daemon) -> None:
    """`run_result` has the perf as a number, metrics as JSON, and the reason of a failure; no other kind's jobs."""
    require("sqlite3")
    good = launch(daemon, f'{FROM}CMD echo \'{{"perf": 1, "loss": [3, 2.5]}}\' > /data/perf.json')
    bad = launch(daemon, f"{FROM}CMD exit 3")
    assert said(daemon, good).startswith("Successful")
    assert said(daemon, bad).startswith("Failed")
    columns = "state, perf, typeof(perf), metrics ->> '$.loss[1]', finished is not null, error_code"
    query = f"select {columns} from run_result where uuid in ('{good}', '{bad}') order by job_id"
    shell = [shutil.which("sqlite3") or "sqlite3", "-readonly", str(daemon.database_file), query]
    rows = subprocess.run(shell, capture_output=True, check=True, text=True).stdout.splitlines()
    assert rows == ["succeeded|1.0|real|2.5|1|", "failed||null||1|run_failed"]


def test_output_is_live_and_in_order(daemon: Daemon) -> None:
    """What the container prints, on stdout and stderr, is in the log while it runs."""
    job = launch(daemon, f"{FROM}CMD echo out 1; sleep .1; echo err 2 >&2; sleep .1; echo out 3; sleep 60")
    until(lambda: log_of(daemon, job), lambda log: "out 3\n" in log)
    assert "\nout 1\nerr 2\nout 3\n" in log_of(daemon, job)
    shown = curl(daemon, f"/api/v2/jobs/{job}").json
    assert (shown["phase"], shown["progress"]["output_bytes"]) == ("running", 18)
    curl(daemon, f"/api/v2/jobs/{job}/cancel", "-X", "POST")


def test_cancel_kills(daemon: Daemon, engine: PrivateEngine) -> None:
    """A cancelled container is dead within 2 s, though it ignores SIGTERM, and nothing of the job stays."""
    job = launch(daemon, f"{FROM}CMD trap '' TERM; echo deaf; while true; do sleep 1; done")
    until(lambda: log_of(daemon, job), lambda log: "deaf" in log)
    assert traces(engine, job)
    assert curl(daemon, f"/api/v2/jobs/{job}/cancel", "-X", "POST").status == 202
    assert said(daemon, job) == "Failed - cancelled"
    assert stopped_after_s(curl(daemon, f"/api/v2/jobs/{job}").json) < 2
    assert traces(engine, job) == ""
    assert log_of(daemon, job).endswith("\ncancelled\n")


def test_a_sweep_takes_nothing_of_what_runs(daemon: Daemon) -> None:
    """A cancel makes the daemon sweep; a container that runs meanwhile goes on to its end."""
    job = launch(daemon, f"{FROM}CMD echo started; sleep 2; {PERF.removeprefix('CMD ')}")
    until(lambda: log_of(daemon, job), lambda log: "started" in log)
    other = launch(daemon, f"{FROM}CMD sleep 60")
    curl(daemon, f"/api/v2/jobs/{other}/cancel", "-X", "POST")
    assert said(daemon, other) == "Failed - cancelled"
    assert said(daemon, job) == "Successful - Model performance : 0.500000"


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        pytest.param(
            """echo '{"perf": 1}' > /data/perf.json; echo no; exit 3""",
            "run_failed",
            "the container exited with code 3; the last that it printed: no",
            id="exit code",
        ),
        pytest.param(
            "exit 200", "run_failed", "exited with code 200; it printed nothing that would tell why", id="silent"
        ),
        pytest.param("kill -SEGV $$", "run_failed", "exited with code 139 (SIGSEGV); ", id="signal"),
        pytest.param(
            "dd if=/dev/zero of=/data/perf.json bs=64k",
            "run_failed",
            "exited with code 153 (SIGXFSZ: a file grew past kinds.run.file_max_bytes = 1048576 bytes)",
            id="large file",
        ),
        pytest.param("true", "result_missing", "neither /data/perf-", id="no result"),
        pytest.param("ln -s /etc/passwd /data/perf.json", "result_invalid", "/data/perf.json", id="link"),
        pytest.param(
            "ln -s real /data/perf.json; echo '{\"perf\": 1}' > /data/real", "result_invalid", "", id="own link"
        ),
        pytest.param("mkdir /data/perf.json", "result_invalid", "/data/perf.json", id="directory"),
        pytest.param("mkfifo /data/perf.json", "result_invalid", "/data/perf.json", id="FIFO"),
        pytest.param("seq 2000 > /data/perf.json", "result_invalid", "at most 4096 are read", id="too large"),
        pytest.param("truncate -s 1000000 /data/perf.json", "result_invalid", "at most 4096 are read", id="sparse"),
        pytest.param("echo perf=1 > /data/perf.json", "result_invalid", "it is not JSON", id="not JSON"),
        pytest.param("echo '{\"perf\": NaN}' > /data/perf.json", "result_invalid", "NaN is not a finite", id="NaN"),
    ],
)
def test_failures(tight_daemon: Daemon, engine: PrivateEngine, command: str, code: str, words: str) -> None:
    """Each way to fail has its own code and words, and leaves nothing in the engine."""
    job = launch(tight_daemon, f"{FROM}CMD {json.dumps(['sh', '-c', command])}")
    text = said(tight_daemon, job)
    assert text.startswith("Failed - ")
    assert words in text
    error = curl(tight_daemon, f"/api/v2/jobs/{job}").json["error"]
    assert error["code"] == code, error
    assert traces(engine, job) == ""


def test_want_of_memory(tight_daemon: Daemon, engine: PrivateEngine) -> None:
    """That memory was the reason is said for sure, or, where the engine does not tell so, as the likely one."""
    job = launch(tight_daemon, f"{FROM}CMD dd if=/dev/zero of=/dev/null bs=100M")
    text = said(tight_daemon, job)
    assert text.startswith("Failed - ")
    words = {
        "out_of_memory": "kinds.run.memory_bytes = 25165824 bytes",
        "run_failed": "SIGKILL: most often for want of memory, of which it has 25165824 bytes",
    }
    assert words[curl(tight_daemon, f"/api/v2/jobs/{job}").json["error"]["code"]] in text
    assert traces(engine, job) == ""


@pytest.mark.parametrize("command", ["sleep 60", "yes"], ids=["sleeper", "endless output"])
def test_time_out(hasty_daemon: Daemon, engine: PrivateEngine, command: str) -> None:
    """A container that goes on beyond its time is killed, and the reason is told."""
    job = launch(hasty_daemon, f"{FROM}CMD {command}")
    assert "longer than kinds.run.timeout_s = 2 s and was killed" in said(hasty_daemon, job)
    assert curl(hasty_daemon, f"/api/v2/jobs/{job}").json["error"]["code"] == "timeout"
    assert traces(engine, job) == ""


@pytest.mark.parametrize("command", ['["/no/such/program"]', '["/etc/passwd"]', '["/bin"]'])
def test_commands_that_cannot_start(tight_daemon: Daemon, engine: PrivateEngine, command: str) -> None:
    """An image whose command is no program fails as a run, once, with the engine's reason."""
    job = launch(tight_daemon, f"{FROM}CMD {command}")
    assert said(tight_daemon, job).startswith("Failed - ")
    shown = curl(tight_daemon, f"/api/v2/jobs/{job}").json
    assert (shown["error"]["code"], shown["attempt"]) == ("run_failed", 1)
    assert command[2:-2] in shown["error"]["message"]
    assert traces(engine, job) == ""


def test_an_image_without_a_command(tight_daemon: Daemon, engine: PrivateEngine) -> None:
    """What names no command cannot be run, and is told so."""
    job = launch(tight_daemon, "FROM scratch\nLABEL a=b")
    assert said(tight_daemon, job).startswith("Failed - ")
    assert curl(tight_daemon, f"/api/v2/jobs/{job}").json["error"]["code"] == "run_failed"
    assert traces(engine, job) == ""


def test_a_build_that_fails(tight_daemon: Daemon, engine: PrivateEngine) -> None:
    """A failing RUN step ends the job before anything runs."""
    job = launch(tight_daemon, f"{FROM}RUN echo going down && exit 7\n{PERF}")
    assert "7" in said(tight_daemon, job)
    shown = curl(tight_daemon, f"/api/v2/jobs/{job}").json
    assert shown["error"]["code"] == "build_failed"
    assert [phase["name"] for phase in shown["phases"]] == ["building"]
    assert traces(engine, job) == ""


def test_output_is_bounded(tight_daemon: Daemon) -> None:
    """Much output is cut where the bound is, visibly, and its end is kept."""
    job = launch(tight_daemon, f"{FROM}CMD seq 100000; {PERF.removeprefix('CMD ')}; echo the end")
    assert said(tight_daemon, job).startswith("Successful")
    log = log_of(tight_daemon, job)
    assert len(log) < 4 * TIGHT["output_max_bytes"]
    assert "\n1\n2\n3\n" in log
    assert "\n[the output is over 65536 bytes; what follows is left out until its end]\n" in log
    assert "\n100000\nthe end\nexited with code 0" in log
