"""Builds that are cut off: by us, by a crash of the engine, by its restart."""

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from builds import FROM_BASE, fake_engine, lines, request, run, until

from harness.base_image import load_busybox
from harness.engine import PrivateEngine
from harness.processes import processes, unique_seconds
from harness.services import require
from imagejobd.engine import errors
from imagejobd.engine.build import build
from imagejobd.engine.client import Engine
from imagejobd.engine.settings import EngineSettings
from imagejobd.engine.stream import Built, Output
from imagejobd.model.errors import ErrorCode, Temporary

# By itself it would take a day. How soon it ends is seen in the times of cancelled jobs (faults/test_cancel).
STOP_S = 20.0
START_S = 20.0


def obedient(sleep: str) -> str:
    """A RUN that dies of SIGTERM at once, for which an engine would otherwise wait 10 s."""
    return f"RUN trap 'exit 5' TERM; sleep {sleep} & wait\n"


@pytest.fixture(scope="module")
def mortal_engine() -> Iterator[PrivateEngine]:
    """An engine that may be restarted and killed."""
    require("dockerd", "docker", "busybox")
    with PrivateEngine() as engine:
        load_busybox(engine)
        yield engine


async def test_cancelling_the_task_stops_the_work(
    client: Engine, engine: PrivateEngine, builder: str, tmp_path: Path
) -> None:
    """After the cancellation no process and no container of the build is left."""
    sleep = unique_seconds()
    task = asyncio.create_task(run(client, request(tmp_path, builder, FROM_BASE + f"RUN sleep {sleep}\n")))
    await until(lambda: bool(processes(sleep)), timeout_s=START_S)
    task.cancel()
    await until(lambda: not processes(sleep), timeout_s=STOP_S)
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: engine.docker("ps", "--all", "--quiet") == "", timeout_s=STOP_S)


async def test_closing_the_events_stops_the_work(client: Engine, builder: str, tmp_path: Path) -> None:
    """A reader that goes away in the middle ends the build as a cancellation does."""
    sleep = unique_seconds()
    wanted = request(tmp_path, builder, FROM_BASE + f"RUN echo ready; sleep {sleep}\n")
    async with contextlib.aclosing(build(client, wanted)) as events:
        async for event in events:
            if isinstance(event, Output) and "ready" in event.text:
                break
        await until(lambda: bool(processes(sleep)), timeout_s=START_S)
    await until(lambda: not processes(sleep), timeout_s=STOP_S)


async def test_an_engine_restart_in_mid_build_is_temporary(
    mortal_engine: PrivateEngine, builder: str, tmp_path: Path
) -> None:
    """A restart is never the Dockerfile's fault, whatever the dying engine says; the same client builds on after it."""
    sleep = unique_seconds()
    wanted = request(tmp_path, builder, FROM_BASE + obedient(sleep))
    async with Engine(EngineSettings(host=mortal_engine.host)) as client:
        task = asyncio.create_task(run(client, wanted))
        await until(lambda: bool(processes(sleep)), timeout_s=START_S)
        restarting = asyncio.to_thread(mortal_engine.restart)
        _, fault = await asyncio.gather(restarting, task, return_exceptions=True)
        assert isinstance(fault, Temporary)
        assert fault.code is ErrorCode.ENGINE_UNAVAILABLE
        events = await run(client, request(tmp_path, builder, FROM_BASE + "RUN true\n"))
        assert isinstance(events[-1], Built)


async def test_an_engine_crash_in_mid_build_is_temporary(
    mortal_engine: PrivateEngine, builder: str, tmp_path: Path
) -> None:
    """The connection that breaks is a temporary fault that names the engine."""
    sleep = unique_seconds()
    wanted = request(tmp_path, builder, FROM_BASE + obedient(sleep))
    async with Engine(EngineSettings(host=mortal_engine.host)) as client:
        task = asyncio.create_task(run(client, wanted))
        await until(lambda: bool(processes(sleep)), timeout_s=START_S)
        await asyncio.to_thread(mortal_engine.kill)
        with pytest.raises(Temporary, match=r"closed the (connection|build's session)") as caught:
            await task
        assert caught.value.code is ErrorCode.ENGINE_UNAVAILABLE
        with pytest.raises(Temporary, match="not available"):
            await client.ping()
        await asyncio.to_thread(mortal_engine.start)
        await client.ping()


