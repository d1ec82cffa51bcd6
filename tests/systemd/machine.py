"""A build host of its own: a Debian that boots under its own systemd, with a Docker Engine, a registry, and imagejobd.

The network is its own and leads nowhere. What it writes is in memory and gone with it; `.ci/machine` made the rest.
"""

import ctypes
import http.client
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.parse
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from harness.base_image import BUSYBOX, busybox_root
from harness.process import Peer, Process
from harness.services import program
from harness.waiting import until

SOURCE_ROOT = Path(__file__).parents[2]
ROOT = SOURCE_ROOT / ".lanes" / "machine"
BOOT_TIMEOUT_S = 60.0
COMMAND_TIMEOUT_S = 120.0
REQUEST_TIMEOUT_S = 60.0
END_TIMEOUT_S = 60.0
PORT = 8080
UNITS = ("imagejobd.socket", "imagejobd.service")
REGISTRY = "127.0.0.1:5000"
REGISTRY_CONFIG = f"""
version: 0.1
storage: {{filesystem: {{rootdirectory: /var/lib/docker-registry}}}}
http: {{addr: "{REGISTRY}"}}
"""
DROP_IN = "/etc/systemd/system/imagejobd.service.d/test.conf"
CGROUPS = Path("/sys/fs/cgroup")
CLONE_NEWNET = 0x40000000

# Takes the name of the machine, and arguments for systemd-nspawn. The mounts end with the machine. Cgroups are made
# writable, which they are not where the tests themselves run in a container.
BOOT = """
for tree in $(findmnt --noheadings --raw --output TARGET --types cgroup,cgroup2); do
    mount -o remount,bind,rw "$tree"
    if [ "${tree##*/}" = cgroup ] || [ "${tree##*/}" = systemd ] || [ "${tree##*/}" = unified ]; then
        mkdir -p "$tree/$0" && echo $$ >"$tree/$0/cgroup.procs"
    fi
done
exec systemd-nspawn --quiet --boot --volatile=overlay --private-network --register=no --keep-unit --console=pipe \
    --notify-ready=yes --link-journal=no --resolv-conf=off --timezone=off --machine="$0" \
    --capability=all --system-call-filter=@known "$@"
"""

# Around the README's own commands. There is no network, so the libraries are those of the virtual environment that runs
# the tests, and only the project itself is built and installed.
INSTALL = """
set -e
python3 -c 'import sys; assert sys.version_info[:2] == {version}, "the tests run on another Python than Debian has"'
cp -r /checkout /tmp/checkout && cd /tmp/checkout
python3 -m venv /opt/imagejobd
echo /libraries >$(echo /opt/imagejobd/lib/python3*/site-packages)/libraries.pth
export PIP_QUIET=1 PIP_NO_INDEX=1 PIP_NO_DEPS=1 PIP_NO_BUILD_ISOLATION=0 PYTHONPATH=/usr/lib/python3/dist-packages
{commands}
"""

_libc = ctypes.CDLL(None, use_errno=True)


class Answer(NamedTuple):
    """An HTTP answer: JSON where it is JSON, else text."""

    status: int
    body: Any


