"""Reading a result out of an ended container that does its worst: in a real engine, and from one that lies."""

import base64
import io
import json
import re
import tarfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web
from builds import fake_engine
from sandboxes import run, sandboxed

from harness.engine import PrivateEngine
from imagejobd.engine.client import Engine
from imagejobd.engine.output import read_file
from imagejobd.model.errors import ErrorCode, Permanent, Temporary

MAX_BYTES = 1000

FILES = {
    "small": ("printf x >small", b"x"),
    "empty": (": >empty", b""),
    "hard": ("printf x >other; ln other hard", b"x"),
    "unreadable": ("printf x >unreadable; chmod 000 unreadable", b"x"),
    "largest": (f"head -c {MAX_BYTES} /dev/zero >largest", bytes(MAX_BYTES)),
    "a b": ("printf x >'a b'", b"x"),
    "a&path=%2e?#+": ("printf x >'a&path=%2e?#+'", b"x"),
    "grüße": ("printf x >grüße", b"x"),
    "-": ("printf x >./-", b"x"),
    "SMALL": ("true", None),
    "absent": ("true", None),
}
OTHERS = {
    "link": ("ln -s /etc/passwd link", r"is a symbolic link \(to /etc/passwd\); write a regular file"),
    "beside": ("ln -s small beside", r"is a symbolic link \(to /data/small\); write a regular file"),
    "loop": ("ln -s /data/loop loop", "is a symbolic link that leads nowhere; write a regular file"),
    "through": ("ln -s /etc/passwd/x through", "is a symbolic link that leads nowhere; write a regular file"),
    # The engine tells a link's target in a header, each of these characters as six.
    "control": (r"ln -s /$(yes | head -n 4000 | tr '\n' '\001' | tr -d y) control", "is a symbolic link that leads"),
    "folder": ("mkdir folder", "is a directory; write a regular file"),
    "fifo": ("mkfifo fifo", "is a FIFO; write a regular file"),
    "large": (f"head -c {MAX_BYTES + 1} /dev/zero >large", "has 1001 bytes; at most 1000 are read"),
    "sparse": ("truncate -s 1G sparse", "has 1073741824 bytes; at most 1000 are read"),
    ".": ("true", "is a directory; write a regular file"),
    "..": ("true", "is a directory; write a regular file"),
}


def doing(scripts: list[str]) -> str:
    """A Dockerfile whose container does all this in /data."""
    return "WORKDIR /data\nCMD " + " && ".join(scripts) + "\n"


async def test_regular_files_are_read(client: Engine, engine: PrivateEngine) -> None:
    """Their bytes as they are, under any name, or None where there is no such name."""
    text = doing([script for script, _ in FILES.values()])
    async with sandboxed(client, engine, text) as sandbox:
        assert (await run(sandbox)).exit.code == 0
        for name, (_, content) in FILES.items():
            assert await sandbox.read_data(name, max_bytes=MAX_BYTES) == content, name


async def test_anything_else_is_refused_by_its_kind(client: Engine, engine: PrivateEngine) -> None:
    """The fault says what stands there; nothing of it is followed or read."""
    text = doing([script for script, _ in OTHERS.values()])
    async with sandboxed(client, engine, text, file_max_bytes=2 << 30) as sandbox:
        assert (await run(sandbox)).exit.code == 0
        for name, (_, message) in OTHERS.items():
            with pytest.raises(Permanent, match=f"^/data/{re.escape(name)} {message}") as caught:
                await sandbox.read_data(name, max_bytes=MAX_BYTES)
            assert caught.value.code is ErrorCode.RESULT_INVALID


async def test_a_container_that_was_removed_is_no_absent_file(client: Engine, engine: PrivateEngine) -> None:
    """Somebody who cleans up in between makes the job run again, not fail."""
    async with sandboxed(client, engine, "CMD true\n") as sandbox:
        await run(sandbox)
        engine.docker("rm", "--force", *engine.docker("ps", "--all", "--quiet").split())
        with pytest.raises(Temporary, match="removed meanwhile"):
            await sandbox.read_data("small", max_bytes=MAX_BYTES)


Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def telling(stat: object, body: bytes) -> Answer:
    """An engine that says `stat` of every path, a text as it is, and sends `body` as its archive."""
    header = stat if isinstance(stat, str) else base64.b64encode(json.dumps(stat).encode()).decode()

    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=body, headers={"X-Docker-Container-Path-Stat": header})

    return answer


def archive(data: bytes = b"x", name: str = "perf.json", **fields: object) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        for field, value in fields.items():
            setattr(member, field, value)
        tar.addfile(member, io.BytesIO(data) if member.isreg() else None)
    return raw.getvalue()


SMALL = {"name": "perf.json", "size": 1, "mode": 0o644, "linkTarget": ""}


@pytest.mark.parametrize(
    ("stat", "body", "message"),
    [
        (SMALL | {"mode": 1 << 24 | 0o644}, archive(), "is a socket"),
        (SMALL | {"mode": 1 << 26 | 1 << 21 | 0o644}, archive(), "is a device"),
        (SMALL | {"mode": 1 << 19}, archive(), "is no file of a known kind"),
        (SMALL, archive(type=tarfile.SYMTYPE, linkname="/etc/shadow"), "is not the regular file"),
        (SMALL, archive(type=tarfile.LNKTYPE, linkname="/etc/shadow"), "is not the regular file"),
        (SMALL, archive(name="other"), "is not the regular file"),
        (SMALL, archive(b"x" * 1001), "is not the regular file"),
        (SMALL, archive(b"x" * 100_000), "takes more than 1000 bytes"),
        (SMALL, bytes(1024), "is not the regular file"),
    ],
)
async def test_what_header_or_archive_betray_is_refused(
    tmp_path: Path, stat: object, body: bytes, message: str
) -> None:
    """The archive is looked at again, whatever the header said, and never read beyond its bound."""
    async with fake_engine(tmp_path, telling(stat, body)) as engine:
        with pytest.raises(Permanent, match=f"^/data/perf.json {message}") as caught:
            await read_file(engine, "c", "/data/perf.json", max_bytes=MAX_BYTES)
    assert caught.value.code is ErrorCode.RESULT_INVALID


@pytest.mark.parametrize(
    ("stat", "body"),
    [
        (["no stat"], archive()),
        ("no base64", archive()),
        ("grüße", archive()),
        ({"size": "1"}, archive()),
        (SMALL, b"x" * 512),
        (SMALL, archive()[:512]),
        (SMALL, b""),
    ],
    ids=["list", "text", "no-ascii", "size", "no-tar", "header-only", "empty"],
)
async def test_an_answer_that_is_cut_or_garbled_is_temporary(tmp_path: Path, stat: object, body: bytes) -> None:
    """That is the engine's trouble, not the user's result."""
    async with fake_engine(tmp_path, telling(stat, body)) as engine:
        with pytest.raises(Temporary) as caught:
            await read_file(engine, "c", "/data/perf.json", max_bytes=MAX_BYTES)
    assert caught.value.code is ErrorCode.ENGINE_UNAVAILABLE
