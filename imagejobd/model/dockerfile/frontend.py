"""Where a Dockerfile chooses its own frontend.

`# syntax=image` makes BuildKit pull an image and let it translate the file, so nothing that was checked here would be
what is built. Engines differ in which forms they see; every form that one of them sees is found.
"""

import re
from collections.abc import Iterator

import msgspec

from imagejobd.model.dockerfile.source import BOM
from imagejobd.model.dockerfile.words import SPACES

_DIRECTIVE = re.compile(r"(?:#|//)\s*([a-zA-Z][a-zA-Z0-9]*)\s*=\s*(\S.*)", re.DOTALL)
_JSON_SHOWN = "a JSON document"
# The frontend that every engine with BuildKit has built in, in its stable versions.
_OWN = re.compile(r"(?:docker\.io/)?docker/dockerfile(?::(?:latest|1(?:\.\d{1,4}){0,2}))?", re.ASCII)


class Frontend(msgspec.Struct, frozen=True):
    """`image` is what the file asks for as it is written, None for a form that cannot be allowed."""

    line: int
    shown: str
    image: str | None

    @property
    def is_own(self) -> bool:
        """Whether the engine's own frontend is one: then nothing is fetched, for the engine reads the file itself."""
        return self.image is not None and _OWN.fullmatch(self.image) is not None


def frontends(text: str) -> Iterator[Frontend]:
    """Every choice of a frontend in `text`.

    Covers `# syntax=` and `// syntax=` among the leading directives, also after a byte order mark or a shebang, and
    a JSON document. A `# syntax=` further down is a comment to every engine and stays one here.
    """
    lines = text.removeprefix(BOM).split("\n")
    start = 1 if lines[0].startswith("#!") else 0
    first = next((line for line in lines[start:] if line.strip(SPACES + BOM)), "")
    if first.lstrip(SPACES + BOM).startswith("{"):
        yield Frontend(start + 1, _JSON_SHOWN, None)
    for number, line in enumerate(lines[start:], start + 1):
        match = _DIRECTIVE.match(line.lstrip(SPACES + BOM))
        if not match:
            return
        if match.group(1).lower() == "syntax":
            yield Frontend(number, repr(line.strip(SPACES)[:128]), match.group(2).strip(SPACES))
