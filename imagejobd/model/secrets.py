"""Secrets that do not leak by accident.

A `Secret` shows itself only when asked by name (`reveal`). `Redactor` removes the secrets of one job from
text that other programs wrote, because an engine or a registry may echo what it was sent.
"""

import base64
from collections.abc import Iterable, Iterator
from typing import final

MASK = "********"
# A shorter secret would turn ordinary words of a build log into masks.
REDACT_MIN_CHARS = 4
_URL_SAFE = str.maketrans("+/", "-_")


@final
class Secret:
    """A string that neither `repr`, `str`, formatting nor a log shows."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return f"Secret('{MASK}')"

    def __str__(self) -> str:
        return MASK

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __bool__(self) -> bool:
        return bool(self._value)


class Credentials:
    """User name and password (or token) for one registry host."""

    __slots__ = ("password", "username")

    def __init__(self, username: str, password: Secret) -> None:
        self.username = username
        self.password = password

    def __repr__(self) -> str:
        return f"Credentials({self.username!r}, {MASK})"


class Redactor:
    """Replaces each secret by a mask, also where it stands inside base64, as in a Basic or X-Registry-Auth header."""

    def __init__(self, secrets: Iterable[Secret] = ()) -> None:
        plain = {s.reveal() for s in secrets if len(s.reveal()) >= REDACT_MIN_CHARS}
        encoded = {form for value in plain for form in _within_base64(value) if len(form) >= REDACT_MIN_CHARS}
        self._needles = sorted(plain | encoded, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        for needle in self._needles:
            text = text.replace(needle, MASK)
        return text


def _within_base64(value: str) -> Iterator[str]:
    """`value` as base64, and the characters of base64 that it alone decides when other bytes stand around it."""
    data = value.encode()
    yield base64.b64encode(data).decode()
    for lead in range(3):
        whole = base64.b64encode(bytes(lead) + data).decode()
        first = -(-lead * 8 // 6)
        last = (lead + len(data)) * 8 // 6
        yield whole[first:last]
        yield whole[first:last].translate(_URL_SAFE)
