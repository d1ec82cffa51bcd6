"""Whom the engine would ask for the sources of ADD: the hosts, as far as a Dockerfile tells them.

Engines fetch http(s) URLs, and git repositories by URL or as `user@host:path` (BuildKit, util/gitutil and
frontend/dockerfile/dfgitutil). An authority is read only in the one plain form that every URL parser reads alike.
"""

import re
from collections.abc import Iterable, Iterator

import msgspec

from imagejobd.model.dockerfile.instruction import Instruction
from imagejobd.model.dockerfile.sources import RemoteSource, remote_sources
from imagejobd.model.dockerfile.steps import Steps

_SCHEME = re.compile(r"(?:https?|git|ssh)://", re.I)
_AUTHORITY = re.compile(
    r"(?:[A-Za-z0-9._~!&()*+,;=:%-]*@)?(?:(?P<name>[A-Za-z0-9._-]+)|\[(?P<ipv6>[0-9A-Fa-f:.]+)\])(?::[0-9]*)?(?P<end>[/?#]|\Z)"
)
_SCP = re.compile(r"[^/\\@:]*@(?P<name>[A-Za-z0-9._-]+):")


class Remote(msgspec.Struct, frozen=True):
    """A source of ADD. `host` is a name or an address without port and brackets, None where it cannot be told.

    With `is_url` it is surely fetched; else it may as well be a file, or become anything by a variable.
    """

    line: int
    host: str | None
    is_url: bool


def remotes(instructions: Iterable[Instruction]) -> Iterator[Remote]:
    """What the ADDs among `instructions` may have fetched, also those inside of ONBUILD; each host of a line once."""
    steps = Steps()
    for one in instructions:
        body = one.trigger or one
        if body.name == "ADD":
            yield from dict.fromkeys(_remote(one.first_line, source) for source in remote_sources(body, steps))


def _remote(line: int, source: RemoteSource) -> Remote:
    scheme = _SCHEME.match(source.text)
    if scheme is None:
        scp = _SCP.match(source.text)
        return Remote(line, scp["name"] if scp else None, is_url=scp is not None)
    found = _AUTHORITY.match(source.text, scheme.end())
    # What follows a beginning that has not come to the end of its host may belong to the host.
    if found is None or (source.is_open and not found["end"]):
        return Remote(line, None, is_url=not source.is_open)
    return Remote(line, found["name"] or found["ipv6"], is_url=True)
