"""The doctor says of each part whether it works, and what to do."""

import json
from pathlib import Path

from terminals import run

from harness.box import Box
from harness.daemon import Daemon
from harness.engine import PrivateEngine
from harness.registry import PASSWORD, USERNAME, Registry
from imagejobd.cli.doctor import log_finding

Findings = dict[str, dict[str, str]]


def examined(daemon: Daemon, code: int) -> Findings:
    """What is found with a daemon's own configuration, by subject."""
    done = run(daemon.url, "doctor", "--json", "--config", str(daemon.config_file))
    assert done.code == code, done
    assert PASSWORD not in done.out
    return {finding["subject"]: finding for finding in json.loads(done.out)["findings"]}


def test_everything_works(engine: PrivateEngine, private_registry: Registry, tmp_path: Path) -> None:
    """With a daemon, its engine and a registry whose login is good nothing fails."""
    password = tmp_path / "password"
    password.write_text(PASSWORD)
    host = {"username": USERNAME, "password_file": str(password)}
    with Box(engine, registry={private_registry.host: host}) as box:
        found = examined(box.daemon, 0)
        text = run(box.daemon.url, "doctor", "--config", str(box.daemon.config_file)).out
    for subject in ("configuration", "daemon", "clock", "engine", "builder", "disk", "rights", private_registry.host):
        assert found[subject]["verdict"] in ("ok", "warn" if subject == "disk" else "ok"), found[subject]
        assert subject in text
    # The tests' engine is started so.
    assert found["log limits"]["message"].startswith("raised")


def test_log_limits() -> None:
    """An engine that clips long logs is one to be started otherwise; one whose environment cannot be seen is none."""
    finding = log_finding({"BUILDKIT_STEP_LOG_MAX_SIZE": "1"})
    assert finding.verdict == "warn"
    assert "BUILDKIT_STEP_LOG_MAX_SPEED=1073741824" in finding.advice
    assert log_finding(None).verdict == "ok"


def test_nothing_runs(private_registry: Registry, tmp_path: Path) -> None:
    """Without a daemon, with an engine that is down and a login that is wrong, each is said with what to do."""
    password = tmp_path / "password"
    password.write_text("wrong")
    daemon = Daemon({"registry": {private_registry.host: {"username": USERNAME, "password_file": str(password)}}})
    try:
        (daemon.state_dir / "secrets.key").write_bytes(bytes(32))
        (daemon.state_dir / "secrets.key").chmod(0o644)
        found = examined(daemon, 1)
    finally:
        daemon.remove()
    assert found["daemon"]["verdict"] == "warn"
    for subject, words in (
        ("engine", "systemctl start docker"),
        (private_registry.host, "password_file"),
        ("rights", "chmod 600"),
    ):
        assert found[subject]["verdict"] == "fail", found[subject]
        assert words in found[subject]["advice"]


def test_bad_configuration(tmp_path: Path) -> None:
    """A configuration that cannot be used is a finding like any other, and the rest is looked at all the same."""
    path = tmp_path / "config.toml"
    path.write_text("[limits]\nbuild = 0\n")
    done = run("http://127.0.0.1:1", "doctor", "--config", str(path), DOCKER_HOST=f"unix://{tmp_path}/absent.sock")
    assert done.code == 1
    assert "limits.build" in done.out
    assert "disk" in done.out
