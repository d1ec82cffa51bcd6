"""Sandboxes in an engine that stalls, lies, is old, goes away or is killed."""

import asyncio
import contextlib
import itertools
import json
import os
import struct
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from aiohttp import web
from builds import FROM_BASE, fake_engine, request, until
from builds import run as build
from hypothesis import given
from hypothesis import strategies as st
from sandboxes import LIMITS, image_of, run

from harness.base_image import load_busybox
from harness.engine import PrivateEngine
from harness.processes import processes, unique_seconds
from harness.services import require
from imagejobd.engine import errors
from imagejobd.engine.client import Engine
from imagejobd.engine.container import make_container
from imagejobd.engine.hardening import FreeSpace, free_space, shortage
from imagejobd.engine.output import DRAIN_TIMEOUT_S, Demultiplexer, Output
from imagejobd.engine.sandbox import Exit, Sandbox, create, discard, leftovers
from imagejobd.engine.settings import EngineSettings
from imagejobd.engine.stream import BuildEvent, Step
from imagejobd.model.errors import ErrorCode, Fault, Permanent, Temporary
from imagejobd.model.job import uuid7
from imagejobd.model.ownership import NO_INSTALLATION, resource_name

START_S = 20.0


def frame(stream: int, payload: bytes) -> bytes:
    return struct.pack(">BxxxI", stream, len(payload)) + payload


@given(
    st.lists(st.tuples(st.sampled_from([1, 2]), st.text(max_size=5).map(str.encode) | st.binary(max_size=5))),
    st.lists(st.integers(0, 200)),
)
def test_output_is_the_same_however_it_is_cut(written: list[tuple[int, bytes]], cuts: list[int]) -> None:
    """Frames and characters that arrive in pieces give the text that each stream was."""
    raw = b"".join(frame(stream, payload) for stream, payload in written)
    edges = [0, *sorted(min(cut, len(raw)) for cut in cuts), len(raw)]
    output = Demultiplexer(max_bytes=10_000)
    pieces = [piece for start, end in itertools.pairwise(edges) for piece in output.feed(raw[start:end])]
    pieces += output.finish()
    for stream in (1, 2):
        text = "".join(piece.text for piece in pieces if piece.is_stderr == (stream == 2))
        assert text == b"".join(payload for number, payload in written if number == stream).decode(errors="replace")
    assert not output.is_full


def test_output_stops_at_its_bound() -> None:
    """Exactly so many bytes are given; a stream that just fits is not full."""
    output = Demultiplexer(max_bytes=3)
    assert list(output.feed(frame(1, b"ab") + frame(2, b"c"))) == [Output("ab", False), Output("c", True)]
    assert not output.is_full
    assert list(output.feed(frame(1, b"d"))) == []
    assert output.is_full


class Engineered:
    """A container in an engine of our own making: what it answers to attach, wait and inspect."""

    def __init__(self) -> None:
        self.attached = [frame(1, b"hello")]
        self.attach_stalls = False
        self.waited: bytes | None = b'{"StatusCode":0}\n'
        self.state = {"Running": False, "ExitCode": 0, "OOMKilled": False, "Error": ""}
        self.events = b""
        self.requests: list[str] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        action = request.path.rpartition("/")[2]
        self.requests.append(action)
        if action == "json":
            return web.json_response({"State": self.state})
        if action == "events":
            asked_for = json.loads(request.query["filters"])
            assert asked_for == {"container": ["c"], "event": ["oom"]}
            return await self._tell_events(request)
        if action == "logs":
            return web.json_response({"message": "log file is corrupt"}, status=500)
        if action not in ("attach", "wait"):
            return web.Response(status=204)
        reply = web.StreamResponse()
        await reply.prepare(request)
        if action == "attach":
            for block in self.attached:
                await reply.write(block)
        while "start" not in self.requests or (action == "attach" and self.attach_stalls):
            await asyncio.sleep(0.01)
        if action == "wait" and self.waited is not None:
            await reply.write(self.waited)
        return reply

    async def _tell_events(self, request: web.Request) -> web.StreamResponse:
        """Those that there are, and then silence, as long as it is listened to."""
        reply = web.StreamResponse()
        await reply.prepare(request)
        await reply.write(self.events)
        await asyncio.Event().wait()
        return reply


@contextlib.asynccontextmanager
async def engineered(folder: Path, container: Engineered) -> AsyncIterator[Sandbox]:
    async with fake_engine(folder, container.answer) as engine:
        yield Sandbox(engine, "c", folder, LIMITS, lambda _: None, body={}, reader="r")


async def test_both_streams_are_open_before_the_start(tmp_path: Path) -> None:
    """So nothing that a quick container says or does is missed."""
    container = Engineered()
    async with engineered(tmp_path, container) as sandbox:
        assert await run(sandbox) == ("hello", "", Exit(0, is_out_of_memory=False))
    assert set(container.requests[:2]) == {"attach", "wait"}
    assert container.requests[2:] == ["start", "json"]


