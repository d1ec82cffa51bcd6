"""Build sessions with a peer that speaks HTTP/2 by hand: what real engines do seldom, or never."""

import asyncio
import json
import stat
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest
from builds import open_files, until
from h2.connection import H2Connection
from h2.events import DataReceived, Event, RemoteSettingsChanged, ResponseReceived, StreamReset, TrailersReceived
from h2.settings import SettingCodes

from imagejobd.engine import grpc
from imagejobd.engine.client import Engine, Upgraded
from imagejobd.engine.protobuf import encoded, fields
from imagejobd.engine.session import BLOCK_BYTES, Folder, session
from imagejobd.engine.settings import EngineSettings
from imagejobd.model.entry import Entry
from imagejobd.model.errors import ErrorCode, Permanent, Temporary

DIFF_COPY = "/moby.filesync.v1.FileSync/DiffCopy"
WINDOW_BYTES = 65535
STAT, REQUEST, DATA, FIN, ERROR = range(5)
DEADLINE_S = 20


class BuildKit:
    """The engine's end of a session."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.h2 = H2Connection()
        self.headers: dict[int, dict[str, str]] = defaultdict(dict)
        self.received: dict[int, bytearray] = defaultdict(bytearray)
        self.resets: set[int] = set()
        self.has_settings = False
        self._reader, self._writer = reader, writer

    def start(self) -> None:
        self.h2.initiate_connection()
        self.flush()

    def flush(self) -> None:
        self.write(self.h2.data_to_send())

    def write(self, data: bytes) -> None:
        self._writer.write(data)

    def call(self, path: str, *messages: bytes, **metadata: str) -> int:
        stream = self.h2.get_next_available_stream_id()
        extra = [(name.replace("_", "-"), value) for name, value in metadata.items()]
        self.h2.send_headers(
            stream, [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "localhost"), *extra]
        )
        for message in messages:
            self.send(stream, message)
        self.flush()
        return stream

    def send(self, stream: int, message: bytes) -> None:
        self.h2.send_data(stream, b"\0" + len(message).to_bytes(4) + message)
        self.flush()

    def messages(self, stream: int) -> list[bytes]:
        """The whole messages that have come."""
        messages, rest = [], bytes(self.received[stream])
        while len(rest) >= 5 and len(rest) >= 5 + (size := int.from_bytes(rest[1:5])):
            messages.append(rest[5 : 5 + size])
            rest = rest[5 + size :]
        return messages

    async def until(self, is_reached: Callable[[], bool], *, takes: bool = True) -> None:
        """Read until it is so; `takes` gives room for as much as came."""
        async with asyncio.timeout(DEADLINE_S):
            while not is_reached():
                block = await self._reader.read(1 << 16)
                assert block, "the session was closed"
                for event in self.h2.receive_data(block):
                    self._note(event, takes=takes)
                self.flush()

    async def status(self, stream: int) -> str:
        await self.until(lambda: "grpc-status" in self.headers[stream])
        return self.headers[stream]["grpc-status"]

    async def closed(self) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while await self._reader.read(1 << 16):
                pass

    def is_stuck(self) -> bool:
        """Whether so much waits here that no more is read from the socket."""
        return not cast(asyncio.Transport, self._writer.transport).is_reading()

    def close(self) -> None:
        self._writer.close()

    def _note(self, event: Event, *, takes: bool) -> None:
        match event:
            case ResponseReceived() | TrailersReceived():
                self.headers[event.stream_id] |= {bytes(n).decode(): bytes(v).decode() for n, v in event.headers}
            case DataReceived():
                self.received[event.stream_id] += event.data
                if takes:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case StreamReset():
                self.resets.add(event.stream_id)
            case RemoteSettingsChanged():
                self.has_settings = True


@asynccontextmanager
async def opened(
    folder: Path, entries: Sequence[Entry] = (), content: Path | bytes = b"", *, is_read: bool = True
) -> AsyncIterator[tuple[BuildKit, dict[str, str]]]:
    """A session with one folder named `context`, and the peer of it with the headers that it was opened with."""
    peers: asyncio.Queue[tuple[BuildKit, dict[str, str]]] = asyncio.Queue()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        if " /version " in lines[0]:
            body = json.dumps({"Version": "99.0", "ApiVersion": "1.41", "MinAPIVersion": "1.12"})
            head = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: application/json"
            writer.write(f"{head}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
            writer.close()
            return
        assert lines[0].endswith("/session HTTP/1.1")
        writer.write(b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
        peer = BuildKit(reader, writer)
        peer.start()
        headers = dict(line.split(": ", 1) for line in lines[1:] if line)
        peers.put_nowait((peer, {name.lower(): value for name, value in headers.items()}))

    socket = folder / "engine.sock"
    async with await asyncio.start_unix_server(accept, socket):
        settings = EngineSettings(host=f"unix://{socket}")
        folders = {"context": Folder(entries, content)}
        async with Engine(settings) as engine, session(engine, folders) as session_id:
            peer, headers = await peers.get()
            assert headers["x-docker-expose-session-uuid"] == session_id
            yield peer, headers
        if is_read:
            await peer.closed()
            peer.close()


def request(number: int) -> bytes:
    return encoded(1, REQUEST) + encoded(3, number)


async def test_ids_and_keys_are_secrets(tmp_path: Path) -> None:
    """A session's id and its key are 128 random bits each, new each time; nothing but folders is offered."""
    seen = set()
    for number in range(3):
        (folder := tmp_path / str(number)).mkdir()
        async with opened(folder) as (_, headers):
            seen |= {headers["x-docker-expose-session-uuid"], headers["x-docker-expose-session-sharedkey"]}
            assert headers["x-docker-expose-session-grpc-method"] == DIFF_COPY
    assert len(seen) == 6
    assert all(len(bytes.fromhex(secret)) == 16 for secret in seen)


