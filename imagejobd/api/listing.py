"""Which jobs a request asks for: the filters of `GET /api/v2/jobs`, which other requests share.

Callers see their own tenant's jobs, whichever tenant they ask for.
"""

from collections.abc import Collection, Mapping
from datetime import datetime

from imagejobd.api.intake import Caller
from imagejobd.api.wire import iso
from imagejobd.model.errors import invalid
from imagejobd.model.job import State
from imagejobd.model.reference import ImageReference
from imagejobd.store.filters import Filter

FILTER_PARAMETERS = ("state", "kind", "tenant", "label", "submitter", "image", "created_after", "created_before")
# 3000-01-01. Far beyond any use, and well within what dates can show in every time zone.
TIME_MAX_MS = 32_503_680_000_000
TIME_HINT = "for example 2030-01-31T06:00:00Z"


def read_filter(query: Mapping[str, str], kinds: Collection[str], caller: Caller) -> Filter | None:
    """The filter that a query means; None where it asks for another tenant's jobs. Raises `Permanent(invalid)` that
    names the parameter."""
    wanted = query.get("tenant") or None
    if caller.sees is not None and wanted not in (None, caller.sees):
        return None
    return Filter(
        tenant=wanted or caller.sees,
        kinds=read_kinds(query, kinds),
        states=frozenset(_state(text) for text in _items(query, "state")),
        label=read_label(query.get("label")),
        submitter=query.get("submitter") or None,
        image=_image(query.get("image")),
        created_from_ms=_time(query, "created_after"),
        created_before_ms=_time(query, "created_before"),
    )


def read_kinds(query: Mapping[str, str], kinds: Collection[str]) -> frozenset[str]:
    """The parameter `kind`, a list with commas; empty where the query has none."""
    return frozenset(read_kind(name, kinds) for name in _items(query, "kind"))


def read_kind(name: str, kinds: Collection[str]) -> str:
    if name not in kinds:
        raise invalid(f"unknown kind {name[:80]!r}; this daemon has: {', '.join(kinds)}")
    return name


def read_label(text: str | None) -> tuple[str, str] | None:
    if not text:
        return None
    name, equals, value = text.partition("=")
    if not equals:
        raise invalid("label must be written name=value")
    return name, value


def epoch_ms(name: str, at: datetime) -> int:
    """Raises `Permanent(invalid)` for a time without a zone, and one that no calendar needs."""
    if at.tzinfo is None:
        raise invalid(f"{name} must carry a time zone, {TIME_HINT}")
    at_ms = int(at.timestamp() * 1000)
    if not 0 <= at_ms <= TIME_MAX_MS:
        raise invalid(f"{name} must lie between {iso(0)} and {iso(TIME_MAX_MS)}")
    return at_ms


def _items(query: Mapping[str, str], name: str) -> list[str]:
    text = query.get(name)
    return text.split(",") if text else []


def _state(text: str) -> State:
    try:
        return State(text)
    except ValueError:
        raise invalid(f"state {text[:80]!r} is not one of {', '.join(State)}") from None


def _image(text: str | None) -> str | None:
    return ImageReference.parse(text, default_tag=None).canonical if text else None


def _time(query: Mapping[str, str], name: str) -> int | None:
    text = query.get(name)
    if not text:
        return None
    if text[-6:-5] == " ":  # a plus sign that was not encoded
        text = f"{text[:-6]}+{text[-5:]}"
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise invalid(f"{name} must be a time, {TIME_HINT}") from None
    return epoch_ms(name, at)
