"""The sources of ADD that an engine would fetch from elsewhere, and from which host, as far as a Dockerfile says it.

Engines know ever more forms of remote sources, and expand variables, quotes and escapes before they look: so whatever
could be one counts as one. A source that begins with `./` or `/` never does. They fetch http(s) URLs, and git
repositories by URL or as `user@host:path` (BuildKit, util/gitutil and frontend/dockerfile/dfgitutil). An authority is
read only in the one plain form that every URL parser reads alike.
"""

import re
from collections.abc import Iterable, Iterator

import msgspec

from imagejobd.dockerfile.expand import BadWord, Steps, expand
from imagejobd.dockerfile.parser import Instruction, separated

# A scheme, git's `user@host:path`, the short form of GitHub, and a repository by its name.
_REMOTE = re.compile(
    r"[a-z][a-z0-9+.-]*:[\\/]|[^/\\@]*@[^/\\:]*:|(?:www\.)?github\.com/|[^/\\.][^\\]*\.git(?:[#?].*)?\Z",
    re.I | re.S,
)
# What makes a word other than it is written; the backtick is an escape where a directive says so.
UNPLAIN = re.compile(r"[$'\"\\`]")
_SCHEME = re.compile(r"(?:https?|git|ssh)://", re.I)
_AUTHORITY = re.compile(
    r"(?:[A-Za-z0-9._~!&()*+,;=:%-]*@)?(?:(?P<name>[A-Za-z0-9._-]+)|\[(?P<ipv6>[0-9A-Fa-f:.]+)\])(?::[0-9]*)?(?P<end>[/?#]|\Z)"
)
_SCP = re.compile(r"[^/\\@:]*@(?P<name>[A-Za-z0-9._-]+):")


class RemoteSource(msgspec.Struct, frozen=True):
    """`word` as it is written and `text` as the engine sees it; with `is_open` only its beginning is known."""

    word: str
    text: str
    is_open: bool


class Remote(msgspec.Struct, frozen=True):
    """A source of ADD. `host` is a name or an address without port and brackets, None where it cannot be told.

    With `is_url` it is surely fetched; else it may as well be a file, or become anything by a variable.
    """

    line: int
    host: str | None
    is_url: bool


def remote_sources(instruction: Instruction, steps: Steps) -> Iterator[RemoteSource]:
    """What `instruction`, an ADD, may fetch; when no `steps` are left, every source that has to be expanded counts."""
    words = separated(instruction.arguments) if instruction.values is None else instruction.values
    for word in words[:-1]:
        for source in _readings(word, steps):
            # Nothing that stands before a scheme's colon or git's `@` is a slash or begins with a dot.
            could_be = source.is_open and "/" not in source.text and not source.text.startswith(".")
            if could_be or may_be_remote(source.text):
                yield source


def may_be_remote(text: str) -> bool:
    """Whether a source of ADD, expanded, is something that an engine may fetch."""
    return _REMOTE.match(text) is not None


def remotes(instructions: Iterable[Instruction]) -> Iterator[Remote]:
    """What the ADDs among `instructions` may have fetched, also those inside of ONBUILD; each host of a line once."""
    steps = Steps()
    for one in instructions:
        body = one.trigger or one
        if body.name == "ADD":
            yield from dict.fromkeys(_remote(one.first_line, source) for source in remote_sources(body, steps))


def _readings(word: str, steps: Steps) -> Iterator[RemoteSource]:
    """The word as engines may read it."""
    if not UNPLAIN.search(word):
        yield RemoteSource(word, word, is_open=False)
    elif "$" in word:
        yield RemoteSource(word, UNPLAIN.split(word, maxsplit=1)[0], is_open=True)
    else:
        # With either escape character, for the engine reads an ONBUILD of a stage anew, without the file's directive.
        for escape in "\\`":
            try:
                yield RemoteSource(word, expand(word, {}, escape, steps), is_open=False)
            except BadWord:
                # Also for what is only beyond our bounds, and which the engine may well expand.
                yield RemoteSource(word, "", is_open=True)


def _remote(line: int, source: RemoteSource) -> Remote:
    scheme = _SCHEME.match(source.text)
    if scheme is None:
        scp = _SCP.match(source.text)
        return Remote(line, scp["name"] if scp else None, is_url=scp is not None)
    authority = _AUTHORITY.match(source.text, scheme.end())
    # What follows a beginning that has not come to the end of its host may belong to the host.
    if authority is None or (source.is_open and not authority["end"]):
        return Remote(line, None, is_url=not source.is_open)
    return Remote(line, authority["name"] or authority["ipv6"], is_url=True)
