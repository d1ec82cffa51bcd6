"""What strangers wrote, made fit to be shown: one line, printable, of bounded length."""

SHOWN_MAX_CHARS = 80
QUOTED_MAX_CHARS = 256


def shown(text: str | bytes) -> str:
    """What a stranger sent, fit to be shown: bounded, and without what does not print."""
    if isinstance(text, bytes):
        text = text[: 4 * SHOWN_MAX_CHARS].decode(errors="replace")
    return "".join(char if char.isprintable() else "?" for char in text[:SHOWN_MAX_CHARS])


def quoted(name: str | bytes) -> str:
    """A stranger's name for a message: in quotes, bounded, and with escapes for what does not print."""
    text = name if isinstance(name, str) else name.decode(errors="backslashreplace")
    return repr(text if len(text) <= QUOTED_MAX_CHARS else text[:QUOTED_MAX_CHARS] + "…")


def one_line(text: str, max_chars: int) -> str:
    """`text` folded into one printable line. Where it is too long its middle is left out: a message begins with what
    happened, and ends with the last words of what failed."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if len(line) <= max_chars:
        return line
    head = max_chars // 3
    return f"{line[:head]} … {line[head + 3 - max_chars :]}"
