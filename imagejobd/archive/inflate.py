"""A stranger's bytes: what they are, by the first of them, and what they unpack to, under a bound.

Unpacks gzip, bzip2, xz and zstd and takes everything else as it is. It never holds more than one chunk of decompressed
data, whatever the ratio, and refuses to go beyond its bound. Gives no media type that a browser would run: text, HTML
and SVG from strangers are bytes.
"""

import bz2
import lzma
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, Protocol

import msgspec

from imagejobd.model.errors import ErrorCode, Permanent, invalid

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

CHUNK_BYTES = 1 << 20
# What a decompressor gets at once. Each one copies what it did not use, so this bounds the cost of a tiny stream.
INPUT_BYTES = 16 << 10
# Concatenated streams are legitimate, but may be empty, and then no other bound meets them. bgzip starts one for each
# 64 KiB, 65,536 of them in 4 GiB.
STREAMS_MAX = 100_000
# xz -9 asks for 65 MiB. A hostile header can ask for 4 GiB.
XZ_MEMORY_MAX_BYTES = 128 << 20
# 128 MiB: `zstd --ultra -22` and `--long` ask for that much, and a hostile frame header for up to 2 TiB.
ZSTD_WINDOW_MAX_LOG2 = 27
ANYTHING = "application/octet-stream"
TAR = "application/x-tar"

_ZEROS = bytes(CHUNK_BYTES)
# What tells every compression, and the longest of them.
_MAGIC_BYTES = 6

# Asked before each chunk: whether to stop.
Stop = Callable[[], bool]


class Stopped(Exception):
    """The caller asked to stop; whatever was written so far is to be thrown away."""


class _Decompressor(Protocol):
    """What bz2 and lzma offer, and what `_Gzip` makes of zlib."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Gzip:
    """zlib keeps the input it could not use; bz2 and lzma keep it themselves."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(16 + zlib.MAX_WBITS)

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def needs_input(self) -> bool:
        return not self._zlib.unconsumed_tail and not self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)


def _xz() -> _Decompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY_MAX_BYTES)


def _zstd() -> _Decompressor:
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_MAX_LOG2})


class _Format(msgspec.Struct, frozen=True):
    """A compression: what its streams begin with, its name, and what reads one stream."""

    magic: re.Pattern[bytes]
    name: str
    new: Callable[[], _Decompressor]


