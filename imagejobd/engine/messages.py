"""The engine's progress streams: JSON values, one a line, as builds, pulls and pushes send them.

Lines are split here and not by aiohttp, whose limit of 512 KiB a BuildKit trace line (≈1.4 MB) exceeds. A stream that
ends says nothing about success: that needs a positive marker, which each caller knows.
"""

from collections.abc import AsyncIterable, AsyncIterator

import msgspec

from imagejobd.engine import faults
from imagejobd.engine.events import Transfer
from imagejobd.model.errors import ErrorCode, Permanent

# BuildKit batches its logs into messages of at most 16 MiB.
LINE_MAX_BYTES = 24 * 1024**2


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

    @property
    def failure(self) -> str:
        """The error's text: `errorDetail` first, because Engine 28 deprecates `error`; empty when it is none."""
        return (self.error_detail.message if self.error_detail else "") or self.error


class _Image(msgspec.Struct, frozen=True):
    id: str = msgspec.field(name="ID", default="")


_decoder = msgspec.json.Decoder(Message)
_image_decoder = msgspec.json.Decoder(_Image)


async def messages(blocks: AsyncIterable[bytes], judge: faults.Judge) -> AsyncIterator[list[Message]]:
    """The messages of a stream, as many at a time as arrived together.

    An error inside the stream is raised as what `judge` makes of it, after the messages before it were given.
    """
    async for lines in split_lines(blocks):
        batch: list[Message] = []
        for line in lines:
            if not line or line.isspace():
                continue
            message = _decode(line)
            if message.error_detail is not None or message.error:
                yield batch
                raise judge(faults.IN_BAND, message.failure)
            batch.append(message)
        yield batch


def transfer(message: Message, step: int = 0) -> Transfer:
    """The event of a message that tells how far a part has come."""
    detail = message.detail or ProgressDetail()
    return Transfer(step, message.id, message.status, detail.current, detail.total)


def built_image(message: Message) -> str:
    """The image id in a build's `aux`; empty when it holds something else."""
    try:
        return _image_decoder.decode(message.aux).id
    except msgspec.ValidationError:
        return ""


async def split_lines(blocks: AsyncIterable[bytes], max_bytes: int = LINE_MAX_BYTES) -> AsyncIterator[list[bytes]]:
    """Whole lines without their end, as many at a time as a block completed; the last needs no line end.

    Raises `Permanent(too_large)` for a line over `max_bytes`.
    """
    pieces: list[bytes] = []
    held_bytes = 0
    async for block in blocks:
        *complete, rest = block.split(b"\n")
        if complete:
            complete[0] = b"".join([*pieces, complete[0]])
            pieces, held_bytes = [], 0
            yield complete
        pieces.append(rest)
        held_bytes += len(rest)
        if held_bytes > max_bytes:
            raise Permanent(ErrorCode.TOO_LARGE, f"the Docker Engine sent a progress line of over {max_bytes} bytes")
    if held_bytes:
        yield [b"".join(pieces)]


def _decode(line: bytes) -> Message:
    try:
        return _decoder.decode(line)
    except faults.UNDECODABLE as error:
        raise faults.ended_early(f"a progress line is cut or no JSON ({error})") from error
