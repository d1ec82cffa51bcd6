"""The client's commands against a daemon, piped and in a terminal."""

import json
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from terminals import command, environment, run, terminal

from harness.base_image import BUSYBOX
from harness.build_box import BuildBox
from harness.engine import PrivateEngine
from harness.registry import PASSWORD, USERNAME, Registry
from harness.waiting import until

SUCCEEDED, FAILED, USAGE, CANCELLED, UNREACHABLE, NOT_ENDED, INTERRUPTED = 0, 1, 2, 3, 4, 5, 130


def slow(name: str) -> str:
    """A build that goes on until it is cancelled; BuildKit runs equal steps of two builds once, so each has a name."""
    return f'FROM {BUSYBOX}\nRUN echo be""gun; sleep 600; : {name}\n'


@pytest.fixture(scope="module")
def box(engine: PrivateEngine) -> Iterator[BuildBox]:
    with BuildBox(engine, limits={"build": 4}) as box:
        yield box


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A context with an ignore file."""
    (tmp_path / "Dockerfile").write_text(f"FROM {BUSYBOX}\nCOPY . /app\nRUN ls -A /app && echo step-output\n")
    (tmp_path / "greeting").write_text("hello\n")
    (tmp_path / "secret").write_text("no\n")
    (tmp_path / ".dockerignore").write_text("secret\n")
    return tmp_path


def test_build_prints_the_digest(box: BuildBox, registry: Registry, folder: Path) -> None:
    """Piped: stdout has the pushed reference and nothing else, stderr the log; exit 0."""
    image = f"{registry.host}/cli/build:1"
    done = run(box.daemon.url, "build", str(folder), "-t", image, "-t", f"{registry.host}/cli/build:latest")
    assert done.code == SUCCEEDED, done.err
    assert done.out == f"{image}@{registry.digest('cli/build', '1')}\n"
    assert registry.tags("cli/build") == ["1", "latest"]
    assert "step-output" in done.err
    assert "greeting" in done.err
    assert "secret" not in done.err


def test_build_in_a_terminal(box: BuildBox, registry: Registry, folder: Path) -> None:
    """Steps have colours, and the result stands at the end."""
    image = f"{registry.host}/cli/terminal:1"
    with terminal(box.daemon.url, "build", ".", "-t", image, cwd=folder) as shown:
        assert shown.wait() == SUCCEEDED, shown.text
    assert "step-output" in shown.text
    assert f"{image}@sha256:" in shown.text
    assert b"\x1b[3" in shown.raw


def test_build_without_waiting(box: BuildBox, registry: Registry, folder: Path) -> None:
    """--no-wait prints the id; wait, show and logs find the job by it, each for people and as JSON."""
    image = f"{registry.host}/cli/later:1"
    url = box.daemon.url
    done = run(url, "build", str(folder), "-t", image, "--no-wait", "--label", "team=web")
    assert done.code == SUCCEEDED, done.err
    job = done.out.strip()
    assert run(url, "wait", job).out == f"{job} succeeded\n"
    shown = json.loads(run(url, "show", job, "--json").out)
    assert (shown["state"], shown["labels"]) == ("succeeded", {"team": "web"})
    assert image in run(url, "show", job).out
    assert run(url, "logs", job).out == box.log(job)
    assert run(url, "logs", job, "--tail", "1").out == box.log(job).splitlines(keepends=True)[-1]
    followed = run(url, "logs", "-f", job)
    assert (followed.code, followed.out) == (SUCCEEDED, box.log(job))


def test_a_build_that_fails(box: BuildBox, registry: Registry, tmp_path: Path) -> None:
    """Exit 1, and the reason on stderr; wait says the same."""
    (tmp_path / "Dockerfile").write_text(f"FROM {BUSYBOX}\nRUN echo doomed; exit 7\n")
    done = run(box.daemon.url, "build", str(tmp_path), "-t", f"{registry.host}/cli/fails:1")
    assert (done.code, done.out) == (FAILED, "")
    assert "doomed" in done.err
    assert "failed" in done.err.splitlines()[-1]
    job = json.loads(run(box.daemon.url, "jobs", "--state", "failed", "--json", "--limit", "1").out)["jobs"][0]["id"]
    assert run(box.daemon.url, "wait", job).code == FAILED


def test_cancel(box: BuildBox, registry: Registry) -> None:
    """A cancelled job makes wait end with 3, and with 5 it says that a job has not ended yet."""
    job = box.submit_build(f"{registry.host}/cli/cancelled:1", slow("cancel"))
    box.prints(job, "begun")
    assert run(box.daemon.url, "wait", job, "--timeout", "0").code == NOT_ENDED
    assert run(box.daemon.url, "cancel", job).code == SUCCEEDED
    assert run(box.daemon.url, "wait", job).code == CANCELLED
    retried = run(box.daemon.url, "retry", job).out.strip()
    assert box.job(retried)["retry_of"] == job
    assert run(box.daemon.url, "cancel", retried).code == SUCCEEDED


def test_ctrl_c_asks(box: BuildBox, registry: Registry, tmp_path: Path) -> None:
    """Ctrl-C asks; `w` keeps watching, `c` cancels, and the exit code is the job's end."""
    (tmp_path / "Dockerfile").write_text(slow("ctrl-c-1"))
    with terminal(box.daemon.url, "build", str(tmp_path), "-t", f"{registry.host}/cli/ctrl:1") as shown:
        shown.shows("begun")
        shown.interrupt()
        shown.shows("Cancel the job (c)")
        shown.type(b"w\n")
        shown.shows("[w]: w")
        until(
            lambda: shown.text.rpartition("[w]: w")[2].count("building") > 5,
            what=lambda: f"the watch to go on: {shown.text[-2000:]}",
        )
        shown.interrupt()
        until(
            lambda: shown.text.count("Cancel the job (c)") == 2,
            what=lambda: f"the second question: {shown.text[-2000:]}",
        )
        shown.type(b"c\n")
        assert shown.wait() == CANCELLED
    assert "cancelled" in shown.text


