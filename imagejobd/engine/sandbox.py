"""Running an image that nobody trusts: no network, no rights, a read-only root, and a bound on everything.

The one writable place that outlasts the container is a volume at `/data`. What the container may do is in `hardening`,
how it is found again in `container`. Here is its life: made, started, attached to, ended, its result read.
"""

import asyncio
import contextlib
import functools
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import msgspec
import structlog

from imagejobd.engine import errors, images
from imagejobd.engine.client import Engine, Reply, filters
from imagejobd.engine.container import (
    discard,
    job_labels,
    leftovers,
    let_all_users_write,
    make_container,
    make_volume,
    volume_container,
)
from imagejobd.engine.hardening import DATA_PATH, FreeSpace, Probe, SandboxLimits, container_body, free_space, shortage
from imagejobd.engine.output import Demultiplexer, LinkAtMount, Output, attached_output, read_file, removed_meanwhile
from imagejobd.model.errors import ErrorCode, Fault, NotFound, Permanent, Temporary
from imagejobd.model.ownership import resource_name

__all__ = ["DATA_PATH", "Exit", "Output", "Sandbox", "SandboxLimits", "create", "discard", "leftovers"]

log = structlog.get_logger("imagejobd.engine")
T = TypeVar("T")

# How long leaving early waits for the engine to kill the container; it takes about 50 ms. The rest is for `discard`.
KILL_TIMEOUT_S = 0.9
# Between two looks at the disk, and before a kill that failed is tried again.
WATCH_INTERVAL_S = 1.0
# What is fetched of an output that was cut: enough to say why it failed. The engine splits lines at 16 KiB.
LAST_MAX_LINES = 10
LAST_MAX_BYTES = 256 * 1024
LAST_TRIES = 3
LAST_INTERVAL_S = 0.25
# A busy engine hears of the end before it hears that memory was the reason: up to 0.2 s, measured on 20.10.
OOM_EVENT_TIMEOUT_S = 0.5
WAIT_ANSWER_MAX_BYTES = 64 * 1024


class Exit(msgspec.Struct, frozen=True):
    """How the container ended. `error` is the engine's own word where it could not start."""

    code: int
    is_out_of_memory: bool
    error: str = ""


class _State(msgspec.Struct, frozen=True):
    running: bool = msgspec.field(name="Running")
    code: int = msgspec.field(name="ExitCode")
    is_oom_killed: bool = msgspec.field(name="OOMKilled", default=False)
    error: str = msgspec.field(name="Error", default="")


class _Inspected(msgspec.Struct, frozen=True):
    state: _State = msgspec.field(name="State")


