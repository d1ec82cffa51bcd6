"""The classic builder: what it is sent, what it reports, and what it leaves in the engine.

It is sent the entries of the context, and the Dockerfile to build under a name that no context has. It takes the
Dockerfile and `.dockerignore` out of the context before it builds where the latter names them (`removeDockerfile` in
moby's builder/remotecontext/detect.go), so the images see neither the name nor the text. A `.dockerignore` of the
context's own gets one more line.

It reports in prose: `Step 2/4 : RUN …`, ` ---> Running in …`, in the same stream as what a RUN prints. A step line
counts only as the builder sends it (a message of its own without line end, the next number of the same total), so that
a program's output can at worst mislabel its own lines.

It leaves containers of steps, and images without a name: a step's container where the engine goes down or just starts
it, the images of all stages of a build that failed, and of a good one those of all but the last. Their ids stand in
nothing but a build's own output, where a RUN step may print the id of somebody else's. So nothing goes that is older
than the build, nor an image with a name; and an image that another one was built on, or a container made of, the engine
keeps itself.
"""

import asyncio
import contextlib
import errno
import re
import stat
import tarfile
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Literal
from urllib.parse import quote

import msgspec
import structlog

from imagejobd.engine.client import Engine
from imagejobd.engine.container import FORCE_WITH_VOLUMES
from imagejobd.engine.stream import BuildEvent, Message, Output, OutputStream, Step, StepState, Tail
from imagejobd.model.entry import Entry
from imagejobd.model.errors import ENGINE, NotFound, Permanent, Temporary, invalid

# What waits to be removed, of all builds; beyond it is left.
REMAINS_MAX_COUNT = 1000
DOCKERFILE = ".imagejobd.Dockerfile"

_IGNORE_FILE = ".dockerignore"
_BLOCK_BYTES = 256 * 1024
# Two blocks of zeros end a tar.
_TAR_END_BYTES = 1024
_STEP = re.compile(r"Step (\d{1,6})/(\d{1,6}) : (.*)", re.DOTALL)
_CHATTER = re.compile(r" ---> .*\n|Removing intermediate container [0-9a-f]{12}\n|Successfully (?:built|tagged) \S+\n")
_CHATTER_STARTS = (" ---> ", "Removing", "Successfully")
_RUNNING = re.compile(r" ---> Running in ([0-9a-f]{12})\n")
_IMAGE = re.compile(r" ---> ([0-9a-f]{12})\n")
_CACHED = " ---> Using cache\n"
# The engine wraps each piece of a RUN's stderr in red.
_RED, _PLAIN = "\x1b[91m", "\x1b[0m"

log = structlog.get_logger("imagejobd.engine")

# What it is, and its short id.
Remain = tuple[Literal["container", "image"], str]


class ClassicProgress:
    """Reads the messages of one build. `container` is the short id of the one that the current step runs in, `stages`
    are the short ids of the newest image of each stage, the base at first. No I/O happens here.

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
        """The result's id; empty before the last step. The engine reports one at the end of every stage."""
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
        return (f"step {self._number} ({self._label})", lines) if lines else None

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
            if not self.container and (match := _RUNNING.fullmatch(text)):
                self.container = match[1]
            elif self.stages and (match := _IMAGE.fullmatch(text)):
                self.stages[-1] = match[1]
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
        return Step(self._number, self._label, "started")

    def _end(self, state: StepState, error: str | None = None) -> Iterator[BuildEvent]:
        if not self._is_open:
            return
        self._is_open = False
        if state == "done" and self._is_cached:
            state = "cached"
        yield Step(self._number, self._label, state, max(0.0, self._clock() - self._began), error)

    @property
    def _label(self) -> str:
        return f"[{self._number}/{self._total}] {self._name}"

    def _flush(self) -> Iterator[BuildEvent]:
        if self._pieces:
            yield Output(self._number, self._stream, "".join(self._pieces))
            self._pieces = []


class _Thing(msgspec.Struct, frozen=True):
    """A container, which has no tags, or an image."""

    id: str = msgspec.field(name="Id")
    created: datetime = msgspec.field(name="Created")
    tags: list[str] | None = msgspec.field(name="RepoTags", default=None)


async def classic_body(context: Path, entries: Sequence[Entry], dockerfile: str) -> AsyncGenerator[bytes, None]:
    """The tar to send. Raises `Permanent(invalid)` for a context that has files of these names it cannot have.

    It raises before it sends: a fault of the body would count as the connection's.
    """
    by_path = {entry.path: entry for entry in entries}
    if DOCKERFILE.encode() in by_path:
        raise invalid(f"the context has a file {DOCKERFILE!r}, a name that this service needs; rename it")
    text = Entry(DOCKERFILE.encode(), size=len(dockerfile.encode()))
    ignore_file, patterns = await asyncio.to_thread(_ignore_file, context, by_path)
    added = _packed(text, dockerfile.encode()) + _packed(ignore_file, patterns) + bytes(_TAR_END_BYTES)
    # The last of a name is the one that counts.
    return _blocks(context, entries, added)


