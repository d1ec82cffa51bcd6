"""What a container wrote, read as if by an enemy, which it may be: its output, and one small file that it left.

Output comes as frames of an 8-byte header and a payload, in one raw stream. The header is the number of the stream
(1 out, 2 err), three zeros and the payload's size, big-endian. Frames and characters are cut anywhere by the blocks
they arrive in; nothing is held back for them but the header and a character.

Of a file the engine says what kind of thing it is in a header, before the first byte of the archive; only a regular
file of a fair size is read on. Nothing is ever extracted to this machine.
"""

import asyncio
import base64
import codecs
import io
import re
import tarfile
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from itertools import groupby
from operator import attrgetter
from typing import Any
from urllib.parse import quote

import aiohttp
import msgspec

from imagejobd.engine import errors
from imagejobd.engine.client import Engine
from imagejobd.model.errors import ErrorCode, Fault, NotFound, Permanent, Temporary

# What a container wrote is with us soon after its end, unless the stream stalls.
DRAIN_TIMEOUT_S = 2.0

_HEADER_BYTES = 8
_STDERR = 2

_STAT_HEADER = "X-Docker-Container-Path-Stat"
# Headers and padding of the tar around the file.
_TAR_ROOM_BYTES = 64 * 1024
_LINK_TARGET_MAX_CHARS = 200
_NO_CONTAINER = "No such container"
# What the engine answers, with 500, to a path whose symbolic link it cannot follow.
_BAD_LINK = re.compile(r"too many links|not a directory|file name too long", re.IGNORECASE)
# … and, since its fixes of 2026, to any path in a container with an absolute link at the place of a mount.
_LINK_AT_MOUNT = "path escapes from parent"
# Go's os.FileMode, as the engine sends it: the bits of a file's kind, of which a regular file has none.
_KINDS = {
    1 << 27: "a symbolic link",
    1 << 31: "a directory",
    1 << 25: "a FIFO",
    1 << 24: "a socket",
    1 << 26: "a device",
    1 << 19: "no file of a known kind",
}


class Output(msgspec.Struct, frozen=True):
    """A piece of what the container wrote, as text; `is_stderr` tells the streams apart."""

    text: str
    is_stderr: bool


class LinkAtMount(Permanent):
    """The engine looks into no such container: a volume is mounted where the image has a symbolic link."""

    def __init__(self) -> None:
        why = "the image has a symbolic link where /data or one of its VOLUMEs is mounted, and the Docker Engine does"
        super().__init__(ErrorCode.RUN_FAILED, f"{why} not read such a container")


class _Stat(msgspec.Struct, frozen=True):
    size: int
    mode: int
    link_target: str = msgspec.field(name="linkTarget", default="")


class Demultiplexer:
    """Splits one attached stream. Bytes that are no UTF-8 become replacement characters."""

    def __init__(self, *, max_bytes: int) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")
        self._decoders = {False: decoder("replace"), True: decoder("replace")}
        self._room_bytes = max_bytes
        self._header = b""
        self._payload_bytes = 0
        self._is_stderr = False

    @property
    def is_full(self) -> bool:
        """Whether more was written than `max_bytes`; the rest was left out."""
        return self._room_bytes < 0

    def feed(self, block: bytes) -> Iterator[Output]:
        """The text that this block completes, up to the bound; neighbours of one stream are joined."""
        for is_stderr, pieces in groupby(self._pieces(block), key=attrgetter("is_stderr")):
            yield Output("".join(piece.text for piece in pieces), is_stderr)

    def finish(self) -> Iterator[Output]:
        """The beginning of a character that the container did not end."""
        for is_stderr, decoder in self._decoders.items():
            if text := decoder.decode(b"", final=True):
                yield Output(text, is_stderr)

    def _pieces(self, block: bytes) -> Iterator[Output]:
        view = memoryview(block)
        while view and not self.is_full:
            if self._payload_bytes:
                payload, view = view[: self._payload_bytes], view[self._payload_bytes :]
                self._payload_bytes -= len(payload)
                text = self._decoders[self._is_stderr].decode(bytes(payload[: self._room_bytes]))
                self._room_bytes -= len(payload)
                if text:
                    yield Output(text, self._is_stderr)
                continue
            missing = _HEADER_BYTES - len(self._header)
            self._header += bytes(view[:missing])
            view = view[missing:]
            if len(self._header) == _HEADER_BYTES:
                self._is_stderr = self._header[0] == _STDERR
                self._payload_bytes = int.from_bytes(self._header[4:], "big")
                self._header = b""