class Machine(Peer):
    """Boots in about three seconds, and installs imagejobd in about four."""

    def __init__(self, package: Path | None = None) -> None:
        """`package` is a Debian package that is installed instead of what the README says."""
        self._package = package
        self.name = f"imagejobd-machine-{secrets.token_hex(4)}"
        self._folder = Path(tempfile.gettempdir()) / self.name
        self._folder.mkdir()
        self._leader: int | None = None
        checkout = self._folder / "checkout"
        for name in ("imagejobd", "systemd"):
            shutil.copytree(SOURCE_ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "constraints.txt"):
            shutil.copy(SOURCE_ROOT / name, checkout / name)
        libraries = next(path for path in sys.path if path.endswith("site-packages"))
        binds = [f"--bind-ro={checkout}:/checkout", f"--bind-ro={Path(libraries).resolve()}:/libraries"]
        argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", BOOT, self.name]
        self._notices = self._folder / "notify"
        self._process = Process(
            [*argv, f"--directory={ROOT.resolve()}", *binds],
            log_file=self._folder / "console.log",
            env=os.environ | {"NOTIFY_SOCKET": str(self._notices)},
        )

    def start(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(str(self._notices))
            manager.setblocking(False)
            self._process.start(lambda: self._is_booted(manager), timeout_s=BOOT_TIMEOUT_S)
        # Where cgroups are of the first version, systemd-nspawn gives all but systemd's own read-only; the engine has
        # its containers there.
        self.run("sh", "-c", "for tree in /sys/fs/cgroup/*; do mount -o remount,bind,rw $tree 2>/dev/null || :; done")
        # Debian's asks for a password.
        self.write("/etc/docker/registry/config.yml", REGISTRY_CONFIG)
        self.systemctl("restart", "docker-registry.service")
        if self._package is None:
            self.run("sh", "-c", INSTALL.format(version=sys.version_info[:2], commands=readme_commands()))
        else:
            self.run("rm", "/usr/sbin/policy-rc.d")
            self.install(self._package)
        self.docker("import", "-", BUSYBOX, input=busybox_root())

    def remove(self) -> None:
        if self._process.is_running:
            self._process.terminate()
        shutil.rmtree(self._folder, ignore_errors=True)
        # Where BOOT makes them. What others have there comes and goes, so nothing else is looked at.
        for tree in (CGROUPS, CGROUPS / "systemd", CGROUPS / "unified"):
            _remove_group(tree / self.name)

    def run(self, *argv: str, input: bytes | None = None, check: bool = True) -> str:  # noqa: A002
        """Run a program inside, as root; returns its output without the last newline."""
        inside = ["nsenter", f"--target={self._leader}", "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"]
        return _output([*inside, *argv], input=input, check=check)

    def install(self, package: Path) -> None:
        """A Debian package, by dpkg."""
        self.run("sh", "-c", "cat >/root/package.deb && dpkg --install /root/package.deb", input=package.read_bytes())

    def docker(self, *args: str, input: bytes | None = None) -> str:  # noqa: A002
        """This machine's Docker client on the other's engine."""
        host = f"unix:///proc/{self._leader}/root/run/docker.sock"
        return _output([str(program("docker")), "--host", host, *args], input=input)

    def write(self, path: str, content: str | bytes, *, mode: int = 0o644) -> None:
        """A file inside."""
        data = content.encode() if isinstance(content, str) else content
        self.run("sh", "-c", f'mkdir -p "$(dirname {path})" && cat >{path} && chmod {mode:o} {path}', input=data)

    def systemctl(self, *args: str, check: bool = True) -> str:
        return self.run("systemctl", "--no-pager", *args, check=check)

    def show(self, name: str, unit: str = "imagejobd.service") -> str:
        """A property of a unit."""
        return self.systemctl("show", "--value", f"--property={name}", unit)

    @property
    def pid(self) -> int:
        """The daemon's, as the machine counts."""
        return int(self.show("MainPID"))

    def kill(self, number: signal.Signals) -> None:
        """Send a signal to the daemon alone."""
        self.run("kill", f"-{number.value}", str(self.pid))

    def configure(self, unit: str = "", config: str = "") -> None:
        """Stop, and start with these lines of `[Service]` in a drop-in, and with this configuration alone."""
        self.write(DROP_IN, f"[Service]\n{unit}\n")
        self.write("/etc/imagejobd/config.toml", config)
        self.systemctl("daemon-reload")
        self.systemctl("stop", *UNITS)
        self.systemctl("start", *UNITS)

    def journal(self, *, since: str = "") -> list[dict[str, Any]]:
        """The daemon's entries, those of systemd about it included, after the cursor `since`."""
        after = [f"--after-cursor={since}"] if since else []
        said = self.run("journalctl", "--unit=imagejobd.service", "--output=json", "--no-pager", "--all", *after)
        return [json.loads(line) for line in said.splitlines()]

    def logged(self, *words: str, since: str = "") -> dict[str, Any]:
        """The first entry of the daemon's that has all these words, once it is there."""

        def found() -> list[dict[str, Any]]:
            return [entry for entry in self.journal(since=since) if all(word in entry["MESSAGE"] for word in words)]

        until(lambda: found() != [], timeout_s=END_TIMEOUT_S, what=f"{words} in the journal")
        return found()[0]

    def cursor(self) -> str:
        """The daemon's last entry. After one of another unit journalctl would pass over the next of ours."""
        said = self.run("journalctl", "--unit=imagejobd.service", "--lines=1", "--show-cursor", "--no-pager")
        return said.rpartition("cursor: ")[2]

    def connection(self, port: int = PORT) -> socket.socket:
        """A new connection within the machine's network."""
        connection = self._socket()
        connection.settimeout(REQUEST_TIMEOUT_S)
        connection.connect(("127.0.0.1", port))
        return connection

    def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        headers: Mapping[str, str] | None = None,
        client: "Client | None" = None,
    ) -> Answer:
        """One request, over a connection of its own where no client is given.

        Raises `OSError` or `HTTPException` where there is no answer.
        """
        if client is None:
            with closing(Client(self)) as client:
                return self.call(method, path, body, headers=headers, client=client)
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        client.request(method, path, data, dict(headers or {}))
        response = client.getresponse()
        said = response.read().decode()
        return Answer(response.status, json.loads(said) if "json" in response.headers["Content-Type"] else said)

    def submit(self, kind: str, client: "Client | None" = None, **spec: Any) -> str:
        """A job that was accepted; its UUID."""
        answer = self.call("POST", "/api/v2/jobs", {"kind": kind, "spec": spec}, client=client)
        assert answer.status == 201, answer.body
        uuid: str = answer.body["id"]
        return uuid

    def build(self, repository: str, *lines: str, **spec: Any) -> str:
        """A build from the base image, pushed to the machine's registry; its job's UUID."""
        dockerfile = "\n".join([f"FROM {BUSYBOX}", *lines, ""])
        return self.submit("build", image=f"{REGISTRY}/{repository}", dockerfile=dockerfile, **spec)

    def job(self, uuid: str) -> dict[str, Any]:
        body: dict[str, Any] = self.call("GET", f"/api/v2/jobs/{uuid}").body
        return body

    def listed(self, **which: str) -> list[dict[str, Any]]:
        """All jobs, or those that the parameters of the listing choose."""
        jobs, cursor = [], ""
        while True:
            query = urllib.parse.urlencode(which | {"limit": "500"} | ({"cursor": cursor} if cursor else {}))
            page = self.call("GET", f"/api/v2/jobs?{query}").body
            jobs += page["jobs"]
            if page["next"] is None:
                return jobs
            cursor = str(page["next"])

    def succeeded(self, *uuids: str) -> list[dict[str, Any]]:
        """The jobs once they have ended; each must have succeeded."""
        jobs = []
        for uuid in uuids:
            jobs.append(self.ended(uuid))
            assert jobs[-1]["state"] == "succeeded", jobs[-1]["error"]
        return jobs

    def ended(self, uuid: str) -> dict[str, Any]:
        """The job once it has ended."""
        until(lambda: self.job(uuid)["finished_at"] is not None, timeout_s=END_TIMEOUT_S, what=f"job {uuid} to end")
        return self.job(uuid)

    def prints(self, uuid: str, text: str) -> None:
        """Wait until the job's log has `text`."""
        log = f"/api/v2/jobs/{uuid}/log"
        until(lambda: text in self.call("GET", log).body, timeout_s=END_TIMEOUT_S, what=f"{text!r} in a log")

    def _socket(self) -> socket.socket:
        """A socket belongs to the network that its thread was in when it was made."""
        with Path("/proc/thread-self/ns/net").open() as ours, Path(f"/proc/{self._leader}/ns/net").open() as theirs:
            _enter(theirs.fileno())
            try:
                return socket.socket()
            finally:
                _enter(ours.fileno())

    def _is_booted(self, manager: socket.socket) -> bool:
        """systemd-nspawn tells the process id of the machine's init, and later that the machine is up."""
        try:
            told = manager.recv(4096).decode()
        except BlockingIOError:
            return False
        if leader := re.search(r"^X_NSPAWN_LEADER_PID=(\d+)$", told, re.MULTILINE):
            self._leader = int(leader[1])
        return "READY=1" in told.splitlines()


