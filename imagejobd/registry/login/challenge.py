"""The `WWW-Authenticate` header (RFC 9110 §11.6.1), as registries write it.

Several challenges may share a header, parameters may be quoted or not, and commas separate both. What cannot be
understood is left out; nothing here raises, because the header is whatever the peer made of it.
"""

import re
from collections.abc import Iterable, Mapping

import msgspec

HEADER_MAX_CHARS = 8 * 1024

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 (RFC 9110 §5.6.2, not a password)
_ITEM = re.compile(
    rf"[\s,]*(?:"
    rf'(?P<name>{_TOKEN})\s*=\s*(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<bare>[^\s,"]+))'
    rf"|(?P<scheme>{_TOKEN})(?![^\s,]|\s*=)(?:[ \t]+[A-Za-z0-9._~+/-]+=*(?=\s*(?:,|$)))?"
    rf")",
    re.DOTALL,
)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


class Challenge(msgspec.Struct, frozen=True):
    """One way to authenticate: `scheme` and the names in `parameters` are lower case."""

    scheme: str
    parameters: Mapping[str, str]


def parse_challenges(headers: Iterable[str]) -> list[Challenge]:
    """The challenges of all `WWW-Authenticate` headers of one response, in order."""
    return [challenge for header in headers for challenge in _parse(header[:HEADER_MAX_CHARS])]


def _parse(header: str) -> list[Challenge]:
    header = _as_written(header)
    found: list[tuple[str, dict[str, str]]] = []
    position = 0
    while item := _ITEM.match(header, position):
        position = item.end()
        if item["scheme"]:
            found.append((item["scheme"].lower(), {}))
        elif found:
            # The first of two wins: a value must not be replaced by what follows it.
            found[-1][1].setdefault(item["name"].lower(), _value(item))
    return [Challenge(scheme, parameters) for scheme, parameters in found]


def _as_written(header: str) -> str:
    """Bytes that are no UTF-8 reach us as half characters, which nothing can send on; they are Latin-1 (RFC 9110
    §5.5)."""
    try:
        header.encode()
    except UnicodeEncodeError:
        return header.encode(errors="surrogateescape").decode("latin-1")
    return header


def _value(item: re.Match[str]) -> str:
    if item["bare"] is not None:
        return item["bare"]
    return _ESCAPE.sub(r"\1", item["quoted"])
