"""What bytes that should have been something else look like, for error messages only."""

_MAGIC = (
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "gzip data"),
    (b"BZh", "bzip2 data"),
    (b"\xfd7zXZ\0", "xz data"),
    (b"\x28\xb5\x2f\xfd", "zstd data"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!", "a rar archive"),
    (b"\x7fELF", "a program (ELF)"),
    (b"%PDF", "a PDF document"),
    (b"\x89PNG", "a picture (PNG)"),
    (b"\xff\xd8\xff", "a picture (JPEG)"),
    (b"<?xml", "an XML document"),
    (b"{", "JSON"),
)
_WEB_PAGE = (b"<!doctype html", b"<html")
_DOCKERFILE = (b"from ", b"arg ", b"# syntax", b"#syntax")


def looks_like(head: bytes) -> str:
    """A guess, from the first bytes, as words that end a sentence."""
    if not head:
        return "nothing: it is empty"
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    text = head.lstrip().lower()
    if text.startswith(_WEB_PAGE):
        return "a web page"
    if text.startswith(_DOCKERFILE):
        return "a Dockerfile"
    if b"\0" not in head and head.isascii():
        return "text"
    return "unknown binary data, or a tar that is damaged or cut short"
