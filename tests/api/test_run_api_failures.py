"""The run API's word on what fails, on a real engine: each way has its own, and nothing stays."""

import json
from collections.abc import Iterator

import pytest
from calls import curl
from runs import FROM, PERF, launch, log_of, said, traces

from harness.daemon import Daemon
from harness.engine import PrivateEngine
from harness.services import require

SMALL_BYTES = 4096
# Bounds that a container reaches soon; time enough for what is to fail otherwise.
TIGHT = {
    "memory_bytes": 24 * 1024 * 1024,
    "timeout_s": 8.0,
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
            "exit 200", "run_failed", "exited with code 200; it printed nothing that explains it", id="silent"
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
def test_time_out(tight_daemon: Daemon, engine: PrivateEngine, command: str) -> None:
    """A container that goes on beyond its time is killed, and the reason is told."""
    job = launch(tight_daemon, f"{FROM}CMD {command}")
    assert "longer than kinds.run.timeout_s = 8 s and was killed" in said(tight_daemon, job)
    assert curl(tight_daemon, f"/api/v2/jobs/{job}").json["error"]["code"] == "timeout"
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
