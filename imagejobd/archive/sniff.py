"""What bytes are, told by the first of them: a media type where it is sure, and words for error messages.

No media type is given that a browser would run: text, HTML and SVG from strangers are bytes.
"""

import re

import msgspec

ANYTHING = "application/octet-stream"
TAR = "application/x-tar"


class _Known(msgspec.Struct, frozen=True):
    """A sort of file: what it begins with, words for it that end a sentence, its media type."""

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
