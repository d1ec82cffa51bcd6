"""Building an image: one streamed request, for both of the engine's builders, as events; and the build cache.

The engine stops a build only when it notices that nobody reads the answer, so leaving `build` in any way closes it, and
BuildKit is asked to cancel besides. Bases are not pulled here (`base_images.py` pins them), and no labels are put on
images beyond the user's own: they would change the digest.
"""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from imagejobd.engine import errors
from imagejobd.engine.buildkit import IMAGES_ARG, BuildkitProgress, control
from imagejobd.engine.classic import DOCKERFILE, ClassicProgress, classic_body, note_remains, remove_remains
from imagejobd.engine.client import Engine
from imagejobd.engine.protobuf import as_bytes, as_int, as_text, as_time, fields
from imagejobd.engine.session import Folder, session
from imagejobd.engine.settings import Builder, Network
from imagejobd.engine.stream import BuildEvent, Built, Step, messages
from imagejobd.model.concurrency import uninterrupted
from imagejobd.model.entry import Entry
from imagejobd.model.errors import ErrorCode, Fault, Permanent, Temporary
from imagejobd.model.ownership import PIN_PATTERN

# Between two blocks, and between two looks at whether it is over, of a build that reports nothing any more.
STUCK_PAUSE_S = 0.1
STUCK_LOOK_S = 2.0
# Between the first of these looks and the last the id of an image has come, also on a machine that is busy.
STUCK_IDLE_LOOKS = 4
# How long the end of a cancelled build waits for the engine; the closed connection stops it anyway.
CANCEL_TIMEOUT_S = 0.7
# Between two tries to remove what the engine, which is just ending the build, still uses.
REMOVE_RETRY_S = 0.05

_CACHE_NAMESPACE_ARG = "BUILDKIT_CACHE_MOUNT_NS"
# How BuildKit calls what it took in of the folder of that name, which it uses as long as the build lasts.
_DOCKERFILE_RECORD = "local source for dockerfile"
_HUB = "docker.io/"
# No text that was judged can name what some build has pinned (`base_images.py`).
_ANY_PIN = re.compile(rf"{PIN_PATTERN}(?:@sha256:[0-9a-f]{{64}})?")
_OF_ANOTHER_BUILD = "a base of this build"
# `[internal] load metadata for x`, `[stage 1/2] FROM x@sha256:…`, `FROM x` and `resolve image config for x`, which
# fetches a frontend. What a user writes stands behind the bracket and the name of an instruction.
_RESOLVED = re.compile(
    r"\[internal\] load metadata for (?P<metadata>\S+)|\[(?:[^\]]* )?\d+/\d+\] FROM (?P<stage>\S+).*"
    r"|(?:\[[^\]]*\] )?FROM (?P<image>\S+).*|resolve image config for (?P<frontend>\S+)",
    re.DOTALL,
)

_Progress = BuildkitProgress | ClassicProgress


class BuildRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One build. All of it was checked before: the engine is not asked to judge names, paths or policy.

    `context`: path of an uncompressed tar on this machine, of which `entries` are all members in the order of a walk.
    `dockerfile`: the text to build, whatever the context has of that name.
    `build_id`: unique among the builds that go on; by it BuildKit is asked to cancel.
    `tags`: names for the result, with tag; none leaves it unnamed.
    `bases`: the literal names of the images that the Dockerfile names, each with what the user calls it.
    `cache_scope`: a name, of letters and digits, of those who share steps and cache mounts; "" is everybody.
    """

    context: Path
    entries: Sequence[Entry]
    dockerfile: str
    build_id: str
    builder: Builder
    network: Network
    tags: tuple[str, ...] = ()
    target: str = ""
    build_args: Mapping[str, str] = {}
    labels: Mapping[str, str] = {}
    platform: str = ""
    no_cache: bool = False
    bases: Mapping[str, str] = {}
    cache_scope: str = ""


class BaseNames:
    """The literal names of a build's bases, each with what the user calls it: the only ones that it may resolve.

    The Dockerfile that is sent names nothing else, so an image of another name means that the engine has read it in a
    way of its own. BuildKit reports each image that it resolves as a step before it uses it. Where two builds at once
    start from one image, BuildKit (from 23 on) does that once, and reports both by the name that one has given it.
    """

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names
        literal = "|".join(map(re.escape, names))
        self._pattern = re.compile(rf"(?:docker\.io/)?({literal})(?:@sha256:[0-9a-f]{{64}})?") if names else None

    def check(self, event: BuildEvent) -> None:
        """Raise `Permanent(policy)` for a step that resolves an image which is none of them."""
        match = _RESOLVED.fullmatch(event.name) if isinstance(event, Step) else None
        if match is None:
            return
        image = next(filter(None, match.groups()))
        name = image.removeprefix("docker-image://").removeprefix(_HUB).partition("@")[0]
        # What builds share was resolved for this one, by the name here, in a step before.
        is_shared = match["metadata"] is None and match["frontend"] is None and re.fullmatch(PIN_PATTERN, name)
        if name not in self._names and not is_shared:
            why = f"the engine resolves image {image[:200]}, which was not checked for this build"
            raise Permanent(ErrorCode.POLICY, why)

    def readable(self, event: BuildEvent) -> BuildEvent:
        """The event with the user's own names; what a step prints stays as it is."""
        if not isinstance(event, Step):
            return event
        error = event.error and self.translate(event.error)
        return msgspec.structs.replace(event, name=self.translate(event.name), error=error)

    def translate(self, text: str) -> str:
        """`text` with the user's own names, and without those of other builds."""
        if self._pattern:
            text = self._pattern.sub(lambda match: self._names[match.group(1)], text)
        return _ANY_PIN.sub(_OF_ANOTHER_BUILD, text)


