"""What a container writes, as the engine hands it on: frames of an 8-byte header and a payload, in one raw stream.

The header is the number of the stream (1 out, 2 err), three zeros and the payload's size, big-endian. Frames and
characters are cut anywhere by the blocks they arrive in; nothing is held back for them but the header and a character.
"""

import asyncio
import codecs
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from itertools import groupby
from operator import attrgetter
from typing import Any

import msgspec

from imagejobd.engine import faults

HEADER_BYTES = 8
# What a container wrote is with us soon after its end, unless the stream stalls.
DRAIN_TIMEOUT_S = 2.0
_STDERR = 2


class Output(msgspec.Struct, frozen=True):
    """A piece of what the container wrote, as text; `is_stderr` tells the streams apart."""

    text: str
    is_stderr: bool


class Demultiplexer:
    """Splits one attached stream. Bytes that are no UTF-8 become replacement characters."""

    def __init__(self, *, max_bytes: int) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")
        self._decoders = {False: decoder("replace"), True: decoder("replace")}
        self._room_bytes = max_bytes
        self._header = b""
        self._payload_bytes = 0
        self._is_stderr = False

    @property
    def is_full(self) -> bool:
        """Whether more was written than `max_bytes`; the rest was left out."""
        return self._room_bytes < 0

    def feed(self, block: bytes) -> Iterator[Output]:
        """The text that this block completes, up to the bound; neighbours of one stream are joined."""
        for is_stderr, pieces in groupby(self._pieces(block), key=attrgetter("is_stderr")):
            yield Output("".join(piece.text for piece in pieces), is_stderr)

    def _pieces(self, block: bytes) -> Iterator[Output]:
        view = memoryview(block)
        while view and not self.is_full:
            if self._payload_bytes:
                payload, view = view[: self._payload_bytes], view[self._payload_bytes :]
                self._payload_bytes -= len(payload)
                yield from self._output(payload)
            else:
                view = self._read_header(view)

    def finish(self) -> Iterator[Output]:
        """What is left of a character that the container did not end."""
        for is_stderr, decoder in self._decoders.items():
            if text := decoder.decode(b"", final=True):
                yield Output(text, is_stderr)

    def _read_header(self, view: memoryview) -> memoryview:
        wanted = HEADER_BYTES - len(self._header)
        self._header += bytes(view[:wanted])
        if len(self._header) == HEADER_BYTES:
            self._is_stderr = self._header[0] == _STDERR
            self._payload_bytes = int.from_bytes(self._header[4:], "big")
            self._header = b""
        return view[wanted:]

    def _output(self, payload: memoryview) -> Iterator[Output]:
        kept = payload[: self._room_bytes]
        self._room_bytes -= len(payload)
        if text := self._decoders[self._is_stderr].decode(bytes(kept)):
            yield Output(text, self._is_stderr)


async def live(
    blocks: AsyncIterator[bytes], ending: asyncio.Task[Any], output: Demultiplexer
) -> AsyncGenerator[Output, None]:
    """The attached output, until it ends or is over its bound; one that stalls or breaks ends with the container."""
    while block := await _next_block(blocks, ending):
        for piece in output.feed(block):
            yield piece
        if output.is_full:
            return
    for piece in output.finish():
        yield piece


async def _next_block(blocks: AsyncIterator[bytes], ending: asyncio.Task[Any]) -> bytes:
    """Empty when there is none any more."""
    reading = asyncio.ensure_future(_read(blocks))
    try:
        await asyncio.wait({reading, ending}, return_when=asyncio.FIRST_COMPLETED)
        if not reading.done():
            await asyncio.wait({reading}, timeout=DRAIN_TIMEOUT_S)
        return reading.result() if reading.done() else b""
    finally:
        reading.cancel()


async def _read(blocks: AsyncIterator[bytes]) -> bytes:
    try:
        return await anext(blocks, b"")
    except faults.BROKEN:
        return b""