async def test_a_folder_is_sent(tmp_path: Path) -> None:
    """The tree in the order of its entries, then what is asked for, then the end, as fsutil has it."""
    entries = [
        Entry(b"dir", stat.S_IFDIR | 0o1755, mtime=2),
        Entry(b"dir/file", stat.S_IFREG | 0o4644, 5, 3, offset=1),
        Entry(b"link", stat.S_IFLNK | 0o777, link=b"dir/\xff"),
        Entry(b"same", stat.S_IFREG | 0o644, link=b"dir/file"),
    ]
    async with opened(tmp_path, entries, b"-hello-") as (peer, _):
        stream = peer.call(DIFF_COPY, dir_name="context")
        await peer.until(lambda: len(peer.messages(stream)) == 5)
        tree = [dict(fields(dict(fields(message))[2])) for message in peer.messages(stream)[:4]]  # type: ignore[arg-type]
        assert tree == [
            {1: b"dir", 2: 1 << 31 | 1 << 20 | 0o755, 6: 2 * 10**9},
            {1: b"dir/file", 2: 1 << 23 | 0o644, 5: 5, 6: 3 * 10**9},
            {1: b"link", 2: 1 << 27 | 0o777, 7: b"dir/\xff"},
            {1: b"same", 2: 0o644, 7: b"dir/file"},
        ]
        assert peer.messages(stream)[4] == b""
        peer.send(stream, request(1))
        await peer.until(lambda: len(peer.messages(stream)) == 7)
        assert [dict(fields(message)) for message in peer.messages(stream)[5:]] == [
            {1: DATA, 3: 1, 4: b"hello"},
            {1: DATA, 3: 1},
        ]
        peer.send(stream, encoded(1, FIN))
        assert await peer.status(stream) == "0"
        assert dict(fields(peer.messages(stream)[7])) == {1: FIN}


async def test_a_peer_that_reads_nothing_is_sent_no_more_than_it_has_room_for(tmp_path: Path) -> None:
    """Nothing is sent beyond the window, other calls go on, and the session ends at once when its block is left."""
    size = 1 << 30
    content = tmp_path / "sparse"
    with content.open("wb") as file:
        file.truncate(size)
    async with opened(tmp_path, [Entry(b"large", size=size)], content) as (peer, _):
        stream = peer.call(DIFF_COPY, request(0), dir_name="context")
        await peer.until(lambda: len(peer.received[stream]) == WINDOW_BYTES, takes=False)
        peer.h2.increment_flow_control_window(WINDOW_BYTES)
        other = peer.call("/nothing", b"")
        assert await peer.status(other) == "12"
        assert len(peer.received[stream]) == WINDOW_BYTES
        peer.h2.increment_flow_control_window(1000, stream)
        peer.flush()
        await peer.until(lambda: len(peer.received[stream]) == WINDOW_BYTES + 1000, takes=False)


async def test_a_peer_that_ceases_to_read_keeps_no_socket_open(tmp_path: Path) -> None:
    """Also with more written than sockets hold, leaving the block closes the connection, and ends all tasks."""
    size = 1 << 30
    content = tmp_path / "sparse"
    with content.open("wb") as file:
        file.truncate(size)
    before, tasks = open_files(), asyncio.all_tasks()
    async with opened(tmp_path, [Entry(b"large", size=size)], content, is_read=False) as (peer, _):
        peer.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: size})
        peer.h2.increment_flow_control_window(size)
        peer.call(DIFF_COPY, request(0), dir_name="context")
        await until(peer.is_stuck, timeout_s=DEADLINE_S)
    await until(lambda: len(open_files() - before) == 1, timeout_s=DEADLINE_S)
    assert asyncio.all_tasks() == tasks
    peer.close()


