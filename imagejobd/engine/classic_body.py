"""What the classic builder is sent: the context, and the Dockerfile to build under a name that no context has.

The builder takes the Dockerfile and `.dockerignore` out of the context before it builds where the latter names them
(`removeDockerfile` in moby's builder/remotecontext/detect.go), so the images see neither the name nor the text. Where
the context has a `.dockerignore` of its own, that gets one more line.
"""

import asyncio
import io
import stat
import tarfile
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path

from imagejobd.engine.session import Entry
from imagejobd.model.errors import invalid

DOCKERFILE = ".imagejobd.Dockerfile"
IGNORE_FILE_MAX_BYTES = 1 << 20

_IGNORE_FILE = ".dockerignore"
_BLOCK_BYTES = 256 * 1024
# Two blocks of zeros end a tar.
_END_BYTES = 1024


async def classic_body(context: Path, entries: Sequence[Entry], dockerfile: str) -> AsyncGenerator[bytes, None]:
    """The tar to send. Raises `Permanent(invalid)` for a context that has files of these names it cannot have.

    Before it sends: a fault of the body would be told as the connection's.
    """
    return _blocks(context, await asyncio.to_thread(_members, context, entries, dockerfile))


async def _blocks(context: Path, added: bytes) -> AsyncGenerator[bytes, None]:
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
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
        _add(tar, tarfile.TarInfo(DOCKERFILE), dockerfile.encode())
        _add(tar, *_ignore_file(context, given))
    return archive.getvalue()


def _add(tar: tarfile.TarFile, member: tarfile.TarInfo, content: bytes) -> None:
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _ignore_file(context: Path, given: Mapping[bytes, Entry]) -> tuple[tarfile.TarInfo, bytes]:
    """The user's own, with the same mode and time and one line more, or one that has itself removed too."""
    member = tarfile.TarInfo(_IGNORE_FILE)
    entry = given.get(_IGNORE_FILE.encode())
    if entry is None:
        return member, f"{_IGNORE_FILE}\n{DOCKERFILE}\n".encode()
    data = given[entry.link] if entry.link and stat.S_ISREG(entry.mode) else entry
    if not stat.S_ISREG(data.mode) or data.size > IGNORE_FILE_MAX_BYTES:
        raise invalid(f"{_IGNORE_FILE} of the context is no regular file of at most {IGNORE_FILE_MAX_BYTES} bytes")
    member.mode, member.mtime = stat.S_IMODE(entry.mode), entry.mtime
    with context.open("rb") as file:
        file.seek(data.offset)
        return member, file.read(data.size) + f"\n{DOCKERFILE}\n".encode()
