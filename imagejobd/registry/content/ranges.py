"""Byte ranges (RFC 9110 §14), strictly: what is not exactly understood is not spliced into a blob."""

import re

import msgspec

# 2**53 has 16 digits; no blob needs more.
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,16})-([0-9]{1,16})/([0-9]{1,16})", re.IGNORECASE | re.ASCII)


class ByteRange(msgspec.Struct, frozen=True):
    """The bytes `start` to `end` (inclusive) of `total`."""

    start: int
    end: int
    total: int

    def __str__(self) -> str:
        return f"bytes {self.start}-{self.end}/{self.total}"


def parse_content_range(value: str | None) -> ByteRange | None:
    """A `Content-Range` header; None where there is none, it contradicts itself, or tells no full length."""
    match = _CONTENT_RANGE.fullmatch(value.strip()) if value is not None else None
    if match is None:
        return None
    start, end, total = (int(part) for part in match.groups())
    return ByteRange(start, end, total) if start <= end < total else None


def range_from(offset: int) -> dict[str, str]:
    """The request header for everything from `offset` on; none for the whole."""
    return {"Range": f"bytes={offset}-"} if offset else {}
