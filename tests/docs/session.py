"""Runs the command lines of documentation pages as printed, one shell for all of them: `python session.py PAGE...`.

It has network and mounts of its own (`unshare --net --mount`), so that the ports and folders of the pages are free. A
README finds nothing but a Docker Engine. Other pages find what they say they need: the daemon, two registries, a base
image, and a web server with a context. Prints what became of each block as JSON.
"""

import contextlib
import fcntl
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from harness.base_image import load_busybox
from harness.engine import PrivateEngine

SOURCE_ROOT = Path(__file__).parents[2]
FOLDER = Path("/tmp/imagejobd")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# The block of commands there is run on a machine with systemd: tests/systemd.
INSTALL = re.compile(r"^## Install\n.*?(?=^## )", re.MULTILINE | re.DOTALL)
TIMEOUT_S = 240
READY_TIMEOUT_S = 30
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1
# RUN steps have no network to use here.
CONFIG = f"""[server]
state_dir = "{FOLDER}/state"
[engine]
network = "none"
"""
RESTART = """
restart_daemon() {
  if [ -n "${DAEMON:-}" ]; then kill $DAEMON; wait $DAEMON || true; fi
  imagejobd serve --config config.toml >> daemon.log 2>&1 &
  DAEMON=$!
  curl -s --retry 60 --retry-all-errors --retry-delay 1 http://127.0.0.1:8080/readyz > /dev/null
}
restart_daemon
"""


def main(pages: list[str]) -> int:
    raise_loopback()
    FOLDER.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", str(FOLDER)], check=True)
    blocks = [block for page in pages for block in blocks_of(SOURCE_ROOT / page)]
    with ExitStack() as stack:
        engine = stack.enter_context(PrivateEngine())
        path = os.pathsep.join([str(SOURCE_ROOT / ".venv" / "bin"), "/usr/sbin", os.environ["PATH"]])
        env = os.environ | {"DOCKER_HOST": engine.host, "PATH": path}
        if pages == ["README.md"]:
            status, printed = run(blocks, env, cwd=SOURCE_ROOT)
        else:
            load_busybox(engine, "busybox")
            stack.enter_context(peers(env))
            (FOLDER / "config.toml").write_text(CONFIG)
            status, printed = run([(RESTART, "", ""), *blocks], env, cwd=FOLDER)
            blocks = [(RESTART, "", ""), *blocks]
    json.dump(
        {"status": status, "blocks": [(*block, out) for block, out in zip(blocks, printed, strict=False)]}, sys.stdout
    )
    return 0


def blocks_of(page: Path) -> list[tuple[str, str, str]]:
    """Of each block of commands: itself, the language of the block of output that follows it, and that output."""
    found = BLOCK.findall(INSTALL.sub("", page.read_text()))
    following = [*found[1:], ("sh", "")]
    return [
        (text, after if after != "sh" else "-", output if after != "sh" else "")
        for (language, text), (after, output) in zip(found, following, strict=True)
        if language == "sh"
    ]


def run(blocks: list[tuple[str, str, str]], env: dict[str, str], *, cwd: Path) -> tuple[int, list[str]]:
    """The exit status of the shell, and what each block printed, as far as it came. The last one has its errors too."""
    with tempfile.TemporaryDirectory(prefix="imagejobd-docs-") as folder:
        script = ["set -eo pipefail"]
        for number, (text, _, _) in enumerate(blocks):
            (Path(folder) / f"{number}.sh").write_text(text)
            script.append(f". {folder}/{number}.sh > {folder}/{number}.out 2>> {folder}/errors")
        shell = subprocess.Popen(
            ["bash", "-c", "\n".join(script)], env=env, cwd=cwd, stdin=subprocess.DEVNULL, start_new_session=True
        )
        try:
            status = shell.wait(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            status = -1
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGTERM)
        outputs = [path.read_text() for n in range(len(blocks)) if (path := Path(folder) / f"{n}.out").exists()]
        if status != 0:
            outputs[-1] += (Path(folder) / "errors").read_text()
        time.sleep(1)  # for what runs in the background to end, before the engine goes
        return status, outputs


@contextmanager
def peers(env: dict[str, str]) -> Iterator[None]:
    """Two registries, on ports 5000 and 5001, and a web server on port 8000 with `app.tar.gz`."""
    processes = []
    try:
        for port in (5000, 5001):
            config = FOLDER / f"registry-{port}.yml"
            config.write_text(
                f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {FOLDER}/registry-{port}}}}}\n"
                f"http: {{addr: '127.0.0.1:{port}'}}\n"
            )
            processes.append(
                subprocess.Popen(
                    ["docker-registry", "serve", str(config)],
                    env=env,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            )
        web = FOLDER / "web"
        web.mkdir()
        (web / "Dockerfile").write_text("FROM busybox\n")
        subprocess.run(["tar", "czf", "app.tar.gz", "Dockerfile"], cwd=web, check=True)
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "http.server", "8000", "--bind", "127.0.0.1"],
                cwd=web,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )
        for url in ("http://127.0.0.1:5000/v2/", "http://127.0.0.1:5001/v2/", "http://127.0.0.1:8000/"):
            wait_for(url)
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def wait_for(url: str) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while True:
        try:
            urllib.request.urlopen(url, timeout=READY_TIMEOUT_S).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


def raise_loopback() -> None:
    """As `ip link set lo up` does, which not every machine has."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        request = bytearray(struct.pack("16sH22x", b"lo", 0))
        fcntl.ioctl(udp, SIOCGIFFLAGS, request)
        flags = struct.unpack_from("H", request, 16)[0]
        struct.pack_into("H", request, 16, flags | IFF_UP)
        fcntl.ioctl(udp, SIOCSIFFLAGS, request)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