@pytest.mark.parametrize("is_told", [True, False])
async def test_memory_as_the_reason_may_be_told_by_an_event_only(tmp_path: Path, is_told: bool) -> None:
    """An engine whose state of the container lacks it is asked for its events; without one it is not said."""
    container = Engineered()
    container.state["ExitCode"] = 137
    container.events = b'{"Type":"container","Action":"oom"}\n' if is_told else b""
    async with engineered(tmp_path, container) as sandbox:
        assert (await run(sandbox)).exit == Exit(137, is_out_of_memory=is_told)
    assert container.requests[-2:] == ["json", "events"]


async def test_an_output_that_stalls_does_not_hold_up_the_end(tmp_path: Path) -> None:
    """When the container is over, a stream that goes on without a word is given up."""
    container = Engineered()
    container.attach_stalls = True
    async with engineered(tmp_path, container) as sandbox:
        async with asyncio.timeout(10 * DRAIN_TIMEOUT_S):
            assert (await run(sandbox)).out == "hello"


async def test_an_end_of_output_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    """How the container ended is told even where the engine has lost its log."""
    container = Engineered()
    container.attached = [frame(1, b"hello"), frame(1, b" and more")]
    async with engineered(tmp_path, container) as sandbox:
        out, err, ended = await run(sandbox, output_max_bytes=5)
    assert (out, ended.code) == ("hello", 0)
    assert "over 5 bytes" in err


async def test_a_slow_reader_costs_the_container_no_time(tmp_path: Path) -> None:
    """The limit is on the container, which is over when the time comes, not on who reads its output."""
    container = Engineered()
    async with engineered(tmp_path, container) as sandbox:
        events: list[Output | Exit] = []
        async with contextlib.aclosing(sandbox.run(output_max_bytes=100, timeout_s=1.0)) as pieces:
            async for piece in pieces:
                events.append(piece)
                await asyncio.sleep(1.3)
    assert events == [Output("hello", is_stderr=False), Exit(0, is_out_of_memory=False)]
    assert "kill" not in container.requests


@pytest.mark.parametrize("waited", [None, b'{"StatusC', b'{"StatusCode":0}'])
async def test_a_wait_that_ends_early_is_temporary(tmp_path: Path, waited: bytes | None) -> None:
    """No answer, half of one, and one that the container's state belies; and the container is killed."""
    container = Engineered()
    container.waited = waited
    container.state["Running"] = True
    async with engineered(tmp_path, container) as sandbox:
        with pytest.raises(Temporary) as caught:
            await run(sandbox)
    assert caught.value.code is ErrorCode.ENGINE_UNAVAILABLE
    assert container.requests[-1] == "kill"


async def test_private_shared_memory_where_none_is_refused(tmp_path: Path) -> None:
    """An engine that does not know `IpcMode: none` is asked for `private`."""
    modes: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        if request.path.endswith("/containers/create"):
            modes.append((await request.json())["HostConfig"]["IpcMode"])
            if modes[-1] == "none":
                return web.json_response({"message": "invalid IPC mode: none"}, status=400)
        elif request.path.endswith("/containers/json"):
            return web.json_response([])
        return web.json_response({"Id": "x", "Config": {}, "Volumes": None, "Mountpoint": "/v"})

    async with fake_engine(tmp_path, answer) as engine:
        await create(engine, uuid=uuid7(), attempt=1, image="i:1", limits=LIMITS)
    assert modes == ["none", "private"]


_OCI = "failed to create shim task: OCI runtime create failed: runc create failed: "


@pytest.mark.parametrize(
    ("status", "message", "fault"),
    [
        (400, f'{_OCI}unable to start container process: exec: "x": not found: unknown', 'run: exec: "x": not found$'),
        (500, "unable to find group g: no matching entries in group file", "run: unable to find group g"),
        (500, f"{_OCI}fork/exec /proc/self/exe: resource temporarily unavailable: unknown", None),
        (500, "containerd: connection refused, code = Unavailable", None),
        (500, "mkdir /x/overlay2/0a/merged/y: not a directory", "run: mkdir /y: not a directory$"),
        (503, "server is shutting down", None),
    ],
)
def test_whose_fault_a_failed_start_is(status: int, message: str, fault: str | None) -> None:
    """What the image is to blame for ends the job; what the engine is short of is tried again."""
    judged = errors.of_container(status, message)
    if fault is None:
        assert isinstance(judged, Temporary)
        assert judged.code is ErrorCode.ENGINE_UNAVAILABLE
    else:
        with pytest.raises(Permanent, match=fault):
            raise judged
        assert judged.code is ErrorCode.RUN_FAILED