class Sandbox:
    """One container with its volume. Made by `create`; it runs once.

    `body` is what it was made of, and `reader` the name of another one that may be needed to read the volume.
    """

    def __init__(
        self,
        engine: Engine,
        container: str,
        volume: Path,
        limits: SandboxLimits,
        probe: Probe,
        *,
        body: dict[str, Any],
        reader: str,
    ) -> None:
        self._engine = engine
        self._body = body
        self._reader = reader
        self._container = container
        self._path = f"containers/{container}"
        self._volume = volume
        self._limits = limits
        self._probe = probe
        self._starting: asyncio.Task[bytes] | None = None
        self._stopped: Permanent | None = None

    async def run(self, *, output_max_bytes: int, timeout_s: float) -> AsyncGenerator[Output | Exit, None]:
        """Start it, give its output live, and at last its `Exit`. Read it under `contextlib.aclosing`: leaving it early
        kills the container within 2 s. Past `output_max_bytes` only the end of the output is read, from the engine.
        `timeout_s` is the container's own time, from its start to its end, however slowly its output is read.

        Raises `Permanent(run_failed)` for an image that cannot be started, `Permanent(storage_full | timeout)` when it
        was killed because the engine's disk ran full or its time was over, `Temporary(storage_full)` when the disk was
        full before, `Temporary(engine_unavailable)`, and `Temporary(conflict)` when somebody removed the container.
        """
        is_over = False
        try:
            async with contextlib.aclosing(self._run_container(output_max_bytes, timeout_s)) as pieces:
                async for piece in pieces:
                    is_over = isinstance(piece, Exit)
                    yield piece
        except NotFound as fault:
            raise removed_meanwhile(fault) from fault
        finally:
            if not is_over:
                # A second cancellation must not cut this short.
                await asyncio.shield(self._kill())

    async def read_data(self, name: str, *, max_bytes: int) -> bytes | None:
        """The regular file `/data/<name>` of the ended container; None when there is no such name.

        Raises `Permanent(result_invalid)` for anything else of that name (link, directory, FIFO, device) and for one
        that is larger.
        """
        path = f"{DATA_PATH}/{name}"
        try:
            return await read_file(self._engine, self._container, path, max_bytes=max_bytes)
        except LinkAtMount:
            return await _shielded(self._read_volume(path, name, max_bytes))

    async def _read_volume(self, path: str, name: str, max_bytes: int) -> bytes | None:
        """The container ran, for the runtime follows links inside its root, and the volume can be read without it."""
        async with volume_container(self._engine, self._body, self._reader) as (container, folder):
            place = f"/{folder}/{name}"
            return await read_file(self._engine, container, path, max_bytes=max_bytes, place=place)

    async def _run_container(self, output_max_bytes: int, timeout_s: float) -> AsyncGenerator[Output | Exit, None]:
        _refuse_full_disk(self._probe(self._volume), self._limits)
        output = Demultiplexer(max_bytes=output_max_bytes)
        # Both are asked for before the start: nothing that a quick container says or does is missed.
        async with contextlib.AsyncExitStack() as attachment, self._post("wait", ("condition", "next-exit")) as answer:
            attached = self._post("attach", ("stream", "1"), ("stdout", "1"), ("stderr", "1"))
            blocks = (await attachment.enter_async_context(attached)).blocks
            self._starting = asyncio.create_task(
                self._engine.request("POST", f"{self._path}/start", judge=errors.of_container)
            )
            # A start that is cut off goes on in the engine: whoever kills has to wait for it.
            await asyncio.shield(self._starting)
            async with _background(self._wait_for_end(answer.blocks, timeout_s)) as ending:
                async with contextlib.aclosing(attached_output(blocks, ending, output)) as pieces:
                    async for piece in pieces:
                        yield piece
                # Closed at once, so that endless output costs this process nothing more.
                await attachment.aclose()
                if output.is_full:
                    cut = f"the output is over {output_max_bytes} bytes; what follows is left out until its end"
                    yield Output(f"\n[{cut}]\n", is_stderr=True)
                end = await ending
        if output.is_full:
            for piece in await self._last_output():
                yield piece
        yield end

    def _post(self, action: str, *params: tuple[str, str]) -> contextlib.AbstractAsyncContextManager[Reply]:
        return self._engine.exchange("POST", f"{self._path}/{action}", params=params, idle_timeout_s=None)

    async def _kill(self) -> None:
        """Kill what runs. Failing that is no error: `discard` is still to come."""
        if self._starting is None:
            return
        with contextlib.suppress(Fault, TimeoutError):
            async with asyncio.timeout(KILL_TIMEOUT_S):
                await self._starting
                await self._engine.request("POST", f"{self._path}/kill")

    async def _wait_for_end(self, answer: AsyncIterator[bytes], timeout_s: float) -> Exit:
        """Wait for the end, and ask at once how it was, of an engine that still takes connections.

        One that shuts down kills its containers, and by that time answers nobody new: no exit code of its making is
        taken for the container's.
        """
        content = b""
        async with _background(self._watch_disk()), _background(self._watch_time(timeout_s)):
            async for block in answer:
                content += block
                if len(content) > WAIT_ANSWER_MAX_BYTES:
                    limit = f"more than {WAIT_ANSWER_MAX_BYTES} bytes"
                    raise errors.ended_early(f"the wait for a container's end said {limit}")
        try:
            # The wait is over only when the engine says so; one that goes away may just end its answer.
            msgspec.json.decode(content)
        except errors.UNDECODABLE as error:
            raise errors.ended_early(f"the wait for a container's end was cut ({error})") from error
        state = (await self._engine.request_json("GET", f"{self._path}/json", _Inspected)).state
        if state.running:
            raise errors.ended_early("the wait for a container's end, while it still runs")
        if self._stopped:
            raise self._stopped
        is_out_of_memory = state.code != 0 and (state.is_oom_killed or await self._has_oom_event())
        return Exit(state.code, is_out_of_memory, state.error)

    async def _has_oom_event(self) -> bool:
        """Whether the engine says, of a container that has ended, that memory was the reason. Docker 20.10 has this in
        its events where the state, settled with the end, lacks it; now and then no engine has it at all."""
        params = [("since", "0"), filters(container=[self._container], event=["oom"])]
        with contextlib.suppress(Fault, TimeoutError):
            async with (
                asyncio.timeout(OOM_EVENT_TIMEOUT_S),
                self._engine.exchange("GET", "events", params=params, idle_timeout_s=None) as events,
            ):
                async for _ in events.blocks:
                    return True
        return False

    async def _last_output(self) -> list[Output]:
        """As much of it as can be had: the container has ended, and that is reported in any case. A busy engine may
        have nothing to say of it at first."""
        params = [("stdout", "1"), ("stderr", "1"), ("tail", str(LAST_MAX_LINES))]
        idle_timeout_s = self._engine.settings.request_timeout_s
        for _ in range(LAST_TRIES):
            output, pieces = Demultiplexer(max_bytes=LAST_MAX_BYTES), list[Output]()
            with contextlib.suppress(Fault):
                async with self._engine.exchange(
                    "GET", f"{self._path}/logs", params=params, idle_timeout_s=idle_timeout_s
                ) as logs:
                    async for block in logs.blocks:
                        pieces += output.feed(block)
                        if output.is_full:
                            break
            if pieces:
                return pieces
            await asyncio.sleep(LAST_INTERVAL_S)
        return []

    async def _watch_disk(self) -> None:
        if self._probe(self._volume) is None:
            _warn_unwatched(self._engine.host)
            return
        while True:
            await asyncio.sleep(WATCH_INTERVAL_S)
            if lack := shortage(self._probe(self._volume), free_min_bytes=self._limits.disk_free_min_bytes):
                why = f"the container was stopped: on the Docker Engine's disk only {lack}"
                await self._stop(ErrorCode.STORAGE_FULL, why)

    async def _watch_time(self, timeout_s: float) -> None:
        await asyncio.sleep(timeout_s)
        await self._stop(ErrorCode.TIMEOUT, f"the container ran beyond its limit of {timeout_s:g} s")

    async def _stop(self, code: ErrorCode, why: str) -> NoReturn:
        """Kill it, until the wait for its end is over; that then raises the first reason."""
        self._stopped = self._stopped or Permanent(code, why)
        while True:
            await self._kill()
            await asyncio.sleep(WATCH_INTERVAL_S)


