"""What a build, pull or push tells while it goes on, the same for both builders. How it looks is the reader's own.

The last words of a step, kept for the message that tells why it failed. Bounded; nothing else is remembered.

The engine's progress streams: JSON values, one a line, as builds, pulls and pushes send them.

Lines are split here and not by aiohttp, whose limit of 512 KiB a BuildKit trace line (≈1.4 MB) exceeds. A stream that
ends says nothing about success: that needs a positive marker, which each caller knows.

What pulls and pushes share: one streamed request on behalf of a user of a registry, told message by message.
"""

import base64
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from typing import Literal

import msgspec

from imagejobd.engine import errors
from imagejobd.engine.client import Engine, Params
from imagejobd.model.errors import ErrorCode, Permanent
from imagejobd.model.reference import HUB_HOST
from imagejobd.model.secrets import Credentials

StepState = Literal["started", "done", "cached", "failed", "cancelled"]
OutputStream = Literal["out", "err"]


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


TAIL_MAX_LINES = 10
TAIL_MAX_BYTES = 2048
# Enough for the characters that TAIL_MAX_BYTES may hold, with room to cut at the start of a line.
_KEPT_CHARS = 2 * TAIL_MAX_BYTES


class Tail:
    """Collects text piece by piece and answers with its last lines."""

    __slots__ = ("_text",)

    def __init__(self) -> None:
        self._text = ""

    def add(self, text: str) -> None:
        self._text = (self._text + text)[-_KEPT_CHARS:] if len(text) < _KEPT_CHARS else text[-_KEPT_CHARS:]

    def lines(self) -> str:
        """At most `TAIL_MAX_LINES` lines and `TAIL_MAX_BYTES` bytes of UTF-8; a longer line loses its beginning."""
        kept = "\n".join(self._text.rstrip().splitlines()[-TAIL_MAX_LINES:])
        return kept.encode()[-TAIL_MAX_BYTES:].decode(errors="ignore")


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


async def messages(blocks: AsyncIterable[bytes], judge: errors.Judge) -> AsyncIterator[list[Message]]:
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
                raise judge(errors.IN_BAND, message.failure)
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
    except errors.UNDECODABLE as error:
        raise errors.ended_early(f"a progress line is cut or no JSON ({error})") from error


async def registry_messages(
    engine: Engine, path: str, params: Params, *, host: str, credentials: Credentials | None, judge: errors.Judge
) -> AsyncGenerator[Message, None]:
    """All messages of the pull or push that a POST to `path` starts, with `credentials` for the registry `host`.

    Read it under `contextlib.aclosing`: closing it ends the transfer. Raises what `judge` makes of a refusal, and
    `Temporary(engine_unavailable)`, also after `idle_timeout_s` of silence.
    """
    async with engine.stream(
        path,
        params=params,
        headers=registry_auth(host, credentials),
        judge=judge,
        idle_timeout_s=engine.settings.idle_timeout_s,
    ) as blocks:
        async for batch in messages(blocks, judge):
            for message in batch:
                yield message


# The name under which the engine, for historical reasons, looks for the Hub's credentials.
_HUB_SERVER = "https://index.docker.io/v1/"


def registry_auth(host: str, credentials: Credentials | None) -> dict[str, str]:
    """`X-Registry-Auth` for one pull or push; without credentials it says anonymous."""
    return {"X-Registry-Auth": _encoded(_entry(host, credentials) if credentials else {})}


def _entry(host: str, credentials: Credentials) -> dict[str, str]:
    return {
        "username": credentials.username,
        "password": credentials.password.reveal(),
        "serveraddress": _server(host),
    }


def _server(host: str) -> str:
    return _HUB_SERVER if host == HUB_HOST else host


def _encoded(value: object) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(value)).decode()
