"""Bounds on what a user's container may take, and on how long the phases of a run may last.

What a run works with.

What a run is asked to do: a Dockerfile, judged before the job is kept.

What a run has measured, read from the file that its container wrote: bytes from a stranger.

Strict JSON (RFC 8259) in UTF-8: one object with a finite number as `perf`. The whole object is kept, so what another
reader could take for something else is refused: a name given twice, NaN, a number beyond the range of doubles, half a
surrogate pair.

The collecting phase: the file that the container left, read without unpacking, kept in the checkpoint.

The running phase: the container within its bounds, its output live in the job's log, its end judged.

The `run` kind: build → run sandboxed → collect → purge, each phase resumable from its checkpoint.
"""

import asyncio
import json
import math
import signal
import time
from collections.abc import AsyncIterable, Collection, Iterable, Mapping
from contextlib import aclosing
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from imagejobd.dockerfile.policy import Policy
from imagejobd.engine import sandbox
from imagejobd.engine.container import CREATE_TIMEOUT_S
from imagejobd.engine.sandbox import DATA_PATH, Exit, Output, Sandbox, SandboxLimits
from imagejobd.engine.settings import Network
from imagejobd.engine.stream import Tail
from imagejobd.jobs.shared.build import BuildOptions, BuildTools, BuiltImage, build_image
from imagejobd.jobs.shared.context import Context
from imagejobd.jobs.shared.purge import leftovers, ours, purge, purge_surely
from imagejobd.model.bounds import GIB, KIB, MIB, Bytes, Seconds
from imagejobd.model.errors import ENGINE, ErrorCode, NotFound, Permanent, Temporary, invalid
from imagejobd.model.failpoint import failpoint
from imagejobd.model.job import Job, Json, NewJob
from imagejobd.model.kind import Accepted, JobContext, Upload

# The engine takes no less memory or CPU. The other two leave room for what starts a container, of which runc 1.3 alone
# has 24 files open, its init and a shell.
Memory = Annotated[int, Meta(ge=6 * MIB)]
Cpus = Annotated[float, Meta(ge=0.01)]
Pids = Annotated[int, Meta(ge=8)]
Files = Annotated[int, Meta(ge=64)]


class RunSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[kinds.run]`. The container never has a network; `network` is that of the RUN steps of its build.

    `timeout_s` is how long the container may run. `file_max_bytes` bounds each file that it writes, `tmp_max_bytes` all
    of /tmp, within `memory_bytes`. `disk_free_min_bytes`: with less
    than that left on the engine's disk, what runs is stopped. `output_max_bytes` of its output go to the log.
    """

    memory_bytes: Memory = 512 * MIB
    pids: Pids = 256
    cpus: Cpus = 1.0
    timeout_s: Seconds = 600.0
    network: Network | None = None
    runtime: str | None = None
    files: Files = 1024
    file_max_bytes: Bytes = 256 * MIB
    tmp_max_bytes: Bytes = 64 * MIB
    disk_free_min_bytes: Bytes = GIB
    output_max_bytes: Bytes = 8 * MIB
    perf_max_bytes: Bytes = 256 * KIB
    build_timeout_s: Seconds = 1800.0
    collect_timeout_s: Seconds = 60.0
    purge_timeout_s: Seconds = 300.0

    @property
    def limits(self) -> SandboxLimits:
        return SandboxLimits(
            memory_bytes=self.memory_bytes,
            cpus=self.cpus,
            pids=self.pids,
            files=self.files,
            file_max_bytes=self.file_max_bytes,
            tmp_max_bytes=self.tmp_max_bytes,
            disk_free_min_bytes=self.disk_free_min_bytes,
            runtime=self.runtime,
        )


class Tools(msgspec.Struct, frozen=True, kw_only=True):
    """One set for the whole daemon."""

    building: BuildTools
    settings: RunSettings


# Stands for the job's id, which it does not have yet: FROM may name ${version}. The build judges again with the real
# one; this one is constant, so that a Dockerfile which comes again need not be read again.
ANY_VERSION = "00000000-0000-7000-8000-000000000000"


class RunSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A run as it is stored."""

    dockerfile: str


def parse(spec: Json, *, policy: Policy, knows_heredocs: bool = True) -> Accepted:
    """Check a caller's spec for an engine that knows heredocs or not. Raises `Permanent(invalid | policy | too_large)`
    that names the field, or the Dockerfile's line."""
    try:
        request = msgspec.convert(spec, RunSpec)
    except msgspec.ValidationError as error:
        raise invalid(f"spec: {error}") from None
    if not request.dockerfile.strip():
        raise invalid("spec.dockerfile is empty; a run needs the text of a Dockerfile")
    policy.check(request.dockerfile, own_args=own_args(ANY_VERSION), knows_heredocs=knows_heredocs)
    return Accepted(spec=msgspec.to_builtins(request))


def own_args(uuid: str) -> dict[str, str]:
    """What a Dockerfile is told of its job: an image that declares `ARG version` may name its result by it."""
    return {"version": uuid}


DEPTH_MAX = 64
VALUES_MAX = 20_000
# Within the range of doubles, and of what Python turns into an integer at all.
INTEGER_MAX_CHARS = 300
SHOWN_MAX_CHARS = 80


_TOO_DEEP = f"it is nested deeper than {DEPTH_MAX} levels"


class _Unusable(ValueError):
    """What is wrong with the file, in words that end a sentence."""


class Result(msgspec.Struct, frozen=True):
    """The result of a job, as it is stored: the one number, and the object that it came in."""

    perf: float
    metrics: Json


def parse_perf(data: bytes, path: str) -> Result:
    """Read the content of the file `path`. Raises `Permanent(result_invalid)` that names it and what is wrong."""
    try:
        metrics = _object(data)
        return Result(_perf(metrics), metrics)
    except _Unusable as reason:
        raise Permanent(
            ErrorCode.RESULT_INVALID,
            f'{path}: {reason}; the container must write one JSON object such as {{"perf": 0.99}}',
        ) from None


def _object(data: bytes) -> Json:
    try:
        value = json.loads(
            data.decode(),
            object_pairs_hook=_members,
            parse_constant=_constant,
            parse_float=_float,
            parse_int=_integer,
        )
    except json.JSONDecodeError as error:
        raise _Unusable(f"it is not JSON: {error}") from None
    except RecursionError:
        raise _Unusable(_TOO_DEEP) from None
    except UnicodeDecodeError as error:
        raise _Unusable(f"it is not UTF-8: {error.reason} at byte {error.start}") from None
    if not isinstance(value, dict):
        raise _Unusable("it holds no JSON object")
    _check_size(value)
    _check_text(value)
    return value


def _perf(metrics: Json) -> float:
    if "perf" not in metrics:
        raise _Unusable("the object has no perf")
    perf = metrics["perf"]
    if isinstance(perf, bool) or not isinstance(perf, int | float):
        raise _Unusable(f"perf is {_shown(perf)}, which is not a number")
    return float(perf)


def _members(pairs: Iterable[tuple[str, Any]]) -> Json:
    members: Json = {}
    for name, value in pairs:
        if name in members:
            raise _Unusable(f"the name {name[:SHOWN_MAX_CHARS]!a} is given twice in one object")
        members[name] = value
    return members


def _constant(name: str) -> Any:
    raise _Unusable(f"{name} is not a finite number")


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _Unusable(f"{text[:SHOWN_MAX_CHARS]} is not a finite number")
    return number


def _integer(text: str) -> int:
    if len(text) > INTEGER_MAX_CHARS:
        raise _Unusable(f"a number has more than {INTEGER_MAX_CHARS} digits")
    return int(text)


def _check_size(value: Json) -> None:
    """Walk it level by level: both bounds hold for what is read from the store again and again."""
    containers: list[Json | list[Any]] = [value]
    depth = values = 0
    while containers:
        depth += 1
        inner = [item for each in containers for item in (each.values() if isinstance(each, dict) else each)]
        values += len(inner)
        if depth > DEPTH_MAX:
            raise _Unusable(_TOO_DEEP)
        if values > VALUES_MAX:
            raise _Unusable(f"it holds more than {VALUES_MAX} values")
        containers = [item for item in inner if isinstance(item, dict | list)]


def _check_text(value: Json) -> None:
    try:
        msgspec.json.encode(value)
    except UnicodeEncodeError:
        raise _Unusable("a string in it holds half a surrogate pair") from None


def _shown(value: Any) -> str:
    return ascii(msgspec.json.encode(value)[:SHOWN_MAX_CHARS].decode(errors="ignore"))


LOOKS = 2
SECOND_LOOK_S = 0.5


async def collect(tools: Tools, ctx: JobContext, container: Sandbox) -> None:
    """Save the result of the ended container. Raises `Permanent(result_missing | result_invalid)`."""
    settings = tools.settings
    async with ctx.phase("collecting", timeout_s=settings.collect_timeout_s):
        result = await _read(container, ctx.job.uuid, max_bytes=settings.perf_max_bytes)
        await ctx.save(collected=msgspec.to_builtins(result))
    failpoint("after_collect")


async def _read(container: Sandbox, uuid: str, *, max_bytes: int) -> Result:
    """From the file of this very job where there is one; then another one of a fixed name is not looked at."""
    names = (f"perf-{uuid}.json", "perf.json")
    for look in range(LOOKS):
        # A busy engine has been seen to miss what it then found: a job must not fail by that.
        await asyncio.sleep(SECOND_LOOK_S if look else 0)
        for name in names:
            data = await container.read_data(name, max_bytes=max_bytes)
            if data is not None:
                return parse_perf(data, f"{DATA_PATH}/{name}")
    paths = " nor ".join(f"{DATA_PATH}/{name}" for name in names)
    raise Permanent(
        ErrorCode.RESULT_MISSING,
        f'the container wrote neither {paths}; it must write a JSON object such as {{"perf": 0.99}} to one of them',
    )


# What the engine may take to make the container, and to take down one whose time is over.
ENGINE_TIMEOUT_S = CREATE_TIMEOUT_S + 120.0
# A shell, and the engine's init, report a child that a signal has ended as 128 and the signal's number.
SIGNALLED = 128


async def run_image(tools: Tools, ctx: JobContext, image: BuiltImage) -> Sandbox:
    """Run the image to its end; the container that ended well, for what it has left at `/data`.

    Raises `Permanent(run_failed | out_of_memory | timeout)`.
    """
    settings = tools.settings
    async with ctx.phase("running", timeout_s=settings.timeout_s + ENGINE_TIMEOUT_S):
        container = await _create(tools, ctx, image)
        await ctx.log(f"running {image.tag}\n")
        tail = Tail()
        began = time.monotonic()
        ended = await _watch(ctx, container, settings, tail)
        await ctx.log(f"exited with code {ended.code} after {time.monotonic() - began:.1f} s\n")
        _judge(ended, settings, tail)
    failpoint("after_run")
    return container


async def _create(tools: Tools, ctx: JobContext, image: BuiltImage) -> Sandbox:
    job, limits = ctx.job, tools.settings.limits
    try:
        return await sandbox.create(
            tools.building.engine, uuid=job.uuid, attempt=job.attempt, image=image.tag, limits=limits
        )
    except NotFound as fault:
        why = "somebody removed the built image from the engine; it has to be built again"
        raise Temporary(ErrorCode.CONFLICT, why) from fault


async def _watch(ctx: JobContext, container: Sandbox, settings: RunSettings, tail: Tail) -> Exit:
    """Write its output down until it ends; killed when its time is over."""
    running = container.run(output_max_bytes=settings.output_max_bytes, timeout_s=settings.timeout_s)
    try:
        async with aclosing(running) as events:
            return await _write_down(ctx, events, tail)
    except Permanent as fault:
        if fault.code is not ErrorCode.TIMEOUT:
            raise
        raise Permanent(
            ErrorCode.TIMEOUT,
            f"the container ran longer than kinds.run.timeout_s = {settings.timeout_s:g} s and was killed; "
            "let it do less, or ask the operator for more time",
        ) from fault


async def _write_down(ctx: JobContext, events: AsyncIterable[Output | Exit], tail: Tail) -> Exit:
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
        ctx.progress(output_bytes=output_bytes)
        await ctx.log(text)
    if not text.endswith("\n"):
        await ctx.log("\n")
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


class RunKind:
    """Implements `model.work.Kind`."""

    name = "run"
    uses_engine = True

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._building = tools.building

    async def receive(self, body: AsyncIterable[bytes]) -> Upload:
        raise _no_context()

    def release(self, upload: Upload) -> None:
        """There are no uploads."""

    def parse(self, spec: Json, upload: Upload | None = None) -> Accepted:
        if upload is not None:
            raise _no_context()
        engine = self._building.engine
        # Nothing is asked at the door: what an engine that is not known yet would refuse, the build refuses.
        knows_heredocs = engine.info is None or engine.info.knows_heredocs(engine.settings.builder)
        return parse(spec, policy=self._building.policy, knows_heredocs=knows_heredocs)

    async def preflight(self, job: NewJob) -> None:
        """A build's bases are asked for when it runs."""

    def hosts(self, job: Job) -> Collection[str]:
        """None: which bases the engine has to pull, only the build finds out."""
        return ()

    async def run(self, ctx: JobContext) -> Json:
        # After the metrics are kept the purge takes everything away, so an attempt that resumes there finds nothing.
        if "collected" not in ctx.checkpoint:
            await self._measure(ctx)
        failpoint("before_purge")
        await purge_surely(ctx, self.discard, timeout_s=self._tools.settings.purge_timeout_s)
        failpoint("after_purge")
        result: Json = ctx.checkpoint["collected"]
        return result

    async def _measure(self, ctx: JobContext) -> None:
        settings = self._tools.settings
        spec = msgspec.convert(ctx.job.spec, RunSpec)
        options = BuildOptions(
            timeout_s=settings.build_timeout_s,
            own_args=own_args(ctx.job.uuid),
            network=settings.network,
        )
        context = Context(digest=None, dockerfile=spec.dockerfile)
        image = await build_image(self._building, ctx, options, context, self._building.access(ctx))
        container = await run_image(self._tools, ctx, image)
        await collect(self._tools, ctx, container)

    async def leftovers(self) -> set[str]:
        sandboxes = await sandbox.leftovers(self._building.engine)
        return await ours(self._building, sandboxes) | await leftovers(self._building)

    async def discard(self, uuid: str, checkpoint: Mapping[str, Any]) -> None:
        """The container first: as long as it is there, the engine does not let go of its image."""
        await sandbox.discard(self._building.engine, uuid)
        await purge(self._building, uuid)


def _no_context() -> Permanent:
    return invalid("a run has no context: it takes one Dockerfile, as spec.dockerfile")