class _CacheReport(msgspec.Struct, frozen=True):
    freed_bytes: int = msgspec.field(name="SpaceReclaimed", default=0)


async def build(engine: Engine, request: BuildRequest) -> AsyncGenerator[BuildEvent, None]:
    """Build an image; the last event is `Built`.

    Read it under `contextlib.aclosing`: closing it, like cancelling the task that reads it, stops the work in the
    engine within 2 s. Raises `Permanent(build_failed)` with the exit code and last lines of the step that failed,
    `Temporary(engine_unavailable)` when the engine goes away, and `Temporary(registry_unavailable | storage_full)`.
    """
    progress = BuildkitProgress() if request.builder == "buildkit" else ClassicProgress()
    bases = BaseNames(request.bases)
    try:
        async with contextlib.aclosing(_run(engine, request, progress)) as events:
            async for event in events:
                if request.builder == "buildkit":
                    bases.check(event)
                yield bases.readable(event)
    except Permanent as fault:
        fault = fault.with_message(bases.translate(fault.message))
        explained = await _explained(engine, fault, progress.last_words())
        if isinstance(explained, Permanent):
            for event in progress.fail(fault.message):
                yield event
        raise explained from fault
    if not progress.image_id:
        raise errors.ended_early("the build named no image id")
    yield Built(progress.image_id)


async def prune_build_cache(engine: Engine, keep_bytes: int) -> int:
    """Remove the least recently used records beyond `keep_bytes`; returns the bytes freed. What is in use stays.

    BuildKit keeps every context and layer until then; nothing else ever removes them.
    """
    # The same by its name up to API 1.47 and by its name from 1.48 on; what an engine does not know it ignores.
    params = [("keep-storage", str(keep_bytes)), ("reserved-space", str(keep_bytes)), ("all", "1")]
    timeout_s = engine.settings.prune_timeout_s
    report = await engine.request_json("POST", "build/prune", _CacheReport, params=params, timeout_s=timeout_s)
    return report.freed_bytes


async def _run(engine: Engine, request: BuildRequest, progress: _Progress) -> AsyncGenerator[BuildEvent, None]:
    began = datetime.now(UTC)
    end_watch = _EndWatch(engine)
    try:
        async with _answer(engine, request) as blocks:
            async for batch in messages(blocks, errors.of_build):
                for event in progress.read(batch):
                    yield event
                if isinstance(progress, BuildkitProgress) and progress.is_stuck:
                    if progress.image_id:
                        break
                    if await end_watch.is_over(progress.dockerfile_span):
                        raise progress.lost()
    except (asyncio.CancelledError, GeneratorExit):
        # The response is closed by now; a second cancellation must not cut short what makes sure of it.
        await uninterrupted(_stop(engine, request, progress, began), grace_s=CANCEL_TIMEOUT_S)
        raise
    except Fault:
        await _tidy(engine, progress, began)
        raise
    await _tidy(engine, progress, began)


@contextlib.asynccontextmanager
async def _answer(engine: Engine, request: BuildRequest) -> AsyncIterator[AsyncIterator[bytes]]:
    """Start the build; its progress in blocks. BuildKit reads Dockerfile and context over a session, as two folders:
    in a tar they would be one, and what is copied of it would be what is built."""
    params = _params(request)
    async with contextlib.AsyncExitStack() as stack:
        body: AsyncGenerator[bytes, None] | None = None
        if request.builder == "buildkit":
            folders = {
                "context": Folder(request.entries, request.context),
                "dockerfile": Folder.of_file("Dockerfile", request.dockerfile.encode()),
            }
            session_id = await stack.enter_async_context(session(engine, folders))
            params += [("remote", "client-session"), ("session", session_id)]
        else:
            body = await classic_body(request.context, request.entries, request.dockerfile)
            await stack.enter_async_context(contextlib.aclosing(body))
            params += [("dockerfile", DOCKERFILE)]
        headers = {"Content-Type": "application/x-tar"}
        answer = engine.exchange(
            "POST", "build", params=params, headers=headers, body=body, judge=errors.of_build, idle_timeout_s=None
        )
        yield (await stack.enter_async_context(answer)).blocks