class Client(http.client.HTTPConnection):
    """A client in the machine's network. It keeps its connection, and makes another one when an answer has ended it."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(f"127.0.0.1:{PORT}", timeout=REQUEST_TIMEOUT_S)
        self._machine = machine

    def connect(self) -> None:
        self.sock = self._machine.connection()


def readme_commands() -> str:
    """How the README installs the daemon."""
    operations = (SOURCE_ROOT / "README.md").read_text().partition("\n## Install\n")[2]
    return operations.partition("```sh\n")[2].partition("```\n")[0]


def _enter(network: int) -> None:
    if _libc.setns(network, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "cannot enter the network")


def _output(argv: list[str], *, input: bytes | None = None, check: bool = True) -> str:  # noqa: A002
    stdin = subprocess.DEVNULL if input is None else None
    done = subprocess.run(argv, input=input, stdin=stdin, capture_output=True, timeout=COMMAND_TIMEOUT_S, check=False)
    out, err = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    if check and done.returncode != 0:
        raise RuntimeError(f"{' '.join(argv[-3:])} exited with {done.returncode}: {err or out}")
    return out.rstrip("\n")


def _remove_group(group: Path) -> None:
    """With those below it, the lowest first. The kernel may take a moment to see that they are empty."""
    for folder in sorted((path for path in group.glob("**/") if path.is_dir()), reverse=True):
        try:
            folder.rmdir()
        except OSError:
            continue