_FORMATS = (
    _Format(re.compile(rb"\x1f\x8b"), "gzip", _Gzip),
    _Format(re.compile(rb"BZh"), "bzip2", bz2.BZ2Decompressor),
    _Format(re.compile(rb"\xfd7zXZ\0"), "xz", _xz),
    # A frame, or a skippable one (RFC 8878 §3.1.2), which pzstd puts before each.
    _Format(re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"), "zstd", _zstd),
)


class _Known(msgspec.Struct, frozen=True):
    """A type of file: what it begins with, words for it that end a sentence, its media type."""

    magic: re.Pattern[bytes]
    words: str
    media_type: str = ANYTHING


_KNOWN = (
    _Known(re.compile(rb"PK\x03\x04"), "a zip archive", "application/zip"),
    _Known(re.compile(rb"\x1f\x8b\x08"), "gzip data", "application/gzip"),
    _Known(re.compile(rb"BZh"), "bzip2 data"),
    _Known(re.compile(rb"\xfd7zXZ\0"), "xz data"),
    _Known(re.compile(rb"\x28\xb5\x2f\xfd"), "zstd data"),
    _Known(re.compile(rb"7z\xbc\xaf\x27\x1c"), "a 7z archive"),
    _Known(re.compile(rb"Rar!"), "a rar archive"),
    _Known(re.compile(rb"\x7fELF"), "a program (ELF)"),
    _Known(re.compile(rb"%PDF-"), "a PDF document", "application/pdf"),
    _Known(re.compile(rb"\x89PNG\r\n\x1a\n"), "a picture (PNG)", "image/png"),
    _Known(re.compile(rb"\xff\xd8\xff"), "a picture (JPEG)", "image/jpeg"),
    _Known(re.compile(rb"GIF8[79]a"), "a picture (GIF)", "image/gif"),
    _Known(re.compile(rb"RIFF.{4}WEBP", re.DOTALL), "a picture (WebP)", "image/webp"),
    _Known(re.compile(rb"<\?xml"), "an XML document"),
    _Known(re.compile(rb"\{"), "JSON"),
    _Known(re.compile(rb"\s*<(?:!doctype )?html", re.IGNORECASE), "a web page"),
    _Known(re.compile(rb"\s*(?:from |arg |# ?syntax)", re.IGNORECASE), "a Dockerfile"),
)


class Inflated:
    """Reads `source` and hands out at most `max_bytes` decompressed bytes. `format` is "" where nothing is compressed.

    Raises `Permanent(invalid)` for damaged data, `Permanent(too_large)` beyond the bound, and `Stopped`.
    """

    def __init__(self, source: BinaryIO, *, max_bytes: int, stop: Stop) -> None:
        self._source = source
        self._stop = stop
        self._remaining_bytes = max_bytes
        self._max_bytes = max_bytes
        self._input = source.read(CHUNK_BYTES)
        self._input_at = 0
        self._streams = 1
        self._format = next((known for known in _FORMATS if known.magic.match(self._input)), None)
        self.format = self._format.name if self._format else ""
        self._decompressor = self._format.new() if self._format else None
        self._buffer = b""
        self._at = 0

    def read(self, count: int) -> bytes:
        """`count` bytes, fewer only at the end."""
        piece = self.read_some(count)
        if len(piece) == count:
            return piece
        pieces = [piece]
        while piece and (count := count - len(piece)):
            piece = self.read_some(count)
            pieces.append(piece)
        return b"".join(pieces)

    def read_some(self, count: int) -> bytes:
        """At least one byte and at most `count`; nothing at the end."""
        if self._at == len(self._buffer):
            self._check_stop()
            chunk = self._decompressed() if self._format else self._raw(CHUNK_BYTES)
            self._charge(len(chunk))
            self._buffer, self._at = chunk, 0
        start, self._at = self._at, min(self._at + count, len(self._buffer))
        return self._buffer[start : self._at]

    def drain(self) -> None:
        """Read to the end, which is where a checksum of the whole stands."""
        while self.read_some(CHUNK_BYTES):
            pass

    def zeros(self, count: int) -> Iterator[bytes]:
        """A hole of `count` bytes, in pieces. Nothing in the source stands for it; the bound and `stop` hold for it."""
        self._charge(count)
        while count > 0:
            self._check_stop()
            yield _ZEROS[:count]
            count -= CHUNK_BYTES

    def _charge(self, count: int) -> None:
        self._remaining_bytes -= count
        if self._remaining_bytes < 0:
            raise over_limit(f"the tar unpacks to more than {self._max_bytes} bytes")

    def _check_stop(self) -> None:
        if self._stop():
            raise Stopped

    def _raw(self, count: int) -> bytes:
        """At least one byte of the source and at most `count`; nothing at the end."""
        if self._input_at == len(self._input):
            self._input, self._input_at = self._source.read(CHUNK_BYTES), 0
        start, self._input_at = self._input_at, min(self._input_at + count, len(self._input))
        return self._input[start : self._input_at]

    def _decompressed(self) -> bytes:
        while self._decompressor is not None:
            self._check_stop()
            if self._decompressor.eof:
                self._decompressor = self._next_stream(len(self._decompressor.unused_data))
                continue
            needs_input = self._decompressor.needs_input
            data = self._raw(INPUT_BYTES) if needs_input else b""
            chunk = self._step(self._decompressor, data)
            if chunk:
                return chunk
            if needs_input and not data and not self._decompressor.eof:
                raise invalid(f"the {self.format} data is cut short")
        return b""

    def _step(self, decompressor: _Decompressor, data: bytes) -> bytes:
        try:
            return decompressor.decompress(data, CHUNK_BYTES)
        except lzma.LZMAError as error:
            if "memory" in str(error).lower():
                what = f"unpacking the xz data takes more than {XZ_MEMORY_MAX_BYTES >> 20} MiB of memory"
                raise Permanent(ErrorCode.TOO_LARGE, f"{what}; use xz -9 or less") from None
            raise invalid(f"the xz data is damaged: {error}") from None
        except zstd.ZstdError as error:
            if "memory" in str(error).lower():
                what = f"unpacking the zstd data takes a window of more than {1 << ZSTD_WINDOW_MAX_LOG2 - 20} MiB"
                raise Permanent(ErrorCode.TOO_LARGE, f"{what}; use --long=27 or less") from None
            raise invalid(f"the zstd data is damaged: {error}") from None
        except (zlib.error, OSError, EOFError, ValueError) as error:
            raise invalid(f"the {self.format} data is damaged: {error}") from None

    def _next_stream(self, unused: int) -> _Decompressor | None:
        """Go on with a further compressed stream (RFC 1952 §2.2); anything else after the first is padding.

        `unused` counts the last input bytes that the finished stream did not take.
        """
        self._input_at -= unused
        head = self._input[self._input_at : self._input_at + _MAGIC_BYTES]
        if len(head) < _MAGIC_BYTES:
            self._input, self._input_at = head + self._source.read(CHUNK_BYTES), 0
        if self._format is None or not self._format.magic.match(self._input, self._input_at):
            return None
        self._streams += 1
        if self._streams > STREAMS_MAX:
            what = f"the {self.format} data consists of more than {STREAMS_MAX} streams, which is the limit"
            raise Permanent(ErrorCode.TOO_LARGE, f"{what}; compress the tar as one")
        return self._format.new()


def over_limit(what: str) -> Permanent:
    return Permanent(ErrorCode.TOO_LARGE, f"{what}, which is the limit")


def looks_like(head: bytes) -> str:
    """A guess, from the first bytes, as words that end a sentence."""
    if not head:
        return "nothing: it is empty"
    if known := _known(head):
        return known.words
    if b"\0" not in head and head.isascii():
        return "text"
    return "unknown binary data, or a tar that is damaged or cut short"


def media_type_of(head: bytes) -> str:
    """The media type of a file that begins with `head`; 16 bytes of it suffice."""
    known = _known(head)
    return known.media_type if known else ANYTHING


def tar_media_type(compression: str) -> str:
    """The media type of a tar, with the name of its compression as a suffix; "" is none."""
    return f"{TAR}+{compression}" if compression else TAR


def _known(head: bytes) -> _Known | None:
    return next((known for known in _KNOWN if known.magic.match(head)), None)