def test_space_is_that_of_the_path_or_unknown(tmp_path: Path) -> None:
    """A path that is not here belongs to another machine."""
    space = free_space(tmp_path)
    assert space is not None
    assert space.free_bytes > 0
    assert 0 < space.free_inodes_share <= 1
    assert free_space(tmp_path / "absent") is None
    assert free_space(Path()) is None
    assert shortage(FreeSpace(10), free_min_bytes=10) == ""
    assert shortage(FreeSpace(9), free_min_bytes=10) == "9 bytes are free, and 10 have to stay so"
    assert "0.50% of its inodes" in shortage(FreeSpace(10, 0.005), free_min_bytes=10)


def test_space_above_a_closed_folder_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where only root may look into the engine's folder, the disk is that of the folder around it."""
    # Asked once: others write to this disk meanwhile.
    disk = os.statvfs(tmp_path)

    def statvfs(path: Path) -> object:
        if path != tmp_path:
            raise PermissionError(path)
        return disk

    monkeypatch.setattr("imagejobd.engine.hardening.os.statvfs", statvfs)
    assert free_space(tmp_path / "volumes/x/_data") == free_space(tmp_path)


@pytest.fixture(scope="module")
def fragile_engine() -> Iterator[PrivateEngine]:
    """An engine that may be restarted and killed."""
    require("dockerd", "docker", "busybox")
    with PrivateEngine() as engine:
        load_busybox(engine)
        yield engine


def runs(engine: PrivateEngine, container: str) -> bool:
    """Whether the engine itself says so."""
    return engine.docker("inspect", "--format", "{{.State.Running}}", container) == "true"


@pytest.mark.parametrize("how", ["restart", "kill"])
async def test_an_engine_that_goes_away_in_mid_run_is_temporary(fragile_engine: PrivateEngine, how: str) -> None:
    """Neither a restart's SIGTERM nor a crash passes for the container's own end; afterwards all is discarded."""
    sleep, uuid = unique_seconds(), uuid7()
    image = image_of(fragile_engine, f"CMD trap 'exit 5' TERM; sleep {sleep} & wait\n", FROM_BASE)
    async with Engine(EngineSettings(host=fragile_engine.host)) as client:
        sandbox = await create(client, uuid=uuid, attempt=1, image=image, limits=LIMITS)
        task = asyncio.create_task(run(sandbox))
        # Not by its process: an engine that is killed before it has noted it never finds it again.
        await until(lambda: runs(fragile_engine, resource_name(NO_INSTALLATION, uuid, 1)), timeout_s=START_S)
        going = asyncio.to_thread(getattr(fragile_engine, how))
        _, fault = await asyncio.gather(going, task, return_exceptions=True)
        assert isinstance(fault, Fault)
        assert (type(fault), fault.code) == (Temporary, ErrorCode.ENGINE_UNAVAILABLE)
        if how == "kill":
            await asyncio.to_thread(fragile_engine.start)
        await discard(client, uuid)
        assert await leftovers(client) == set()
        await until(lambda: not processes(sleep), timeout_s=START_S)


def test_newer_engines_words_for_an_unknown_runtime_are_known() -> None:
    """It is the operator's setting there too."""
    judged = errors.of_container(400, "unknown or invalid runtime name: x")
    assert isinstance(judged, Permanent)
    assert judged.code is ErrorCode.ENGINE_UNAVAILABLE
    assert "[kinds.run]" in judged.message


def test_a_failed_build_does_not_tell_the_engines_folders() -> None:
    """What is within them is the user's; a path of a stranger's making costs no more time than its length."""
    message = errors.of_build(200, "lstat /var/lib/docker/tmp/buildkit-mount123/app: no such file").message
    assert message == "lstat /app: no such file"
    began = time.process_time()
    errors.of_container(400, "/" * 1_000_000)
    # 0.1 s; if each of its slashes were tried, hours.
    assert time.process_time() - began < 10


async def test_a_failed_step_does_not_tell_the_engines_folders(client: Engine, tmp_path: Path) -> None:
    """BuildKit's own word on a step, which goes into the log, names the path as it is in the image."""
    events: list[BuildEvent] = []
    wanted = request(tmp_path, "buildkit", f"{FROM_BASE}WORKDIR /etc/passwd/x\n")
    with pytest.raises(Permanent) as caught:
        await build(client, wanted, events)
    reasons = [event.error for event in events if isinstance(event, Step) and event.error]
    assert reasons == [caught.value.message] == ["lstat /etc/passwd/x: not a directory"]


async def test_a_container_may_take_longer_to_make_than_other_requests(tmp_path: Path) -> None:
    """While the engine copies into volumes it does not answer."""

    async def answer(request: web.Request) -> web.Response:
        await asyncio.sleep(1.3)
        return web.json_response({"Id": "x"})

    async with fake_engine(tmp_path, answer) as engine:
        engine.settings = EngineSettings(host=engine.host, request_timeout_s=1.0)
        assert await make_container(engine, "c", {}) == "x"