async def test_a_call_that_is_reset_ends_alone(tmp_path: Path) -> None:
    """The next transfer of the same folder is whole."""
    content = bytes(range(256)) * (2 * BLOCK_BYTES // 256)
    async with opened(tmp_path, [Entry(b"file", size=len(content))], content) as (peer, _):
        first = peer.call(DIFF_COPY, request(0), dir_name="context")
        await peer.until(lambda: len(peer.received[first]) > WINDOW_BYTES // 2, takes=False)
        peer.h2.reset_stream(first)
        peer.h2.increment_flow_control_window(WINDOW_BYTES)
        second = peer.call(DIFF_COPY, request(0), dir_name="context")
        await peer.until(lambda: encoded(1, DATA) + encoded(3, 0) in peer.messages(second))
        packets = [dict(fields(message)) for message in peer.messages(second)]
        assert b"".join(packet[4] for packet in packets if 4 in packet) == content  # type: ignore[misc]


@pytest.mark.parametrize(
    ("path", "message", "metadata", "status"),
    [
        ("/moby.filesync.v1.Auth/Credentials", b"\x0a\x09docker.io", {}, "12"),
        ("/moby.buildkit.secrets.v1.Secrets/GetSecret", b"", {}, "12"),
        (DIFF_COPY, b"", {"dir_name": "elsewhere"}, "5"),
        (DIFF_COPY, b"", {}, "5"),
        (DIFF_COPY, request(7), {"dir_name": "context"}, "13"),
        (DIFF_COPY, request(1), {"dir_name": "context"}, "13"),
        (DIFF_COPY, b"\xff\xff", {"dir_name": "context"}, "13"),
        (DIFF_COPY, encoded(1, ERROR) + encoded(4, "out of\nmemory ü".encode()), {"dir_name": "context"}, "1"),
    ],
    ids=["auth", "secrets", "other-folder", "no-folder", "no-entry", "directory", "garbage", "gave-up"],
)
async def test_what_is_refused(
    tmp_path: Path, path: str, message: bytes, metadata: dict[str, str], status: str
) -> None:
    """What is not offered, not there or no sense ends its own call with a status, and no other."""
    entries = [Entry(b"a"), Entry(b"dir", stat.S_IFDIR | 0o755)]
    async with opened(tmp_path, entries) as (peer, _):
        assert await peer.status(peer.call(path, message, **metadata)) == status
        health = peer.call("/grpc.health.v1.Health/Check", b"")
        assert await peer.status(health) == "0"
        assert peer.messages(health) == [b"\x08\x01"]


@pytest.mark.parametrize("how", ["closes", "goes-away", "talks-nonsense"])
async def test_a_session_that_ends_makes_the_builds_failure_temporary(tmp_path: Path, how: str) -> None:
    """In mid transfer, however the engine leaves."""
    with pytest.raises(Temporary, match="closed the build's session") as caught:
        await fail_in_mid_transfer(tmp_path, how)
    assert caught.value.code is ErrorCode.ENGINE_UNAVAILABLE


async def fail_in_mid_transfer(folder: Path, how: str) -> None:
    content = bytes(BLOCK_BYTES)
    async with opened(folder, [Entry(b"file", size=len(content))], content) as (peer, _):
        stream = peer.call(DIFF_COPY, request(0), dir_name="context")
        await peer.until(lambda: len(peer.received[stream]) > WINDOW_BYTES // 2, takes=False)
        if how == "closes":
            peer.close()
        elif how == "goes-away":
            peer.h2.close_connection()
            peer.flush()
        else:
            peer.write(bytes(9) * 100)
        raise Permanent(ErrorCode.BUILD_FAILED, "no active session")


class ClosingConnection:
    """One call of `/x`; what is written once `is_closed` fails, and then it is at its end."""

    def __init__(self) -> None:
        peer = H2Connection()
        peer.initiate_connection()
        headers = [(":method", "POST"), (":scheme", "http"), (":path", "/x"), (":authority", "localhost")]
        peer.send_headers(1, headers)
        self.blocks = [peer.data_to_send()]
        self.is_closed = False
        self.failed = asyncio.Event()

    async def read(self) -> bytes:
        if not self.blocks:
            await self.failed.wait()
        return self.blocks.pop() if self.blocks else b""

    def write(self, _: bytes) -> None:
        if self.is_closed:
            self.failed.set()
            raise ConnectionResetError

    def abort(self) -> None:
        """There is nothing to close."""


async def test_a_status_that_cannot_be_sent_any_more_is_no_failure_of_the_server() -> None:
    """An engine that closes the connection just as a call is refused ends the session like any other."""
    connection = ClosingConnection()

    async def refuse(_: grpc.Call) -> None:
        connection.is_closed = True
        raise grpc.StatusError(grpc.NOT_FOUND, "no such folder")

    async with asyncio.timeout(DEADLINE_S):
        await grpc.Server(cast(Upgraded, connection), {"/x": refuse}).serve()
    assert connection.failed.is_set()
