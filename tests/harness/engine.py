"""A Docker Engine of our own: nothing else runs on it, it may be killed, and no trace of it stays.

It has no bridge and touches no firewall rule, so it runs inside a plain container or virtual machine as root. Builds
with RUN steps and containers therefore need `--network=none` (or `host`).
"""

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.process import GOGC, Peer, Process
from harness.services import SEARCH_PATH, program

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 20.0
COMMAND_TIMEOUT_S = 180.0
ANSWER_TIMEOUT_S = 10.0
ROOT_VARIABLE = "IMAGEJOBD_TEST_ROOT"
# overlay2 wants a real disk below it; /tmp is often memory.
DEFAULT_ROOT = "/var/tmp"
# Bytes, and bytes a second. Newer engines take -1 for no limit; 20.10 would clip everything.
STEP_LOG_MAX = str(1 << 30)


class PrivateEngine(Peer):
    """`dockerd` on a unix socket in a temporary folder below `root`.

    Registries on 127.0.0.0/8 may speak plain HTTP. BuildKit's clipping of step logs is switched off, as operators are
    told to do. Restarting and killing keep images; `remove` leaves nothing.
    """

    def __init__(self, root: Path | None = None) -> None:
        parent = root or Path(os.environ.get(ROOT_VARIABLE, DEFAULT_ROOT))
        self.folder = Path(tempfile.mkdtemp(prefix="imagejobd-engine-", dir=parent))
        self.socket = self.folder / "d.sock"
        self._process = Process(
            [str(program("dockerd")), *self._arguments()],
            log_file=self.folder / "dockerd.log",
            env=os.environ
            | {
                "PATH": SEARCH_PATH,
                # What a containerd that is slow to answer is asked to dump before it is killed, say.
                "TMPDIR": str(self.folder),
                "GOGC": GOGC,
                "BUILDKIT_STEP_LOG_MAX_SIZE": STEP_LOG_MAX,
                "BUILDKIT_STEP_LOG_MAX_SPEED": STEP_LOG_MAX,
            },
        )

    @property
    def host(self) -> str:
        """The address as $DOCKER_HOST has it."""
        return f"unix://{self.socket}"

    def start(self) -> None:
        """Start and wait until the API answers, about 2 s."""
        self._process.start(self._answers_ping, timeout_s=START_TIMEOUT_S)

    def remove(self) -> None:
        """SIGTERM and wait, then remove what is left: processes, mounts, the folder."""
        if self._process.is_running:
            self._process.terminate(timeout_s=STOP_TIMEOUT_S)
        self._end_leftover_processes()
        self._unmount_leftovers()
        shutil.rmtree(self.folder, ignore_errors=True)

    def stop(self) -> None:
        """SIGTERM and wait; images stay for the next `start`."""
        self._process.terminate(timeout_s=STOP_TIMEOUT_S)

    def kill(self) -> None:
        """SIGKILL for dockerd and its containerd. Containers keep running, as they do when an engine crashes."""
        containerd = self._containerd_pid()
        self._process.kill()
        if containerd is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(containerd, signal.SIGKILL)
            # Where init does not reap, the corpse keeps its pid, and the next dockerd would wait for it to answer.
            self._containerd_pid_file.unlink(missing_ok=True)

    def restart(self) -> None:
        """As an operator's `systemctl restart docker`: SIGTERM, then up again with the same images."""
        self.stop()
        self.start()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """As an engine that hangs: it takes connections and answers nothing, until the block is left."""
        os.kill(self._process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._process.pid, signal.SIGCONT)

    def docker(self, *args: str, input: bytes | None = None, check: bool = True, buildkit: bool = True) -> str:  # noqa: A002
        """Run the Docker client against this engine; returns its output without the last newline.

        `check=False` returns stdout and stderr of a failing command too instead of raising `RuntimeError`.
        """
        done = subprocess.run(
            [str(program("docker")), *args],
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            check=False,
            timeout=COMMAND_TIMEOUT_S,
            env=self.client_env(buildkit=buildkit),
        )
        out, err = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        if done.returncode == 0:
            return out.rstrip("\n")
        if check:
            raise RuntimeError(f"docker {' '.join(args)} exited with {done.returncode}: {err or out}")
        return (out + err).rstrip("\n")

    def ask(self, path: str) -> Any:
        """What the API answers to a GET, from JSON; takes a tenth of what the Docker client takes."""
        with self._connection() as connection:
            connection.request("GET", path)
            return json.loads(connection.getresponse().read())

    def client_env(self, *, buildkit: bool = True) -> dict[str, str]:
        """The environment that points a Docker client here, with logins kept out of the caller's home."""
        return os.environ | {
            "DOCKER_HOST": self.host,
            "DOCKER_CONFIG": str(self.folder / "client"),
            "DOCKER_BUILDKIT": "1" if buildkit else "0",
        }

    def log_text(self) -> str:
        return self._process.log_text()

    def _arguments(self) -> list[str]:
        folder = self.folder
        return [
            *("-H", f"unix://{folder}/d.sock"),
            *("--data-root", f"{folder}/data"),
            *("--exec-root", f"{folder}/exec"),
            *("--pidfile", f"{folder}/d.pid"),
            "--bridge=none",
            "--iptables=false",
            *("--insecure-registry", "127.0.0.0/8"),
        ]

    def _answers_ping(self) -> bool:
        try:
            with self._connection() as connection:
                connection.request("GET", "/_ping")
                return connection.getresponse().status == http.HTTPStatus.OK
        except OSError:
            return False

    @contextlib.contextmanager
    def _connection(self) -> Iterator[http.client.HTTPConnection]:
        with contextlib.closing(http.client.HTTPConnection("engine")) as connection:
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.settimeout(ANSWER_TIMEOUT_S)
            connection.sock.connect(str(self.socket))
            yield connection

    @property
    def _containerd_pid_file(self) -> Path:
        return self.folder / "exec/containerd/containerd.pid"

    def _containerd_pid(self) -> int | None:
        try:
            return int(self._containerd_pid_file.read_text())
        except (FileNotFoundError, ValueError):
            return None

    def _end_leftover_processes(self) -> None:
        """Kill shims, runc and container processes that outlived a killed dockerd."""
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid() and self._is_ours(entry):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(entry.name), signal.SIGKILL)

    def _is_ours(self, process: Path) -> bool:
        """Whether a program of the engine (by its arguments) or a container on it (by its root file system)."""
        folder = str(self.folder)
        try:
            name = (process / "comm").read_text().strip()
            if name.startswith(("containerd", "runc")):
                return folder in (process / "cmdline").read_text(errors="replace")
            mounts = (process / "mountinfo").read_text(errors="replace").splitlines()
        except OSError:
            return False  # it ended meanwhile
        return any(line.split()[4] == "/" and folder in line for line in mounts)

    def _unmount_leftovers(self) -> None:
        points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for point in sorted((p for p in points if p.startswith(f"{self.folder}/")), key=len, reverse=True):
            subprocess.run(["umount", "--lazy", point], check=False, capture_output=True)
