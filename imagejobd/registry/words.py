"""What peers write, fit for messages and logs: one bounded line that shows no secret and steers no terminal."""

from collections.abc import Callable

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def shown(text: str, max_chars: int, redact: Callable[[str], str] = str) -> str:
    """`text` without the secrets that `redact` knows, and only then cut: a part of a secret is not known as one."""
    line = " ".join(redact(text).split())[:max_chars]
    return "".join(character if character.isprintable() else REPLACEMENT for character in line)
