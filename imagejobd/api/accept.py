"""Which of two forms of an answer a client would rather have, by its Accept header (RFC 9110 §12.5.1)."""

from collections.abc import Iterator

JSON = "application/json"
TEXT = "text/plain"
# Browsers send 150; what comes after so many is not looked at.
ACCEPT_MAX_CHARS = 4096


def prefers_json(accept: str) -> bool:
    """Whether JSON is wanted more than text, which is what a client gets that does not say or does not care.

    Among equal weights the form that is named beats the one that a wildcard lets in; where both are named it is text.
    """
    ranges = list(_ranges(accept[:ACCEPT_MAX_CHARS]))
    return _rank(JSON, ranges) > _rank(TEXT, ranges)


def _rank(media_type: str, ranges: list[tuple[str, float]]) -> tuple[float, int]:
    """The weight that the most specific range gives to a type, and how specific that is."""
    names = ("*/*", f"{media_type.partition('/')[0]}/*", media_type)
    found = [(names.index(name), weight) for name, weight in ranges if name in names]
    specificity, weight = max(found, default=(0, 0.0))
    return (weight, specificity) if weight else (0.0, 0)


def _ranges(accept: str) -> Iterator[tuple[str, float]]:
    for element in accept.split(","):
        name, *parameters = (part.strip().lower() for part in element.split(";"))
        yield name, next((_weight(part[2:]) for part in parameters if part.startswith("q=")), 1.0)


def _weight(text: str) -> float:
    """A qvalue from 0 to 1; what is none counts as not acceptable."""
    try:
        weight = float(text)
    except ValueError:
        return 0.0
    return weight if 0 <= weight <= 1 else 0.0
