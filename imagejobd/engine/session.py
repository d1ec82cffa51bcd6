"""A build session: as long as it lasts, BuildKit may read folders of this service, and nothing else.

`POST /session` becomes HTTP/2 with the engine as the client. It asks for a folder by name
(`moby.filesync.v1.FileSync/DiffCopy`), and is sent what fsutil's protocol has: the tree first, then the content of
those files that it wants. Neither logins nor secrets nor sockets are offered here.
"""

import asyncio
import errno
import secrets
import stat
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import BinaryIO, Self

import msgspec

from imagejobd.engine import errors, grpc
from imagejobd.engine.client import Engine
from imagejobd.engine.protobuf import MalformedRecord, as_int, as_text, encoded, fields
from imagejobd.model.entry import Entry
from imagejobd.model.errors import ErrorCode, Fault, invalid

# What is read from the disk, and encoded, at a time: the memory of one transfer.
BLOCK_BYTES = 256 * 1024
# The content of one packet; fsutil itself sends 32 KiB.
DATA_MAX_BYTES = 64 * 1024
# About what a packet takes beside its content: thousands of empty files are no block either.
PACKET_BYTES = 32

_ID_BYTES = 16
_DIFF_COPY = "/moby.filesync.v1.FileSync/DiffCopy"
_HEALTH = "/grpc.health.v1.Health/Check"
_SERVING = b"\x08\x01"
_IGNORE_FILE = ".dockerignore"
# How Docker 28 refuses a name; 26 took it.
_INVALID_UTF8 = "invalid UTF-8"
# fsutil's packets (types/wire.proto): 1 type, 2 stat, 3 id, 4 data.
_STAT, _REQUEST, _DATA, _FIN, _ERROR = range(5)
# Go's os.FileMode, where it differs from stat(2).
_GO_BITS = {stat.S_ISUID: 1 << 23, stat.S_ISGID: 1 << 22, stat.S_ISVTX: 1 << 20}
_GO_KINDS = {stat.S_IFDIR: 1 << 31, stat.S_IFLNK: 1 << 27}


class Folder(msgspec.Struct, frozen=True):
    """What BuildKit may read under one name; `content` holds the bytes of all files, at the entries' offsets.

    `entries` are in the order of a walk: siblings by their bytes, a directory right before what is in it.
    """

    entries: Sequence[Entry]
    content: Path | bytes

    @classmethod
    def of_file(cls, name: str, content: bytes) -> Self:
        """The folder of one file."""
        return cls((Entry(name.encode(), size=len(content)),), content)

    def open(self) -> BinaryIO:
        return BytesIO(self.content) if isinstance(self.content, bytes) else self.content.open("rb", buffering=0)


# BuildKit asks first what to ignore of a folder: nothing, for what is ignored is not among its entries. It repeats the
# answer in the request for the folder, which would else be the same, and not made, where a Dockerfile copies only the
# user's `.dockerignore`.
_NOTHING_IGNORED = Folder.of_file(_IGNORE_FILE, b"imagejobd.invalid\n")


@asynccontextmanager
async def session(engine: Engine, folders: Mapping[str, Folder]) -> AsyncIterator[str]:
    """The id of a session that lasts as long as the block, for `/build` with `remote=client-session`.

    A fault of the block that comes of the session's end is `Temporary(engine_unavailable)`. Raises also OSError of the
    disk under a folder.
    """
    session_id = secrets.token_hex(_ID_BYTES)
    headers = {
        "X-Docker-Expose-Session-Uuid": session_id,
        "X-Docker-Expose-Session-Name": "imagejobd",
        # BuildKit keeps the files of a folder for further sessions of the same key, where size and mtime are the same.
        "X-Docker-Expose-Session-Sharedkey": secrets.token_hex(_ID_BYTES),
        "X-Docker-Expose-Session-Grpc-Method": _DIFF_COPY,
    }
    async with engine.upgrade("session", "h2c", headers=headers, timeout_s=None) as connection:
        files = _FileSync(folders)
        server = grpc.Server(connection, {_DIFF_COPY: files.diff_copy, _HEALTH: _answer_health})
        serving = asyncio.create_task(server.serve())
        try:
            yield session_id
        except Fault as fault:
            if files.fault is not None:
                raise files.fault from fault
            if _INVALID_UTF8 in fault.message and (name := _undecodable_name(folders)) is not None:
                why = f"the context has the name {name}, which is not UTF-8: this engine's BuildKit takes none such"
                raise invalid(why) from fault
            if fault.code is not ErrorCode.ENGINE_UNAVAILABLE and not await server.is_alive():
                raise errors.unavailable(engine.host, "it closed the build's session") from fault
            raise
        finally:
            serving.cancel()
            await asyncio.wait([serving])