def test_ctrl_c_twice_leaves(box: BuildBox, registry: Registry, tmp_path: Path) -> None:
    """A second Ctrl-C leaves the job alone and says how to get back to it."""
    (tmp_path / "Dockerfile").write_text(slow("ctrl-c-2"))
    with terminal(box.daemon.url, "build", str(tmp_path), "-t", f"{registry.host}/cli/leave:1") as shown:
        shown.shows("begun")
        shown.interrupt()
        shown.shows("Cancel the job (c)")
        shown.interrupt()
        assert shown.wait() == INTERRUPTED
    assert "imagejobd logs -f " in shown.text
    job = shown.text.rpartition("imagejobd cancel ")[2].split()[0]
    assert box.job(job)["state"] == "running"
    box.cancel(job)


def test_ctrl_c_elsewhere(box: BuildBox, registry: Registry) -> None:
    """A command that only looks ends with 130, and leaves the job alone."""
    job = box.submit_build(f"{registry.host}/cli/looked:1", slow("looked"))
    box.prints(job, "begun")
    for args, words in ((["logs", "-f", job], "begun"), (["jobs", "--watch"], "JOB")):
        with terminal(box.daemon.url, *args) as shown:
            shown.shows(words)
            shown.interrupt()
            assert shown.wait() == INTERRUPTED, shown.text
    assert box.job(job)["state"] == "running"
    box.cancel(job)


def test_a_reader_that_goes_away(box: BuildBox, registry: Registry) -> None:
    """`imagejobd logs | head` is no error of the daemon's, and nothing is said of it."""
    job = box.submit_build(f"{registry.host}/cli/head:1", f"FROM {BUSYBOX}\nRUN seq 200000\n")
    box.succeeded(job)
    pipe = f"{shlex.join(command(['logs', job]))} | head -c 5"
    done = subprocess.run(["sh", "-c", pipe], env=environment(box.daemon.url), capture_output=True, check=True)
    assert done.stderr == b""
    assert len(done.stdout) == 5


def test_logs_survive_a_restart(engine: PrivateEngine, registry: Registry) -> None:
    """A follower goes on after `kill -9`: every line of the log once, the daemon's outage on stderr."""
    with BuildBox(engine) as box:
        loop = "for i in $(seq 1 60); do echo line-$i-; sleep 0.1; done"
        job = box.submit_build(f"{registry.host}/cli/restart:1", f"FROM {BUSYBOX}\nRUN {loop}\n")
        box.prints(job, "line-5-")
        with terminal(box.daemon.url, "logs", "-f", job) as shown:
            shown.shows("line-6-")
            box.restart()
            assert shown.wait() == SUCCEEDED, shown.text
        whole = box.log(job)
    lines = [line for line in shown.text.splitlines() if not line.startswith("imagejobd: ")]
    assert lines == whole.splitlines()
    assert "waiting" in shown.text