def note_remains(engine: Engine, progress: ClassicProgress, *, began: datetime, is_built: bool) -> set[Remain]:
    """Remember what a build that is over may have left, until `remove_remains` has seen it go; returns just that."""
    images = progress.stages[:-1] if is_built else progress.stages
    remains: list[Remain] = [("container", progress.container), *(("image", image) for image in reversed(images))]
    remains = [remain for remain in remains if remain[1]][: REMAINS_MAX_COUNT - len(engine.remains)]
    engine.remains.update(dict.fromkeys(remains, began))
    return set(remains)


async def remove_remains(engine: Engine) -> None:
    """Remove what is remembered; what is in use stays so. Raises `Temporary` when the engine is away."""
    for remain, began in list(engine.remains.items()):
        try:
            await _remove(engine, remain, created_after=began)
        except Temporary as fault:
            if fault.peer == ENGINE:
                raise
            # In use, or in trouble: the others go all the same.
            continue
        except Permanent as fault:
            log.warning("cannot remove what a build has left", remain=remain[1], error=fault.message)
        engine.remains.pop(remain, None)


async def _blocks(context: Path, entries: Iterable[Entry], added: bytes) -> AsyncGenerator[bytes, None]:
    with context.open("rb", buffering=0) as file:
        blocks = _context_blocks(file, entries)
        # Read and packed in a thread: a block of many small files takes its time.
        while block := await asyncio.to_thread(next, blocks, b""):
            yield block
    yield added


def _context_blocks(file: BinaryIO, entries: Iterable[Entry]) -> Iterator[bytes]:
    """The `entries`, whose content is in `file`, as a tar without its end."""
    block = bytearray()
    for entry in entries:
        block += _header(entry)
        file.seek(entry.offset)
        rest_bytes = entry.size
        while rest_bytes > 0 and (content := file.read(min(_BLOCK_BYTES, rest_bytes))):
            rest_bytes -= len(content)
            block += content
            if len(block) >= _BLOCK_BYTES:
                yield bytes(block)
                block.clear()
        if rest_bytes > 0:
            raise OSError(errno.EIO, f"the context ends {rest_bytes} bytes early")
        block += bytes(-entry.size % tarfile.BLOCKSIZE)
    if block:
        yield bytes(block)


def _packed(entry: Entry, content: bytes) -> bytes:
    return _header(entry) + content + bytes(-len(content) % tarfile.BLOCKSIZE)


def _header(entry: Entry) -> bytes:
    info = tarfile.TarInfo(entry.path.decode(errors="surrogateescape"))
    kind = tarfile.LNKTYPE if entry.link else tarfile.REGTYPE
    info.type = {stat.S_IFDIR: tarfile.DIRTYPE, stat.S_IFLNK: tarfile.SYMTYPE}.get(stat.S_IFMT(entry.mode), kind)
    info.mode, info.size, info.mtime = stat.S_IMODE(entry.mode), entry.size, entry.mtime
    info.linkname = entry.link.decode(errors="surrogateescape")
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _ignore_file(context: Path, by_path: Mapping[bytes, Entry]) -> tuple[Entry, bytes]:
    """The user's own, with the same mode and time and one line more, or one that has itself removed too."""
    name = _IGNORE_FILE.encode()
    entry = by_path.get(name)
    if entry is None:
        content = f"{_IGNORE_FILE}\n{DOCKERFILE}\n".encode()
        return Entry(name, size=len(content)), content
    data = by_path[entry.link] if entry.link else entry
    with context.open("rb") as file:
        file.seek(data.offset)
        content = file.read(data.size) + f"\n{DOCKERFILE}\n".encode()
    return msgspec.structs.replace(entry, size=len(content), link=b""), content


async def _remove(engine: Engine, remain: Remain, *, created_after: datetime) -> None:
    """An image without force, for it has no name; its nameless parents go with it."""
    kind, short_id = remain
    with contextlib.suppress(NotFound):
        thing = await engine.request_json("GET", f"{kind}s/{short_id}/json", _Thing)
        if thing.id.removeprefix("sha256:").startswith(short_id) and not thing.tags and thing.created > created_after:
            params = FORCE_WITH_VOLUMES if kind == "container" else ()
            await engine.request("DELETE", f"{kind}s/{quote(thing.id, safe=':')}", params=params)
