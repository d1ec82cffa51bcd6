"""The running phase: the container within its bounds, its output live in the job's log, its end judged."""

import signal
import time
from collections.abc import AsyncIterable
from contextlib import aclosing

from imagejobd.building.image import BuiltImage
from imagejobd.engine import sandbox
from imagejobd.engine.containers import CREATE_TIMEOUT_S
from imagejobd.engine.sandbox import Exit, Output, Sandbox
from imagejobd.engine.tail import Tail
from imagejobd.kinds.run.settings import RunSettings
from imagejobd.kinds.run.tools import Tools
from imagejobd.model.errors import ENGINE, ErrorCode, Permanent, Temporary
from imagejobd.model.failpoint import failpoint
from imagejobd.model.work import Work

# What the engine may take to make the container, and to take down one whose time is over.
ENGINE_TIMEOUT_S = CREATE_TIMEOUT_S + 120.0
# A shell, and the engine's init, report a child that a signal has ended as 128 and the signal's number.
SIGNALLED = 128


async def run_image(tools: Tools, work: Work, image: BuiltImage) -> Sandbox:
    """Run the image to its end; the container that ended well, for what it has left at `/data`.

    Raises `Permanent(run_failed | out_of_memory | timeout)`.
    """
    settings = tools.settings
    async with work.phase("running", timeout_s=settings.timeout_s + ENGINE_TIMEOUT_S):
        container = await _create(tools, work, image)
        await work.log(f"running {image.tag}\n")
        tail = Tail()
        began = time.monotonic()
        ended = await _watch(work, container, settings, tail)
        await work.log(f"exited with code {ended.code} after {time.monotonic() - began:.1f} s\n")
        _judge(ended, settings, tail)
    failpoint("after_run")
    return container


async def _create(tools: Tools, work: Work, image: BuiltImage) -> Sandbox:
    job, limits = work.job, tools.settings.limits
    try:
        return await sandbox.create(
            tools.building.engine, uuid=job.uuid, attempt=job.attempt, image=image.tag, limits=limits
        )
    except Permanent as fault:
        if fault.code is not ErrorCode.NOT_FOUND:
            raise
        why = "somebody removed the built image from the engine; it has to be built again"
        raise Temporary(ErrorCode.CONFLICT, why) from fault


async def _watch(work: Work, container: Sandbox, settings: RunSettings, tail: Tail) -> Exit:
    """Write its output down until it ends; killed when its time is over."""
    running = container.run(output_max_bytes=settings.output_max_bytes, timeout_s=settings.timeout_s)
    try:
        async with aclosing(running) as events:
            return await _write_down(work, events, tail)
    except Permanent as fault:
        if fault.code is not ErrorCode.TIMEOUT:
            raise
        raise Permanent(
            ErrorCode.TIMEOUT,
            f"the container ran longer than kinds.run.timeout_s = {settings.timeout_s:g} s and was killed; "
            "let it do less, or ask the operator for more time",
        ) from fault


async def _write_down(work: Work, events: AsyncIterable[Output | Exit], tail: Tail) -> Exit:
    """To the very end, for what is left before its end is a container to kill."""
    ended: Exit | None = None
    output_bytes = 0
    text = "\n"
    async for event in events:
        if isinstance(event, Exit):
            ended = event
            continue
        failpoint("while_running")
        text = event.text
        tail.add(text)
        output_bytes += len(text.encode())
        work.progress(output_bytes=output_bytes)
        await work.log(text)
    if not text.endswith("\n"):
        await work.log("\n")
    if ended is None:
        raise Temporary(ErrorCode.ENGINE_UNAVAILABLE, "the engine did not tell how the container ended", peer=ENGINE)
    return ended


def _judge(ended: Exit, settings: RunSettings, tail: Tail) -> None:
    """Raises for every end but exit code 0; with that, a child that was killed for its memory was no harm."""
    if ended.code == 0:
        return
    if ended.error:
        raise Permanent(ErrorCode.RUN_FAILED, f"the container could not be started: {ended.error}")
    if ended.is_out_of_memory:
        raise Permanent(
            ErrorCode.OUT_OF_MEMORY,
            f"the container needed more memory than kinds.run.memory_bytes = {settings.memory_bytes} bytes and was "
            f"killed (exit code {ended.code}); let it use less, or ask the operator for more",
        )
    last = tail.lines()
    words = f"the last that it printed:\n{last}" if last else "it printed nothing that would tell why"
    raise Permanent(
        ErrorCode.RUN_FAILED, f"the container exited with code {ended.code}{_signal(ended.code, settings)}; {words}"
    )


def _signal(code: int, settings: RunSettings) -> str:
    try:
        name = signal.Signals(code - SIGNALLED).name
    except ValueError:
        return ""
    if name == "SIGXFSZ":
        return f" ({name}: a file grew past kinds.run.file_max_bytes = {settings.file_max_bytes} bytes)"
    if name == "SIGKILL":
        # A busy engine does not always tell that memory was the reason.
        return f" ({name}: most often for want of memory, of which it has {settings.memory_bytes} bytes)"
    return f" ({name})"