def test_lists(box: BuildBox, registry: Registry) -> None:
    """Piped a list is a job a line; in a terminal a table; filters reach the daemon."""
    job = box.submit_build(f"{registry.host}/cli/listed:1", f"FROM {BUSYBOX}\n")
    box.succeeded(job)
    row = next(line for line in run(box.daemon.url, "jobs").out.splitlines() if "cli/listed:1" in line)
    assert row.split("\t")[:3] == [str(box.job(job)["number"]), "build", "succeeded"]
    with terminal(box.daemon.url, "jobs", "--kind", "build") as shown:
        assert shown.wait() == SUCCEEDED
    assert shown.text.splitlines()[0].split()[:4] == ["JOB", "KIND", "STATE", "IMAGE"]
    assert b"\x1b[" in shown.raw
    with terminal(box.daemon.url, "jobs", NO_COLOR="1") as shown:
        assert shown.wait() == SUCCEEDED
    assert b"\x1b[" not in shown.raw
    assert run(box.daemon.url, "jobs", "--kind", "distribute").out == ""


def test_run_prints_the_number(box: BuildBox, tmp_path: Path) -> None:
    """The number that the run has written is all there is on stdout."""
    file = tmp_path / "perf.Dockerfile"
    file.write_text(f"FROM {BUSYBOX}\nCMD echo '{{\"perf\": 0.5}}' > /data/perf.json\n")
    done = run(box.daemon.url, "run", str(file))
    assert (done.code, done.out) == (SUCCEEDED, "0.5\n"), done.err


def test_dispatch_prints_where(box: BuildBox) -> None:
    """A payload from standard input is kept, and where it is served is printed."""
    done = run(box.daemon.url, "dispatch", "-", input=b"\0\1\2 anything")
    assert done.code == SUCCEEDED, done.err
    assert box.call("GET", done.out.strip()).status in (200, 401)


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["show", "0"], USAGE, "0"),
        (["show", "../../healthz"], USAGE, "is no job"),
        (["logs", "-f", "999999"], USAGE, "999999"),
        (["retry"], USAGE, "--all"),
        (["build", "tests", "-t", "a"], USAGE, "Dockerfile"),
        (["build", "/nowhere", "-t", "a"], USAGE, "/nowhere"),
        (["jobs", "--since", "yesterday"], USAGE, "yesterday"),
        (["copy", "127.0.0.1:1/a:1", "127.0.0.1:2/a@sha256:00"], USAGE, "sha256:00"),
    ],
)
def test_what_is_refused(box: BuildBox, args: list[str], code: int, words: str) -> None:
    """Exit 2 with what is wrong, in lines of its own, and nothing on stdout."""
    done = run(box.daemon.url, *args)
    assert (done.code, done.out) == (code, ""), done.err
    assert words in done.err
    assert "Traceback" not in done.err


def test_no_daemon(tmp_path: Path) -> None:
    """Exit 4 with the address, over TCP and over a unix socket."""
    for url in ("http://127.0.0.1:1", f"unix:{tmp_path}/absent.sock"):
        done = run(url, "jobs")
        assert done.code == UNREACHABLE
        assert url in done.err


def test_unix_socket(engine: PrivateEngine, tmp_path: Path) -> None:
    """The client speaks over a unix socket as over TCP."""
    path = tmp_path / "api.sock"
    box = BuildBox(engine)
    listen = json.dumps([f"127.0.0.1:{box.daemon.port}", f"unix:{path}"])
    file = box.daemon.config_file
    file.write_text(file.read_text().replace('"listen" = [', f'"listen" = {listen} # ['))
    with box:
        assert run(f"unix:{path}", "jobs").code == SUCCEEDED


def test_tokens(tmp_path: Path) -> None:
    """Where the daemon wants a token, it comes from the environment or a file; without one the client says how."""
    secret = tmp_path / "jwt.secret"
    secret.write_text("a shared secret of more than thirty-two bytes")
    with BuildBox(auth={"jwt_secret_file": str(secret), "required": True}) as box:
        url, config = box.daemon.url, str(box.daemon.config_file)
        done = run(url, "jobs")
        assert done.code == USAGE
        assert "$IMAGEJOBD_TOKEN" in done.err
        token = run(url, "token", "--tenant", "1", "--client", "2", "--config", config).out
        (tmp_path / "token").write_text(token)
        assert run(url, "jobs", IMAGEJOBD_TOKEN=token).code == SUCCEEDED
        assert run(url, "jobs", "--token-file", str(tmp_path / "token")).code == SUCCEEDED
        assert run(url, "jobs", "--token-file", "-", input=token.encode()).code == SUCCEEDED


def test_a_login_for_one_build(box: BuildBox, private_registry: Registry, folder: Path) -> None:
    """A password comes from a file, and is printed nowhere."""
    image = f"{private_registry.host}/cli/private:1"
    (folder / "secret").write_text(PASSWORD)
    login = ("--username", USERNAME, "--password-file", str(folder / "secret"))
    done = run(box.daemon.url, "build", str(folder), "-t", image, *login)
    assert done.code == SUCCEEDED, done.err
    assert PASSWORD not in done.out + done.err
    assert private_registry.tags("cli/private") == ["1"]
