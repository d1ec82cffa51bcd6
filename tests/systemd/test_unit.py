"""The units as the README installs them, under a real systemd: starts, reloads, crashes, and what may be amiss."""

import base64
import os
import signal
import time

import jwt
from machine import REGISTRY, UNITS, Machine

from harness.waiting import until

TIMEOUT_S = 30.0
OLD, NEW = b"the old secret, of thirty-two bytes", b"the new secret, of thirty-two bytes"
KEYS = '[auth]\nrequired = true\njwt_secret_file = "/etc/imagejobd/jwt.secret"\n'


def slow() -> str:
    """A step that takes a while, and is no other build's."""
    return f"RUN echo begun {time.monotonic_ns()} && sleep 2"


def test_ready(machine: Machine) -> None:
    """The unit is up once the daemon says so; it says how it is to `systemctl status`, and builds on the engine."""
    assert machine.show("ActiveState") == "active"
    assert machine.call("GET", "/readyz").status == 200
    until(lambda: machine.show("StatusText") != "", timeout_s=TIMEOUT_S, what="the status")
    assert machine.show("StatusText").startswith("queued 0, running 0")
    [job] = machine.succeeded(machine.build("unit/ready:1", "RUN echo built"))
    assert job["result"]["digest"].startswith("sha256:")


def test_the_journal(machine: Machine) -> None:
    """The journal has each line's priority and its own time, and says who got which job in."""
    cursor = machine.cursor()
    job = machine.build("unit/journal:1")
    assert machine.call("POST", "/api/v2/jobs", b"{").status == 400
    machine.succeeded(job)
    accepted = machine.logged("job accepted", since=cursor)
    assert accepted["MESSAGE"].startswith("level=info ")
    assert accepted["MESSAGE"].endswith(f" job={job} kind=build tenant=local image={REGISTRY}/unit/journal:1")
    assert accepted["PRIORITY"] == "6"
    assert machine.logged("request refused", since=cursor)["PRIORITY"] == "4"


def test_a_connection_starts_it(machine: Machine) -> None:
    """A daemon that was stopped is started by the first request, which is answered."""
    machine.systemctl("stop", "imagejobd.service")
    assert machine.show("ActiveState") == "inactive"
    machine.succeeded(machine.build("unit/socket:1"))
    assert machine.show("ActiveState") == "active"


def test_reload(machine: Machine) -> None:
    """`systemctl reload` reads the keys for tokens again, in the same process."""
    machine.write("/etc/imagejobd/jwt.secret", OLD)
    machine.run("chown", "imagejobd", "/etc/imagejobd/jwt.secret")
    machine.configure(config=KEYS)
    pid = machine.pid
    assert (listed(machine, OLD), listed(machine, NEW)) == (200, 401)
    machine.write("/etc/imagejobd/jwt.secret", NEW)
    machine.systemctl("reload", "imagejobd.service")
    until(lambda: listed(machine, NEW) == 200, timeout_s=TIMEOUT_S, what="the new key")
    assert listed(machine, OLD) == 401
    assert (machine.show("ActiveState"), machine.pid) == ("active", pid)


def listed(machine: Machine, secret: bytes) -> int:
    """The status of a request whose token is signed with `secret`."""
    token = jwt.encode({"tid": 1, "oid": 1, "aud": "com.company.jobservice"}, secret, algorithm="HS256")
    return machine.call("GET", "/api/v2/jobs", headers={"Authorization": f"Bearer {token}"}).status


def test_killed(machine: Machine) -> None:
    """After SIGKILL systemd starts it anew; every accepted job is carried out, the one that was running too."""
    jobs = [machine.build(f"unit/killed-{number}:1", slow()) for number in range(4)]
    machine.prints(jobs[0], "begun")
    restarts = int(machine.show("NRestarts"))
    machine.kill(signal.SIGKILL)
    machine.succeeded(*jobs)
    assert int(machine.show("NRestarts")) == restarts + 1


def test_frozen(machine: Machine) -> None:
    """A daemon that does nothing any more is ended by the watchdog and started anew, and its jobs go on."""
    machine.configure("WatchdogSec=5")
    job = machine.build("unit/frozen:1", slow())
    machine.prints(job, "begun")
    cursor = machine.cursor()
    machine.kill(signal.SIGSTOP)
    machine.succeeded(job)
    machine.logged("result 'watchdog'", since=cursor)


def test_a_bad_configuration(machine: Machine) -> None:
    """The unit fails once, and says which key is wrong; it is not started again and again."""
    cursor = machine.cursor()
    machine.systemctl("stop", *UNITS)
    machine.write("/etc/imagejobd/config.toml", "[limits]\nbuilt = 1\n")
    machine.systemctl("start", "imagejobd.service", check=False)
    assert machine.show("ActiveState") == "failed"
    assert (machine.show("ExecMainStatus"), machine.show("NRestarts")) == (str(os.EX_CONFIG), "0")
    machine.logged("limits.built", since=cursor)


def test_what_may_pass(machine: Machine) -> None:
    """A start that something outside the configuration prevents is tried again until it works."""
    machine.systemctl("stop", *UNITS)
    machine.run("sh", "-c", "rm -rf /var/lib/imagejobd.aside && mv /var/lib/imagejobd /var/lib/imagejobd.aside")
    machine.write("/var/lib/imagejobd/blobs", "no folder")
    machine.systemctl("start", "imagejobd.service", check=False)
    until(lambda: int(machine.show("NRestarts")) > 0, timeout_s=TIMEOUT_S, what="another start")
    machine.run("rm", "/var/lib/imagejobd/blobs")
    until(lambda: machine.show("ActiveState") == "active", timeout_s=TIMEOUT_S, what="a start that works")


def test_a_key_from_systemd(machine: Machine) -> None:
    """The key for passwords comes from LoadCredential=: none is made in the state folder, and jobs with one work."""
    machine.systemctl("stop", *UNITS)
    machine.run("rm", "-rf", "/var/lib/imagejobd")
    machine.write("/etc/imagejobd.key", base64.b64encode(os.urandom(32)), mode=0o600)
    machine.configure("LoadCredential=imagejobd-key:/etc/imagejobd.key")
    login = {"username": "somebody", "password": "a password"}
    machine.succeeded(machine.build("unit/credential:1", "RUN echo built", **login))
    assert "secrets.key" not in machine.run("ls", "-A", "/var/lib/imagejobd").split()


def test_a_host_without_the_group_docker(machine: Machine) -> None:
    """The daemon starts without Docker's group, takes jobs, and says why it cannot build."""
    machine.run("cp", "/etc/group", "/etc/group.aside")
    try:
        machine.run("groupdel", "docker")
        machine.systemctl("restart", "imagejobd.service")
        assert machine.show("ActiveState") == "active"
        assert "denied" in machine.call("GET", "/readyz").body["engine"].lower()
        job = machine.build("unit/group:1")
    finally:
        machine.run("cp", "/etc/group.aside", "/etc/group")
    machine.systemctl("restart", "imagejobd.service")
    machine.succeeded(job)
