"""What the classic builder is sent: the context, and the Dockerfile to build under a name that no context has.

The builder takes the Dockerfile and `.dockerignore` out of the context before it builds where the latter names them
(`removeDockerfile` in moby's builder/remotecontext/detect.go), so the images see neither the name nor the text. Where
the context has a `.dockerignore` of its own, that gets one more line.
"""

import asyncio
import io
import stat
import tarfile
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

from imagejobd.engine.session import Entry
from imagejobd.model.errors import Permanent, invalid

DOCKERFILE = ".imagejobd.Dockerfile"
IGNORE_FILE_MAX_BYTES = 1 << 20

_IGNORE_FILE = ".dockerignore"
_BLOCK_BYTES = 256 * 1024
# Two blocks of zeros end a tar.
_END_BYTES = 1024


async def classic_body(context: Path, entries: Sequence[Entry], dockerfile: str) -> AsyncGenerator[bytes, None]:
    """The tar to send. Raises `Permanent(invalid)` for a context that has files of these names it cannot have."""
    added = await asyncio.to_thread(_members, context, entries, dockerfile)
    left = context.stat().st_size - _END_BYTES
    with context.open("rb", buffering=0) as file:
        while left > 0:
            block = await asyncio.to_thread(file.read, min(_BLOCK_BYTES, left))
            left -= len(block)
            yield block
    # The last of a name is the one that counts.
    yield added


def _members(context: Path, entries: Sequence[Entry], dockerfile: str) -> bytes:
    given = {entry.path: entry for entry in entries}
    if DOCKERFILE.encode() in given:
        raise invalid(f"the context has a file {DOCKERFILE!r}, a name that this service needs; rename it")
    ignored = _ignored(context, given.get(_IGNORE_FILE.encode()))
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in ((DOCKERFILE, dockerfile.encode()), (_IGNORE_FILE, ignored)):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return archive.getvalue()


def _ignored(context: Path, entry: Entry | None) -> bytes:
    if entry is None:
        return f"{_IGNORE_FILE}\n{DOCKERFILE}\n".encode()
    if not stat.S_ISREG(entry.mode) or entry.link or entry.size > IGNORE_FILE_MAX_BYTES:
        raise _bad_ignore_file()
    with context.open("rb") as file:
        file.seek(entry.offset)
        return file.read(entry.size) + f"\n{DOCKERFILE}\n".encode()


def _bad_ignore_file() -> Permanent:
    return invalid(f"{_IGNORE_FILE} of the context is no regular file of at most {IGNORE_FILE_MAX_BYTES} bytes")
