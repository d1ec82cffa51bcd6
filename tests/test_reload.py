"""Rotating the keys for tokens under a running daemon, by SIGHUP, as `systemctl reload` does."""

import os
import signal
import socket
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path

import jwt
import pytest

from harness.daemon import Daemon
from harness.waiting import until

OLD, NEW = b"the old secret, of thirty-two bytes", b"the new secret, of thirty-two bytes"
TIMEOUT_S = 10.0


def token(secret: bytes) -> str:
    return jwt.encode({"tid": 1, "oid": 1, "aud": "com.company.jobservice"}, secret, algorithm="HS256")


def status(daemon: Daemon, secret: bytes) -> int:
    request = urllib.request.Request(f"{daemon.url}/api/v2/jobs", headers={"Authorization": f"Bearer {token(secret)}"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def is_taken(daemon: Daemon, secret: bytes) -> bool:
    return status(daemon, secret) == 200


def test_keys_are_rotated_without_a_restart(tmp_path: Path) -> None:
    """After SIGHUP the new key counts and the old one does not; a bad file is named and changes nothing. The manager
    hears RELOADING=1 and READY=1 around each, and no log line holds a token or a secret."""
    secret_file = tmp_path / "jwt.secret"
    secret_file.write_bytes(OLD)
    notify = str(tmp_path / "notify")
    config = {"auth": {"required": True, "jwt_secret_file": str(secret_file)}}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(notify)
        manager.settimeout(TIMEOUT_S)

        def reload(daemon: Daemon) -> None:
            os.kill(daemon.pid, signal.SIGHUP)
            assert heard().startswith("RELOADING=1\nMONOTONIC_USEC=")
            assert heard() == "READY=1"

        def heard() -> str:
            while (said := manager.recv(4096).decode()).startswith(("STATUS=", "WATCHDOG=")):
                pass
            return said

        with Daemon(config, env={"NOTIFY_SOCKET": notify}) as daemon:
            assert heard() == "READY=1"
            assert (status(daemon, OLD), status(daemon, NEW)) == (200, 401)
            secret_file.write_bytes(NEW)
            reload(daemon)
            assert (status(daemon, OLD), status(daemon, NEW)) == (401, 200)
            secret_file.unlink()
            reload(daemon)
            assert (status(daemon, OLD), status(daemon, NEW)) == (401, 200)
            until(lambda: str(secret_file) in daemon.log_text(), timeout_s=TIMEOUT_S, what="the file to be named")
            said = daemon.log_text()
    for secret in (OLD.decode(), NEW.decode(), token(OLD), token(NEW)):
        assert secret not in said


def test_a_hangup_without_a_manager(tmp_path: Path) -> None:
    """Outside systemd SIGHUP reloads as well, every time."""
    secret_file = tmp_path / "jwt.secret"
    secret_file.write_bytes(OLD)
    with Daemon({"auth": {"jwt_secret_file": str(secret_file)}}) as daemon:
        for secret in (NEW, OLD, NEW):
            secret_file.write_bytes(secret)
            os.kill(daemon.pid, signal.SIGHUP)
            until(partial(is_taken, daemon, secret), timeout_s=TIMEOUT_S, what="the key to be taken")


@pytest.mark.parametrize("name", ["jwt_secret_file", "jwks_file"])
def test_a_start_with_a_bad_key_file(tmp_path: Path, name: str) -> None:
    """A daemon does not start with a key file that it cannot use."""
    daemon = Daemon({"auth": {name: str(tmp_path / "absent")}})
    try:
        daemon.spawn()
        assert daemon.wait() == 78
        assert f"auth.{name}: {tmp_path / 'absent'}" in daemon.log_text()
    finally:
        daemon.remove()
