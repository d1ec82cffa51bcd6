"""What strangers wrote, made fit for messages and logs: it prints, and its length is bounded."""

PRINTABLE_MAX_CHARS = 80
# What is quoted is a path as a rule.
QUOTED_MAX_CHARS = 256


def printable(text: str | bytes, max_chars: int = PRINTABLE_MAX_CHARS) -> str:
    """The beginning of `text`, with a question mark for what does not print."""
    if isinstance(text, bytes):
        text = text[: 4 * max_chars].decode(errors="replace")
    return "".join(char if char.isprintable() else "?" for char in text[:max_chars])


def quoted(text: str | bytes, max_chars: int = QUOTED_MAX_CHARS) -> str:
    """The beginning of `text` in quotes, with escapes for what does not print: it is clear where it ends."""
    if isinstance(text, bytes):
        text = text.decode(errors="backslashreplace")
    return repr(text if len(text) <= max_chars else text[:max_chars] + "…")


def one_line(text: str, max_chars: int) -> str:
    """`text` folded into one printable line. Where it is too long its middle is left out: a message begins with what
    happened, and ends with the last words of what failed."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if len(line) <= max_chars:
        return line
    head = max_chars // 3
    return f"{line[:head]} … {line[head + 3 - max_chars :]}"
