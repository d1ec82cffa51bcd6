"""Identifiers. A job has two: a row id (short, for people and the dispatcher API) and a UUID.

UUIDs are version 7 (RFC 9562 §5.7), so that they sort by creation and index well; Python has no uuid7 before 3.14.
"""

import os
import time
import uuid
from typing import NewType

JobId = NewType("JobId", int)


def uuid7(now_ms: int | None = None) -> str:
    """A new UUIDv7 in its canonical text form."""
    ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    noise = int.from_bytes(os.urandom(10))
    value = (ms & (1 << 48) - 1) << 80 | 0x7 << 76 | (noise >> 68) << 64 | 0b10 << 62 | noise & (1 << 62) - 1
    return str(uuid.UUID(int=value))


def is_uuid(text: str) -> bool:
    """Whether `text` is a UUID in the canonical hyphenated form."""
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False