async def test_an_end_without_an_image_id_is_temporary(builder: str, tmp_path: Path) -> None:
    """A stream that just ends is no success."""
    async with fake_engine(tmp_path, lines('{"stream":"Step 1/2 : FROM x"}', '{"stream":"\\n"}')) as client:
        with pytest.raises(Temporary, match="ended early") as caught:
            await run(client, request(tmp_path, builder, "FROM x\n"))
        assert caught.value.code is ErrorCode.ENGINE_UNAVAILABLE


async def test_a_line_that_is_cut_is_temporary(builder: str, tmp_path: Path) -> None:
    """Half a line of JSON means that the rest did not come."""
    async with fake_engine(tmp_path, lines('{"id":"moby.image.id","aux":{"ID":"sha')) as client:
        with pytest.raises(Temporary, match="cut"):
            await run(client, request(tmp_path, builder, "FROM x\n"))


@pytest.mark.parametrize(
    "text",
    [
        "rpc error: code = Unavailable desc = transport is closing",
        "failed to solve: grpc: the client connection is closing: unknown",
        "engine is shutting down",
    ],
)
async def test_an_engine_that_says_that_it_goes_is_temporary(builder: str, tmp_path: Path, text: str) -> None:
    """The words of a dying engine inside the stream are not the user's failure."""
    async with fake_engine(tmp_path, lines(f'{{"errorDetail":{{"message":"{text}"}}}}')) as client:
        with pytest.raises(Temporary) as caught:
            await run(client, request(tmp_path, builder, "FROM x\n"))
        assert caught.value.code is ErrorCode.ENGINE_UNAVAILABLE


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('failed to load cache key: Get "http://127.0.0.1:1/x": EOF', ErrorCode.REGISTRY_UNAVAILABLE),
        ("failed to load cache key: unexpected EOF", ErrorCode.REGISTRY_UNAVAILABLE),
        (
            "pulling from host h failed with status code: 503 Service Unavailable",
            ErrorCode.REGISTRY_UNAVAILABLE,
        ),
        ("received unexpected HTTP status: 503 Service Unavailable", ErrorCode.REGISTRY_UNAVAILABLE),
        ("dial tcp 127.0.0.1:1: connect: connection refused", ErrorCode.REGISTRY_UNAVAILABLE),
        ("dockerfile parse error line 3: unexpected EOF", ErrorCode.BUILD_FAILED),
        ("dockerfile parse error line 3: ADD https://h/x <<X: unexpected EOF", ErrorCode.BUILD_FAILED),
        ('failed to compute cache key: "/connection refused": not found', ErrorCode.BUILD_FAILED),
        ("ADD failed: i/o timeout.txt: file does not exist", ErrorCode.BUILD_FAILED),
        ("failed to compute cache key: flightcontrol: exceeded retry timeout", ErrorCode.ENGINE_UNAVAILABLE),
        ("process did not complete: flightcontrol: exceeded retry timeout: exit code: 1", ErrorCode.BUILD_FAILED),
    ],
)
def test_what_can_pass_by_itself_is_tried_again(text: str, code: ErrorCode) -> None:
    """An engine's overload; a network, where something was asked for: a file or a parser may use its words too."""
    fault = errors.of_build(errors.IN_BAND, text)
    assert fault.code is code
    assert isinstance(fault, Temporary) == (code is not ErrorCode.BUILD_FAILED)


@pytest.mark.parametrize("line", ['{"error":"it broke"}', '{"errorDetail":{"message":"it broke"}}'])
async def test_errors_inside_the_stream_are_read_in_both_spellings(tmp_path: Path, line: str) -> None:
    """Engine 28 sends only errorDetail, older ones may send only error; both builders alike."""
    async with fake_engine(tmp_path, lines(line)) as client:
        with pytest.raises(Exception, match="it broke"):
            await run(client, request(tmp_path, "classic", "FROM x\n"))
