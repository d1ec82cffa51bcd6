"""The last words of a step, kept for the message that tells why it failed. Bounded; nothing else is remembered."""

TAIL_MAX_LINES = 10
TAIL_MAX_BYTES = 2048
# Enough for the characters that TAIL_MAX_BYTES may hold, with room to cut at the start of a line.
_KEPT_CHARS = 2 * TAIL_MAX_BYTES


class Tail:
    """Collects text piece by piece and answers with its last lines."""

    __slots__ = ("_text",)

    def __init__(self) -> None:
        self._text = ""

    def add(self, text: str) -> None:
        self._text = (self._text + text)[-_KEPT_CHARS:] if len(text) < _KEPT_CHARS else text[-_KEPT_CHARS:]

    def lines(self) -> str:
        """At most `TAIL_MAX_LINES` lines and `TAIL_MAX_BYTES` bytes of UTF-8; a longer line loses its beginning."""
        kept = "\n".join(self._text.rstrip().splitlines()[-TAIL_MAX_LINES:])
        return kept.encode()[-TAIL_MAX_BYTES:].decode(errors="ignore")