class _EndWatch:
    """Finds out from the build cache that a build is over which does not report it (`BuildkitProgress.is_stuck`)."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._next_look_s = 0.0
        self._idle_looks = 0

    async def is_over(self, dockerfile_span: tuple[float, float] | None) -> bool:
        """To be asked at each block that comes: the stream is read slowly, for it is endless and mostly nothing.

        A build goes on while a Dockerfile is in use that came in when its own did. What cannot be known counts as yes.
        """
        await asyncio.sleep(STUCK_PAUSE_S)
        now_s = time.monotonic()
        if now_s < self._next_look_s or dockerfile_span is None:
            return False
        self._next_look_s = now_s + STUCK_LOOK_S
        first_s, last_s = dockerfile_span
        try:
            is_going_on = any(first_s <= time_s <= last_s for time_s in await _dockerfile_times(self._engine))
        except Fault:
            is_going_on = True
        self._idle_looks = 0 if is_going_on else self._idle_looks + 1
        return self._idle_looks >= STUCK_IDLE_LOOKS


async def _dockerfile_times(engine: Engine) -> list[float]:
    """When the Dockerfiles of all builds that go on came in, in seconds since the epoch by the engine's clock."""
    times: list[float] = []
    async with control(engine) as service, contextlib.aclosing(service.call("DiskUsage")) as answers:
        async for answer in answers:
            # DiskUsageResponse: 1 is a UsageRecord, of which 3 is InUse, 6 CreatedAt, 9 the Description.
            for record in (dict(fields(as_bytes(value))) for number, value in fields(answer) if number == 1):
                if as_int(record.get(3, 0)) and as_text(record.get(9, b"")) == _DOCKERFILE_RECORD:
                    times.append(as_time(record.get(6)) or 0.0)
    return times


async def _stop(engine: Engine, request: BuildRequest, progress: _Progress, began: datetime) -> None:
    """Ask the engine to stop the build, besides closing its answer. Failing that is no error: the closing remains.

    BuildKit takes up to 2 s to notice a closed connection and 0.3 s to obey. The classic builder kills its container as
    it notices, but one that is just being started survives that kill (20.10) and would run on: it is removed here.
    """
    with contextlib.suppress(Fault):
        if isinstance(progress, BuildkitProgress):
            await engine.request("POST", "build/cancel", params=[("id", request.build_id)])
            return
        remains = note_remains(engine, progress, began=began, is_built=False)
        while True:
            await remove_remains(engine)
            if engine.remains.keys().isdisjoint(remains):
                return
            await asyncio.sleep(REMOVE_RETRY_S)


async def _tidy(engine: Engine, progress: _Progress, began: datetime) -> None:
    """Remove what a build that has ended by itself has left; of an engine that went away the sweep does."""
    if isinstance(progress, ClassicProgress):
        note_remains(engine, progress, began=began, is_built=bool(progress.image_id))
        if engine.info is not None:
            with contextlib.suppress(Fault):
                await remove_remains(engine)


async def _explained(engine: Engine, fault: Permanent, last_words: tuple[str, str] | None) -> Fault:
    """The fault as the user shall read it.

    An engine that shuts down kills the steps that run and then reports them as failed (`exit code: 137`), so a failure
    counts as the build's own only while the engine still takes connections.
    """
    if fault.code is not ErrorCode.BUILD_FAILED:
        return fault
    try:
        await engine.ping()
    except Temporary as absence:
        return absence
    if last_words is None:
        return fault
    step, lines = last_words
    return fault.with_message(f"{fault.message}\nlast output of {step}:\n{lines}")


def _params(request: BuildRequest) -> list[tuple[str, str]]:
    is_buildkit = request.builder == "buildkit"
    build_args = dict(request.build_args)
    if is_buildkit and request.tags:
        build_args[IMAGES_ARG] = ",".join(request.tags)
    params = [("t", tag) for tag in request.tags]
    if is_buildkit and request.cache_scope:
        build_args[_CACHE_NAMESPACE_ARG] = request.cache_scope
        # Part of the cache key of every RUN, in all versions; what the namespace and proxy args change is not.
        params.append(("extrahosts", f"{request.cache_scope}.imagejobd.invalid:127.0.0.1"))
    params += [
        ("version", "2" if is_buildkit else "1"),
        ("networkmode", request.network),
        ("buildargs", msgspec.json.encode(build_args).decode()),
        ("labels", msgspec.json.encode(dict(request.labels)).decode()),
        # Without these the classic builder leaves the containers of its steps behind.
        ("rm", "1"),
        ("forcerm", "1"),
    ]
    optional = {
        "buildid": request.build_id if is_buildkit else "",
        "target": request.target,
        "platform": request.platform,
        # The classic builder has no key of its own for its steps: there nobody gets another's.
        "nocache": "1" if request.no_cache or (request.cache_scope and not is_buildkit) else "",
    }
    return params + [(name, value) for name, value in optional.items() if value]