async def create(
    engine: Engine, *, uuid: str, attempt: int, image: str, limits: SandboxLimits, probe: Probe = free_space
) -> Sandbox:
    """Make volume and container for one attempt of a job; what an earlier attempt left is removed first.

    What is made when it fails, or is cancelled, is left to `discard`. Raises `Permanent(run_failed)` for an image that
    cannot be run, such as one without a command, `Permanent(not_found)` where there is none, and
    `Temporary(storage_full)`.
    """
    await discard(engine, uuid)
    info = await images.inspect(engine, image)
    if info is None:
        raise NotFound(f"image {image} is not in the engine")
    name = resource_name(engine.installation, uuid, attempt)
    labels = job_labels(engine, uuid)
    body = container_body(image, info.config, labels=labels, volume=name, limits=limits)
    volume = Path((await _shielded(make_volume(engine, name, labels))).mountpoint)
    # Before the container: for it the engine copies what the image has in its VOLUMEs.
    _refuse_full_disk(probe(volume), limits)
    if info.config.user.partition(":")[0] not in ("", "0", "root"):
        await _shielded(let_all_users_write(engine, body, f"{name}-prepare"))
    container = await _shielded(make_container(engine, name, body))
    return Sandbox(engine, container, volume, limits, probe, body=body, reader=f"{name}-read")


def _refuse_full_disk(space: FreeSpace | None, limits: SandboxLimits) -> None:
    if lack := shortage(space, free_min_bytes=limits.disk_free_min_bytes):
        raise Temporary(
            ErrorCode.STORAGE_FULL, f"the container was not started: on the Docker Engine's disk only {lack}"
        )


@functools.cache
def _warn_unwatched(host: str) -> None:
    """Once for each engine."""
    log.warning("the engine's disk cannot be seen from here, so no container is stopped when it runs full", host=host)


@contextlib.asynccontextmanager
async def _background(step: Coroutine[Any, Any, T]) -> AsyncIterator[asyncio.Task[T]]:
    """A task that goes on beside the block and ends with it."""
    task = asyncio.create_task(step)
    try:
        yield task
    finally:
        task.cancel()
        await _settled(task)


async def _shielded(step: Coroutine[Any, Any, T]) -> T:
    """Do it to the end though the caller is cancelled: what the engine is still making, `discard` would not find."""
    task = asyncio.create_task(step)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await _settled(task)
        raise


async def _settled(task: asyncio.Task[Any]) -> None:
    """Wait until it is over; how it ended is nobody's business any more."""
    await asyncio.wait({task}, timeout=KILL_TIMEOUT_S)
    if task.done() and not task.cancelled():
        task.exception()
