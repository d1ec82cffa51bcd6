"""The engine's progress streams, one JSON value a line, and the events that builds, pulls and pushes make of them.

Lines are split here and not by aiohttp, whose limit of 512 KiB a BuildKit trace line (≈1.4 MB) exceeds. The end of a
stream says nothing about success: that needs a positive marker, which each caller knows. Nothing here does I/O.
"""

from collections.abc import AsyncIterable, AsyncIterator
from typing import Literal

import msgspec

from imagejobd.engine import errors
from imagejobd.model.errors import ErrorCode, Permanent

StepState = Literal["started", "done", "cached", "failed", "cancelled"]
OutputStream = Literal["out", "err"]

# BuildKit batches its logs into messages of at most 16 MiB.
LINE_MAX_BYTES = 24 * 1024**2
TAIL_MAX_LINES = 10
TAIL_MAX_BYTES = 2048
# Enough for the characters that TAIL_MAX_BYTES may hold, with room to cut at the start of a line.
_TAIL_MAX_CHARS = 2 * TAIL_MAX_BYTES


class Step(msgspec.Struct, frozen=True):
    """A step began or ended. Each step has one `started` and at most one other state after it.

    `number` counts from 1 in the order in which steps begin, as `docker build --progress=plain` shows them. `seconds`
    is how long it took, where that is known. `cancelled` steps were stopped because another one failed.
    """

    number: int
    name: str
    state: StepState
    seconds: float | None = None
    error: str | None = None


class Output(msgspec.Struct, frozen=True, gc=False):
    """Text that a step printed: any number of lines, the last of which may be unfinished."""

    step: int
    stream: OutputStream
    text: str


class Transfer(msgspec.Struct, frozen=True, gc=False):
    """How far a part has come: a context on its way in, a layer on its way out. Bytes; `total` 0 where unknown.

    `step` is the build step it belongs to, 0 in a pull or push.
    """

    step: int
    name: str
    status: str
    current: int
    total: int


class BuildWarning(msgspec.Struct, frozen=True):
    """A remark that does not fail the build. `step` is 0 when it belongs to none."""

    step: int
    text: str


class Built(msgspec.Struct, frozen=True):
    """The build succeeded: `image_id` is `sha256:…`, the id in the engine, no registry digest."""

    image_id: str


BuildEvent = Step | Output | Transfer | BuildWarning | Built


class ProgressDetail(msgspec.Struct, frozen=True):
    """Bytes done of bytes in all; both 0 where the engine does not count."""

    current: int = 0
    total: int = 0


class ErrorDetail(msgspec.Struct, frozen=True):
    message: str = ""


class Message(msgspec.Struct, frozen=True, gc=False):
    """One line. Which fields are set depends on the endpoint; `aux` is raw JSON, of a shape of its own per endpoint."""

    id: str = ""
    stream: str = ""
    status: str = ""
    detail: ProgressDetail | None = msgspec.field(name="progressDetail", default=None)
    aux: msgspec.Raw = msgspec.Raw()
    error: str = ""
    error_detail: ErrorDetail | None = msgspec.field(name="errorDetail", default=None)

    def transfer(self, step: int = 0) -> Transfer:
        """The event of a message that says how far a part has come."""
        detail = self.detail or ProgressDetail()
        return Transfer(step, self.id, self.status, detail.current, detail.total)

    def image_id(self) -> str:
        """The image id in a build's `aux`; empty when it holds something else."""
        try:
            return _image_decoder.decode(self.aux).id
        except msgspec.ValidationError:
            return ""


class _Image(msgspec.Struct, frozen=True):
    id: str = msgspec.field(name="ID", default="")


_message_decoder = msgspec.json.Decoder(Message)
_image_decoder = msgspec.json.Decoder(_Image)


class Tail:
    """The last lines of what a step printed, for the message that says why it failed; nothing else is remembered."""

    __slots__ = ("_text",)

    def __init__(self) -> None:
        self._text = ""

    def add(self, text: str) -> None:
        self._text = (self._text + text)[-_TAIL_MAX_CHARS:] if len(text) < _TAIL_MAX_CHARS else text[-_TAIL_MAX_CHARS:]

    def lines(self) -> str:
        """At most `TAIL_MAX_LINES` lines and `TAIL_MAX_BYTES` bytes of UTF-8; a longer line loses its beginning."""
        lines = "\n".join(self._text.rstrip().splitlines()[-TAIL_MAX_LINES:])
        return lines.encode()[-TAIL_MAX_BYTES:].decode(errors="ignore")


async def messages(blocks: AsyncIterable[bytes], judge: errors.Judge) -> AsyncIterator[list[Message]]:
    """The messages of a stream, as many at a time as arrived together.

    An error inside the stream is raised as what `judge` makes of it, after the messages before it were given: the text
    of `errorDetail` first, because Engine 28 deprecates `error`.
    """
    async for lines in split_lines(blocks):
        batch: list[Message] = []
        for line in lines:
            if not line or line.isspace():
                continue
            try:
                message = _message_decoder.decode(line)
            except errors.UNDECODABLE as error:
                raise errors.ended_early(f"a progress line is cut or no JSON ({error})") from error
            if message.error_detail is not None or message.error:
                yield batch
                detail = message.error_detail or ErrorDetail()
                raise judge(errors.IN_BAND, detail.message or message.error)
            batch.append(message)
        yield batch


async def split_lines(blocks: AsyncIterable[bytes], max_bytes: int = LINE_MAX_BYTES) -> AsyncIterator[list[bytes]]:
    """Whole lines without their end, as many at a time as a block completed; the last needs no line end.

    Raises `Permanent(too_large)` for a line over `max_bytes`.
    """
    pieces: list[bytes] = []
    pieces_bytes = 0
    async for block in blocks:
        *complete, rest = block.split(b"\n")
        if complete:
            complete[0] = b"".join([*pieces, complete[0]])
            pieces, pieces_bytes = [], 0
            yield complete
        pieces.append(rest)
        pieces_bytes += len(rest)
        if pieces_bytes > max_bytes:
            raise Permanent(ErrorCode.TOO_LARGE, f"the Docker Engine sent a progress line of over {max_bytes} bytes")
    if pieces_bytes:
        yield [b"".join(pieces)]