async def attached_output(
    blocks: AsyncIterator[bytes], ending: asyncio.Task[Any], output: Demultiplexer
) -> AsyncGenerator[Output, None]:
    """The attached output, until it ends or is over its bound; one that stalls or breaks ends with the container."""
    while block := await _next_block(blocks, ending):
        for piece in output.feed(block):
            yield piece
        if output.is_full:
            return
    for piece in output.finish():
        yield piece


async def read_file(
    engine: Engine, container: str, path: str, *, max_bytes: int, place: str | None = None
) -> bytes | None:
    """The regular file at `path`; None when there is no such name. The last part of the path is never followed.

    `place` is where it is in this container, if not at the `path` that messages name. Raises
    `Permanent(result_invalid)` for anything else of that name and for a file over `max_bytes`, `LinkAtMount`, and
    `Temporary(conflict)` when there is no such container.
    """
    archive = engine.exchange(
        "GET",
        f"containers/{quote(container, safe='')}/archive",
        params=[("path", place or path)],
        judge=_judge_of(path),
        idle_timeout_s=engine.settings.request_timeout_s,
    )
    raw = bytearray()
    try:
        async with archive as reply:
            _check_stat(path, reply.headers.get(_STAT_HEADER, ""), max_bytes)
            async for block in reply.blocks:
                raw += block
                if len(raw) > max_bytes + _TAR_ROOM_BYTES:
                    raise _invalid(f"{path} takes more than {max_bytes} bytes; at most so many are read")
    except NotFound as fault:
        if _NO_CONTAINER in fault.message:
            raise removed_meanwhile(fault) from fault
        return None
    except Temporary as fault:
        # The target of a link comes in a header, and one of control characters makes it larger than aiohttp takes.
        if isinstance(fault.__cause__, aiohttp.ClientResponseError):
            raise _bad_link(path) from fault
        raise
    return _first_file(bytes(raw), path, max_bytes)


def removed_meanwhile(fault: Fault) -> Temporary:
    """Somebody else cleaned up in the engine; the job may make its container again."""
    return Temporary(ErrorCode.CONFLICT, f"the container was removed meanwhile: {fault.message}")


async def _next_block(blocks: AsyncIterator[bytes], ending: asyncio.Task[Any]) -> bytes:
    """Empty when there is none any more."""

    async def read() -> bytes:
        try:
            return await anext(blocks, b"")
        except errors.BROKEN:
            return b""

    reading = asyncio.create_task(read())
    try:
        await asyncio.wait({reading, ending}, return_when=asyncio.FIRST_COMPLETED)
        if not reading.done():
            await asyncio.wait({reading}, timeout=DRAIN_TIMEOUT_S)
        return reading.result() if reading.done() else b""
    finally:
        reading.cancel()


def _judge_of(path: str) -> errors.Judge:
    def judge(status: int, message: str) -> Fault:
        if _LINK_AT_MOUNT in message:
            return LinkAtMount()
        return _bad_link(path) if _BAD_LINK.search(message) else errors.of_engine(status, message)

    return judge


def _bad_link(path: str) -> Permanent:
    return _invalid(f"{path} is a symbolic link that leads nowhere; write a regular file")


def _check_stat(path: str, header: str, max_bytes: int) -> None:
    try:
        stat = msgspec.json.decode(base64.b64decode(header), type=_Stat)
    except (ValueError, *errors.UNDECODABLE) as error:
        raise errors.ended_early(f"{_STAT_HEADER} is not what an engine says ({error})") from error
    for bit, kind in _KINDS.items():
        if stat.mode & bit:
            target = f" (to {stat.link_target[:_LINK_TARGET_MAX_CHARS]})" if stat.link_target else ""
            raise _invalid(f"{path} is {kind}{target}; write a regular file")
    if stat.size > max_bytes:
        raise _invalid(f"{path} has {stat.size} bytes; at most {max_bytes} are read")


def _first_file(raw: bytes, path: str, max_bytes: int) -> bytes:
    try:
        with tarfile.open(fileobj=io.BytesIO(raw), mode="r:") as archive:
            member = archive.next()
            is_it = member is not None and member.isreg() and member.name == path.rpartition("/")[2]
            # Asked again: what the header said of it was another answer than the archive itself.
            if member is None or not is_it or member.size > max_bytes:
                raise _invalid(f"{path} is not the regular file of at most {max_bytes} bytes that it was said to be")
            content = archive.extractfile(member)
            data = content.read() if content else b""
    except (tarfile.TarError, ValueError, EOFError, OSError) as error:
        raise errors.ended_early(f"{path} came in an archive that cannot be read ({error})") from error
    if len(data) != member.size:
        raise errors.ended_early(f"{path} came with {len(data)} of its {member.size} bytes")
    return data


def _invalid(message: str) -> Permanent:
    return Permanent(ErrorCode.RESULT_INVALID, message)
