"""Sources of ADD that an engine would fetch from elsewhere.

Engines know ever more forms of remote sources, and expand variables, quotes and escapes before they look: so whatever
could be one counts as one. A source that begins with `./` or `/` never does.
"""

import re
from collections.abc import Iterator

import msgspec

from imagejobd.model.dockerfile.grammar import separated
from imagejobd.model.dockerfile.instruction import Instruction
from imagejobd.model.dockerfile.steps import Steps
from imagejobd.model.dockerfile.words import BadWord, expand

# A scheme, git's `user@host:path`, the short form of GitHub, and a repository by its name.
_REMOTE = re.compile(
    r"[a-z][a-z0-9+.-]*:[\\/]|[^/\\@]*@[^/\\:]*:|(?:www\.)?github\.com/|[^/\\.][^\\]*\.git(?:[#?].*)?\Z",
    re.I | re.S,
)
# What makes a word other than it is written; the backtick is an escape where a directive says so.
UNPLAIN = re.compile(r"[$'\"\\`]")


class RemoteSource(msgspec.Struct, frozen=True):
    """`word` as it is written and `text` as the engine sees it; with `is_open` only its beginning is known."""

    word: str
    text: str
    is_open: bool


def remote_sources(instruction: Instruction, steps: Steps) -> Iterator[RemoteSource]:
    """What `instruction`, an ADD, may fetch; without `steps` left, every source that has to be expanded may be."""
    words = separated(instruction.arguments) if instruction.values is None else instruction.values
    for word in words[:-1]:
        for source in _seen(word, steps):
            if _REMOTE.match(source.text) or (source.is_open and _could_be_remote(source.text)):
                yield source


def _seen(word: str, steps: Steps) -> Iterator[RemoteSource]:
    if not UNPLAIN.search(word):
        yield RemoteSource(word, word, is_open=False)
    elif "$" in word:
        yield RemoteSource(word, UNPLAIN.split(word, maxsplit=1)[0], is_open=True)
    else:
        # With either escape character, for the engine reads an ONBUILD of a stage anew, without the file's directive.
        for escape in "\\`":
            yield _expanded(word, escape, steps)


def _expanded(word: str, escape: str, steps: Steps) -> RemoteSource:
    try:
        return RemoteSource(word, expand(word, {}, escape, steps), is_open=False)
    except BadWord:
        # Also for what is only beyond our bounds, and which the engine may well expand.
        return RemoteSource(word, "", is_open=True)


def _could_be_remote(prefix: str) -> bool:
    """Nothing that stands before a scheme's colon or git's `@` is a slash or begins with a dot."""
    return "/" not in prefix and not prefix.startswith(".")