def _undecodable_name(folders: Mapping[str, Folder]) -> str | None:
    """The first name or link that is not UTF-8, in printable characters."""
    for entry in chain.from_iterable(folder.entries for folder in folders.values()):
        for name in (entry.path, entry.link):
            try:
                name.decode()
            except UnicodeDecodeError:
                return ascii(name.decode(errors="backslashreplace"))
    return None


async def _answer_health(call: grpc.Call) -> None:
    await call.wait()
    await call.send(grpc.message(_SERVING))


class _FileSync:
    """The folders of one session. `fault` is what went wrong on the disk below them."""

    def __init__(self, folders: Mapping[str, Folder]) -> None:
        self._folders = folders
        self.fault: OSError | None = None

    async def diff_copy(self, call: grpc.Call) -> None:
        name = call.metadata.get("dir-name", [""])[0]
        folder = self._folders.get(name)
        if folder is None:
            raise grpc.StatusError(grpc.NOT_FOUND, f"there is no folder {name}")
        if call.metadata.get("followpaths") == [_IGNORE_FILE] and "exclude-patterns" not in call.metadata:
            folder = _NOTHING_IGNORED
        try:
            await _Transfer(call, folder).run()
        except grpc.StatusError as error:
            if isinstance(error.__cause__, OSError):
                self.fault = error.__cause__
            raise
        except MalformedRecord as error:
            raise grpc.StatusError(grpc.INTERNAL, str(error)) from error


class _Transfer:
    """One folder that is being sent to BuildKit."""

    def __init__(self, call: grpc.Call, folder: Folder) -> None:
        self._call = call
        self._folder = folder
        self._tree = _tree_packets(folder.entries)
        self._is_tree_sent = False
        self._requests: deque[int] = deque()
        self._sent_bytes = 0

    async def run(self) -> None:
        while not self._read_requests():
            if self._is_tree_sent and not self._requests:
                await self._call.wait()
                continue
            # Read and encoded in a thread: of files that are asked for, else of the tree.
            packets = self._content_packets() if self._requests else self._next_tree_packets()
            try:
                block = await asyncio.to_thread(b"".join, packets)
            except OSError as error:
                raise grpc.StatusError(grpc.INTERNAL, "the folder cannot be read") from error
            await self._call.send(block)
        await self._call.send(grpc.message(encoded(1, _FIN)))

    def _read_requests(self) -> bool:
        """Read what has arrived; True once BuildKit has all it wants."""
        for message in self._call.take():
            packet = dict(fields(message))
            kind, number = as_int(packet.get(1, 0)), as_int(packet.get(3, 0))
            if kind == _FIN:
                return True
            if kind == _ERROR:
                raise grpc.StatusError(grpc.CANCELLED, f"BuildKit gave up: {as_text(packet.get(4, b''))}")
            entries = self._folder.entries
            if kind != _REQUEST or number >= len(entries) or not stat.S_ISREG(entries[number].mode):
                raise MalformedRecord(f"packet {kind} for entry {number} is no request for a file")
            self._requests.append(number)
        return False

    def _next_tree_packets(self) -> Iterator[bytes]:
        room = BLOCK_BYTES
        for packet in self._tree:
            yield packet
            room -= len(packet)
            if room <= 0:
                return
        self._is_tree_sent = True

    def _content_packets(self) -> Iterator[bytes]:
        room = BLOCK_BYTES
        with self._folder.open() as file:
            while room > 0 and self._requests:
                number = self._requests[0]
                entry = self._folder.entries[number]
                size = min(DATA_MAX_BYTES, entry.size - self._sent_bytes)
                if size:
                    offset = entry.offset + self._sent_bytes
                    file.seek(offset)
                    if len(content := file.read(size)) < size:
                        raise OSError(errno.EIO, f"the folder's content ends within the {size} bytes at {offset}")
                    yield grpc.message(encoded(1, _DATA) + encoded(3, number) + encoded(4, content))
                    self._sent_bytes += size
                if self._sent_bytes == entry.size:
                    # Data without content ends the file.
                    yield grpc.message(encoded(1, _DATA) + encoded(3, number))
                    self._requests.popleft()
                    self._sent_bytes = 0
                room -= size + PACKET_BYTES


def _tree_packets(entries: Iterable[Entry]) -> Iterator[bytes]:
    for entry in entries:
        bits = sum(go_bit for bit, go_bit in _GO_BITS.items() if entry.mode & bit)
        content = (
            encoded(1, entry.path)
            + encoded(2, entry.mode & 0o777 | bits | _GO_KINDS.get(stat.S_IFMT(entry.mode), 0))
            + encoded(5, entry.size)
            + encoded(6, entry.mtime * 1_000_000_000)
            + (encoded(7, entry.link) if entry.link else b"")
        )
        yield grpc.message(encoded(2, content))
    # The tree ends with an empty message.
    yield grpc.message(b"")
