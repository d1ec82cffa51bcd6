"""The classic builder's progress made into events. It speaks prose: `Step 2/4 : RUN …`, ` ---> Running in …`.

What a RUN prints goes through the same stream as what the builder says. A step line counts only as the builder sends it
(a message of its own without line end, the next number of the same total), so that a program's output can at worst
mislabel its own lines. No I/O happens here.

What the classic builder is sent: the context, and the Dockerfile to build under a name that no context has.

The builder takes the Dockerfile and `.dockerignore` out of the context before it builds where the latter names them
(`removeDockerfile` in moby's builder/remotecontext/detect.go), so the images see neither the name nor the text. Where
the context has a `.dockerignore` of its own, that gets one more line.

What builds of the classic builder leave in the engine: containers of steps, and images without a name.

The engine removes a step's container unless it goes down meanwhile or just starts it, and keeps the images of all
stages of a build that failed, and of a good one those of all but the last. Their ids stand in nothing but a build's own
output, where a RUN step may print the id of somebody else's. So nothing goes that is older than the build, nor an image
with a name; and an image that another one was built on, or a container made of, the engine keeps itself.
"""

import asyncio
import io
import re
import stat
import tarfile
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

import msgspec
import structlog

from imagejobd.engine.client import Engine
from imagejobd.engine.container import remove_container
from imagejobd.engine.session import Entry
from imagejobd.engine.stream import (
    BuildEvent,
    Message,
    Output,
    OutputStream,
    Step,
    StepState,
    Tail,
)
from imagejobd.model.errors import ENGINE, ErrorCode, Permanent, Temporary, invalid

_STEP = re.compile(r"Step (\d{1,6})/(\d{1,6}) : (.*)", re.DOTALL)
_CHATTER = re.compile(r" ---> .*\n|Removing intermediate container [0-9a-f]{12}\n|Successfully (?:built|tagged) \S+\n")
_RUNNING = re.compile(r" ---> Running in ([0-9a-f]{12})\n")
_IMAGE = re.compile(r" ---> ([0-9a-f]{12})\n")
_CACHED = " ---> Using cache\n"
# The engine wraps each piece of a RUN's stderr in red.
_RED, _PLAIN = "\x1b[91m", "\x1b[0m"
_CHATTER_STARTS = (" ---> ", "Removing", "Successfully")


class ClassicProgress:
    """Reads the messages of one build. `container` is the short id of the one that the current step runs in, `stages`
    are those of the newest image of each stage, the base at first.

    The engine gives no times: `clock` (seconds, monotonic) is read as a step's lines arrive.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.container = ""
        self.stages: list[str] = []
        self._image_id = ""
        self._clock = clock
        self._number = 0
        self._total = 0
        self._name = ""
        self._began = 0.0
        self._is_open = False
        self._is_cached = False
        self._ends_header = False
        self._tail = Tail()
        self._pieces: list[str] = []
        self._stream: OutputStream = "out"

    @property
    def image_id(self) -> str:
        """The result's id; empty before the last step. The engine tells an id at the end of every stage."""
        return self._image_id if self._number == self._total else ""

    def read(self, batch: Iterable[Message]) -> Iterator[BuildEvent]:
        for message in batch:
            if message.stream:
                yield from self._read_text(message.stream)
            elif message.aux:
                self._image_id = message.image_id()
            elif message.status:
                yield message.transfer(self._number)
        yield from self._flush()
        if self.image_id:
            yield from self._end("done")

    def last_words(self) -> tuple[str, str] | None:
        """The name and last lines of the step that was going on, when it had printed something."""
        lines = self._tail.lines()
        return (f"step {self._number} ({self._shown_name})", lines) if lines else None

    def fail(self, error: str) -> Iterator[BuildEvent]:
        """End the step that was going on when the build failed."""
        yield from self._end("failed", error)

    def _read_text(self, text: str) -> Iterator[BuildEvent]:
        if self._ends_header:
            # The line end of `Step 1/4 : …` is a message of its own.
            self._ends_header = False
            if text == "\n":
                return
        if text.startswith("Step ") and (match := self._next_step(text)):
            yield from self._flush()
            yield from self._end("done")
            yield self._begin(match)
        elif text == _CACHED:
            self._is_cached = True
        else:
            # The builder names the container before it starts it: what looks the same later is a program's output.
            if not self.container and (running := _RUNNING.fullmatch(text)):
                self.container = running[1]
            elif self.stages and (image := _IMAGE.fullmatch(text)):
                self.stages[-1] = image[1]
            yield from self._print(text)

    def _print(self, text: str) -> Iterator[BuildEvent]:
        stream: OutputStream = "out"
        if text.startswith(_RED):
            stream, text = "err", text.removeprefix(_RED).removesuffix(_PLAIN)
        if stream != self._stream:
            yield from self._flush()
            self._stream = stream
        self._pieces.append(text)
        if not (text.startswith(_CHATTER_STARTS) and _CHATTER.fullmatch(text)):
            self._tail.add(text)

    def _next_step(self, text: str) -> re.Match[str] | None:
        match = _STEP.fullmatch(text)
        if match is None or text.endswith("\n") or int(match[1]) != self._number + 1:
            return None
        return match if self._total in (0, int(match[2])) else None

    def _begin(self, match: re.Match[str]) -> Step:
        self._number, self._total, self._name = int(match[1]), int(match[2]), match[3]
        self._began, self._image_id, self._tail = self._clock(), "", Tail()
        self.container = ""
        if self._name.upper().startswith("FROM "):
            self.stages.append("")
        self._is_open, self._is_cached, self._ends_header = True, False, True
        return Step(self._number, self._shown_name, "started")

    def _end(self, state: StepState, error: str | None = None) -> Iterator[BuildEvent]:
        if not self._is_open:
            return
        self._is_open = False
        if state == "done" and self._is_cached:
            state = "cached"
        yield Step(self._number, self._shown_name, state, max(0.0, self._clock() - self._began), error)

    @property
    def _shown_name(self) -> str:
        return f"[{self._number}/{self._total}] {self._name}"

    def _flush(self) -> Iterator[BuildEvent]:
        if self._pieces:
            yield Output(self._number, self._stream, "".join(self._pieces))
            self._pieces = []


