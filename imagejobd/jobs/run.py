"""The `run` kind: build → run sandboxed → collect → purge, each phase resumable from its checkpoint.

What a run has measured is in a file that its container wrote: bytes from a stranger. It is read as strict JSON
(RFC 8259) in UTF-8: one object with a finite number as `perf`. The whole object is kept, so what another reader could
take for something else is refused: a name given twice, NaN, a number beyond the range of doubles, half a surrogate
pair.
"""

import asyncio
import json
import math
import signal
import time
from collections.abc import AsyncIterable, Iterable, Mapping
from contextlib import aclosing
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from imagejobd.engine import sandbox
from imagejobd.engine.container import CREATE_TIMEOUT_S
from imagejobd.engine.sandbox import DATA_PATH, Exit, Sandbox, SandboxLimits
from imagejobd.engine.settings import Network
from imagejobd.engine.stream import Tail
from imagejobd.jobs.shared.builder import (
    BuildingKind,
    BuildOptions,
    BuiltImage,
    ImageBuilder,
)
from imagejobd.jobs.shared.context import Context
from imagejobd.jobs.shared.push import image_removed_is_temporary
from imagejobd.model.bounds import GIB, KIB, MIB, Bytes, Seconds
from imagejobd.model.errors import ENGINE, ErrorCode, Permanent, Temporary, invalid
from imagejobd.model.failpoint import failpoint
from imagejobd.model.job import Json
from imagejobd.model.kind import Accepted, JobContext, Upload

# Stands for the job's id, which it does not have yet: FROM may name ${version}. The build judges again with the real
# one; this one is constant, so that a Dockerfile which comes again need not be read again.
ANY_VERSION = "00000000-0000-7000-8000-000000000000"

# What the engine may take to make the container, and to take down one whose time is over.
ENGINE_TIMEOUT_S = CREATE_TIMEOUT_S + 120.0
# A shell, and the engine's init, report a child that a signal has ended as 128 and the signal's number.
SIGNALLED = 128

# A busy engine has been seen to miss a file that it then had: a job must not fail by that.
READS = 2
SECOND_READ_AFTER_S = 0.5

DEPTH_MAX = 64
VALUES_MAX = 20_000
# Within the range of doubles, and of what Python turns into an integer at all.
INTEGER_MAX_CHARS = 300
SHOWN_MAX_CHARS = 80
_TOO_DEEP = f"it is nested deeper than {DEPTH_MAX} levels"

# The engine takes no less memory or CPU. The other two leave room for what starts a container, of which runc 1.3 alone
# has 24 files open, its init and a shell.
Memory = Annotated[int, Meta(ge=6 * MIB)]
Cpus = Annotated[float, Meta(ge=0.01)]
Pids = Annotated[int, Meta(ge=8)]
Files = Annotated[int, Meta(ge=64)]


class RunSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[kinds.run]`. The container never has a network; `network` is that of the RUN steps of its build.

    `timeout_s` is how long the container may run. `file_max_bytes` bounds each file that it writes, `tmp_max_bytes` all
    of /tmp, within `memory_bytes`. With less than `disk_free_min_bytes` free on the engine's disk it is stopped.
    `output_max_bytes` of its output go to the log.
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


class RunSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A run as it is stored."""

    dockerfile: str


class Result(msgspec.Struct, frozen=True):
    """The result of a job, as it is stored: the one number, and the object that it came in."""

    perf: float
    metrics: Json


class RunKind(BuildingKind):
    name = "run"

    def __init__(self, builder: ImageBuilder, settings: RunSettings) -> None:
        super().__init__(builder)
        self._settings = settings

    async def receive(self, body: AsyncIterable[bytes], spec: Json) -> Upload:
        raise invalid("a run has no context: it takes one Dockerfile, as spec.dockerfile")

    def parse(self, spec: Json, upload: Upload | None = None) -> Accepted:
        """Raises `Permanent(invalid | policy | too_large)` that names the field, or the Dockerfile's line."""
        try:
            request = msgspec.convert(spec, RunSpec)
        except msgspec.ValidationError as error:
            raise invalid(f"spec: {error}") from None
        if not request.dockerfile.strip():
            raise invalid("spec.dockerfile is empty; a run needs the text of a Dockerfile")
        self._builder.policy.check(
            request.dockerfile,
            own_args={"version": ANY_VERSION},
            has_context=False,
            knows_heredocs=self._builder.knows_heredocs,
        )
        return Accepted(spec=msgspec.to_builtins(request))

    async def run(self, ctx: JobContext) -> Json:
        # After the metrics are kept the purge takes everything away: an attempt that resumes there has nothing to run.
        if "collected" not in ctx.checkpoint:
            options = BuildOptions(
                timeout_s=self._settings.build_timeout_s,
                # An image that declares `ARG version` may name its result by it.
                own_args={"version": ctx.job.uuid},
                network=self._settings.network,
            )
            context = Context(digest=None, dockerfile=msgspec.convert(ctx.job.spec, RunSpec).dockerfile)
            image = await self._builder.build(ctx, options, context, self._builder.access(ctx))
            container = await self._run_image(ctx, image)
            await self._collect(ctx, container)
        await self.purge(ctx, timeout_s=self._settings.purge_timeout_s)
        result: Json = ctx.checkpoint["collected"]
        return result

    async def leftovers(self) -> set[str]:
        sandboxes = await sandbox.leftovers(self._builder.engine)
        return await self._builder.ours(sandboxes) | await super().leftovers()

    async def discard(self, uuid: str, checkpoint: Mapping[str, Any]) -> None:
        """The container first: as long as it is there, the engine does not let go of its image."""
        await sandbox.discard(self._builder.engine, uuid)
        await super().discard(uuid, checkpoint)

    async def _run_image(self, ctx: JobContext, image: BuiltImage) -> Sandbox:
        """The running phase: the image to its end; the container that ended well, for what it has left at `/data`.

        Raises `Permanent(run_failed | out_of_memory | timeout)`.
        """
        job, settings = ctx.job, self._settings
        async with ctx.phase("running", timeout_s=settings.timeout_s + ENGINE_TIMEOUT_S):
            with image_removed_is_temporary():
                container = await sandbox.create(
                    self._builder.engine, uuid=job.uuid, attempt=job.attempt, image=image.tag, limits=settings.limits
                )
            await ctx.log(f"running {image.tag}\n")
            tail = Tail()
            began = time.monotonic()
            end = await _run_container(ctx, container, settings, tail)
            await ctx.log(f"exited with code {end.code} after {time.monotonic() - began:.1f} s\n")
            _check_exit(end, settings, tail)
        failpoint("after_run")
        return container

    async def _collect(self, ctx: JobContext, container: Sandbox) -> None:
        """The collecting phase: the file that the container left, read without unpacking, into the checkpoint.

        Raises `Permanent(result_missing | result_invalid)`.
        """
        async with ctx.phase("collecting", timeout_s=self._settings.collect_timeout_s):
            result = await _read_result(container, ctx.job.uuid, max_bytes=self._settings.perf_max_bytes)
            await ctx.save(collected=msgspec.to_builtins(result))
        failpoint("after_collect")


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


async def _run_container(ctx: JobContext, container: Sandbox, settings: RunSettings, tail: Tail) -> Exit:
    """Log its output to the very end: a reader that leaves before has it killed, as it is when its time is over."""
    end: Exit | None = None
    output_bytes = 0
    text = "\n"
    running = container.run(output_max_bytes=settings.output_max_bytes, timeout_s=settings.timeout_s)
    try:
        async with aclosing(running) as events:
            async for event in events:
                if isinstance(event, Exit):
                    end = event
                    continue
                failpoint("while_running")
                text = event.text
                tail.add(text)
                output_bytes += len(text.encode())
                ctx.progress(output_bytes=output_bytes)
                await ctx.log(text)
    except Permanent as fault:
        if fault.code is not ErrorCode.TIMEOUT:
            raise
        raise Permanent(
            ErrorCode.TIMEOUT,
            f"the container ran longer than kinds.run.timeout_s = {settings.timeout_s:g} s and was killed; "
            "let it do less, or ask the operator for more time",
        ) from fault
    if not text.endswith("\n"):
        await ctx.log("\n")
    if end is None:
        raise Temporary(ErrorCode.ENGINE_UNAVAILABLE, "the engine did not say how the container ended", peer=ENGINE)
    return end


def _check_exit(end: Exit, settings: RunSettings, tail: Tail) -> None:
    """Raises for every end but exit code 0; with that, a child that was killed for its memory did no harm."""
    if end.code == 0:
        return
    if end.error:
        raise Permanent(ErrorCode.RUN_FAILED, f"the container could not be started: {end.error}")
    if end.is_out_of_memory:
        raise Permanent(
            ErrorCode.OUT_OF_MEMORY,
            f"the container needed more memory than kinds.run.memory_bytes = {settings.memory_bytes} bytes and was "
            f"killed (exit code {end.code}); let it use less, or ask the operator for more",
        )
    last = tail.lines()
    output = f"the last that it printed:\n{last}" if last else "it printed nothing that explains it"
    raise Permanent(
        ErrorCode.RUN_FAILED, f"the container exited with code {end.code}{_signal(end.code, settings)}; {output}"
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


async def _read_result(container: Sandbox, uuid: str, *, max_bytes: int) -> Result:
    """From the file of this very job where there is one; then another one of a fixed name is not looked at."""
    names = (f"perf-{uuid}.json", "perf.json")
    for read in range(READS):
        await asyncio.sleep(SECOND_READ_AFTER_S if read else 0)
        for name in names:
            data = await container.read_data(name, max_bytes=max_bytes)
            if data is not None:
                return parse_perf(data, f"{DATA_PATH}/{name}")
    paths = " nor ".join(f"{DATA_PATH}/{name}" for name in names)
    raise Permanent(
        ErrorCode.RESULT_MISSING,
        f'the container wrote neither {paths}; it must write a JSON object such as {{"perf": 0.99}} to one of them',
    )


class _Unusable(ValueError):
    """What is wrong with the file, in words that end a sentence."""


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
    try:
        msgspec.json.encode(value)
    except UnicodeEncodeError:
        raise _Unusable("a string in it holds half a surrogate pair") from None
    return value


def _perf(metrics: Json) -> float:
    if "perf" not in metrics:
        raise _Unusable("the object has no perf")
    perf = metrics["perf"]
    if isinstance(perf, bool) or not isinstance(perf, int | float):
        quoted = ascii(msgspec.json.encode(perf)[:SHOWN_MAX_CHARS].decode(errors="ignore"))
        raise _Unusable(f"perf is {quoted}, which is not a number")
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