DOCKERFILE = ".imagejobd.Dockerfile"
IGNORE_FILE_MAX_BYTES = 1 << 20

_IGNORE_FILE = ".dockerignore"
_BLOCK_BYTES = 256 * 1024
# Two blocks of zeros end a tar.
_END_BYTES = 1024


async def classic_body(context: Path, entries: Sequence[Entry], dockerfile: str) -> AsyncGenerator[bytes, None]:
    """The tar to send. Raises `Permanent(invalid)` for a context that has files of these names it cannot have.

    Before it sends: a fault of the body would be told as the connection's.
    """
    return _blocks(context, await asyncio.to_thread(_members, context, entries, dockerfile))


async def _blocks(context: Path, added: bytes) -> AsyncGenerator[bytes, None]:
    left = context.stat().st_size - _END_BYTES
    with context.open("rb", buffering=0) as file:
        while left > 0:
            block = await asyncio.to_thread(file.read, min(_BLOCK_BYTES, left))
            left -= len(block)
            yield block
    # The last of a name is the one that counts.
    yield added


def _members(context: Path, entries: Sequence[Entry], dockerfile: str) -> bytes:
    given = {entry.path: entry for entry in entries}
    if DOCKERFILE.encode() in given:
        raise invalid(f"the context has a file {DOCKERFILE!r}, a name that this service needs; rename it")
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
        _add(tar, tarfile.TarInfo(DOCKERFILE), dockerfile.encode())
        _add(tar, *_ignore_file(context, given))
    return archive.getvalue()


def _add(tar: tarfile.TarFile, member: tarfile.TarInfo, content: bytes) -> None:
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _ignore_file(context: Path, given: Mapping[bytes, Entry]) -> tuple[tarfile.TarInfo, bytes]:
    """The user's own, with the same mode and time and one line more, or one that has itself removed too."""
    member = tarfile.TarInfo(_IGNORE_FILE)
    entry = given.get(_IGNORE_FILE.encode())
    if entry is None:
        return member, f"{_IGNORE_FILE}\n{DOCKERFILE}\n".encode()
    data = given[entry.link] if entry.link and stat.S_ISREG(entry.mode) else entry
    if not stat.S_ISREG(data.mode) or data.size > IGNORE_FILE_MAX_BYTES:
        raise invalid(f"{_IGNORE_FILE} of the context is no regular file of at most {IGNORE_FILE_MAX_BYTES} bytes")
    member.mode, member.mtime = stat.S_IMODE(entry.mode), entry.mtime
    with context.open("rb") as file:
        file.seek(data.offset)
        return member, file.read(data.size) + f"\n{DOCKERFILE}\n".encode()


# What waits to be removed, of all builds; beyond it is left.
REMAINS_MAX_COUNT = 1000

_LEFT_IMAGE, _LEFT_CONTAINER = "image", "container"


class _Image(msgspec.Struct, frozen=True):
    id: str = msgspec.field(name="Id")
    created: datetime = msgspec.field(name="Created")
    tags: list[str] | None = msgspec.field(name="RepoTags", default=None)


log = structlog.get_logger("imagejobd.engine")

# A sort, and a short id.
Remain = tuple[str, str]


def note_remains(engine: Engine, progress: ClassicProgress, *, began: datetime, is_built: bool) -> set[Remain]:
    """Remember what a build that is over may have left, until `remove_remains` has seen it go; returns just that."""
    images = progress.stages[:-1] if is_built else progress.stages
    found = [(_LEFT_CONTAINER, progress.container), *((_LEFT_IMAGE, image) for image in reversed(images))]
    noted = [remain for remain in found if remain[1]][: REMAINS_MAX_COUNT - len(engine.remains)]
    engine.remains.update(dict.fromkeys(noted, began))
    return set(noted)


async def remove_remains(engine: Engine) -> None:
    """Remove what is remembered; what is in use stays so. Raises `Temporary` when the engine is away."""
    for remain, began in list(engine.remains.items()):
        sort, short_id = remain
        try:
            if sort == _LEFT_CONTAINER:
                await remove_container(engine, short_id, created_after=began)
            else:
                await _remove_image(engine, short_id, created_after=began)
        except Temporary as fault:
            if fault.peer == ENGINE:
                raise
            # In use, or in trouble: the others are not kept by it.
        except Permanent as fault:
            log.warning("cannot remove what a build has left", remain=short_id, error=fault.message)
            engine.remains.pop(remain, None)
        else:
            engine.remains.pop(remain, None)


async def _remove_image(engine: Engine, short_id: str, *, created_after: datetime) -> None:
    """By its id, for it has no name, and without force; its nameless parents go with it."""
    try:
        found = await engine.request_json("GET", f"images/{short_id}/json", _Image)
        if found.id.startswith(f"sha256:{short_id}") and not found.tags and found.created > created_after:
            await engine.request("DELETE", f"images/{quote(found.id, safe=':')}")
    except Permanent as fault:
        if fault.code is not ErrorCode.NOT_FOUND:
            raise
