"""Where each file of a checked context stands in its tar, so that it can be sent without being unpacked.

Only for what `rewrite` wrote: no name twice, nothing compressed, hard links behind what they lead to.
"""

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from imagejobd.archive.members import (
    BLOCK_BYTES,
    DIRECTORY,
    HARD_LINK,
    PAX,
    REGULAR,
    SYMLINK,
    Member,
    header_number,
    is_header,
    parse_member,
    parse_pax_records,
)
from imagejobd.model.errors import invalid

# What an engine gives a directory that no member of a tar announces. Its time is nobody's.
IMPLIED_MODE = stat.S_IFDIR | 0o755

_TYPES = {REGULAR: stat.S_IFREG, HARD_LINK: stat.S_IFREG, DIRECTORY: stat.S_IFDIR, SYMLINK: stat.S_IFLNK}
_ZEROS = bytes(BLOCK_BYTES)


class Entry(msgspec.Struct, frozen=True):
    """A file, directory or link of a context.

    `mode` has the type too, as stat(2) does; `mtime` counts seconds; `offset` is where a file's bytes begin in the tar.
    `link` is the target of a symbolic link, or the path of the entry before this one that is the same file.
    """

    path: bytes
    mode: int
    size: int = 0
    mtime: int = 0
    link: bytes = b""
    offset: int = 0


def index(tar: Path) -> list[Entry]:
    """All of a checked context in the order of a walk: siblings by their bytes, a directory right before what is in it.

    Directories that no member announces are there too. Reads the headers only, blocking. Raises OSError, and
    `Permanent(invalid)` for a file that is not what `rewrite` wrote.
    """
    entries: dict[bytes, Entry] = {}
    links: dict[bytes, bytes] = {}
    with tar.open("rb") as file:
        for member, offset in _members(file):
            path = member.name.rstrip(b"/")
            entry = Entry(path, _TYPES[member.type] | member.mode, member.size, member.mtime, b"", offset)
            if member.type == SYMLINK:
                entry = msgspec.structs.replace(entry, link=member.link)
            elif member.type == HARD_LINK:
                links[path] = links.get(member.link, member.link)
            entries[path] = entry
    _add_parents(entries)
    ordered = sorted(entries.values(), key=lambda entry: entry.path.replace(b"/", b"\0"))
    return _with_hard_links(ordered, entries, links) if links else ordered


def _add_parents(entries: dict[bytes, Entry]) -> None:
    for path in list(entries):
        parent = path.rpartition(b"/")[0]
        while parent and parent not in entries:
            entries[parent] = Entry(parent, IMPLIED_MODE)
            parent = parent.rpartition(b"/")[0]


def _with_hard_links(ordered: list[Entry], entries: dict[bytes, Entry], links: dict[bytes, bytes]) -> list[Entry]:
    """Each file under the first of its names in the walk, whichever it was in the tar, and the others as links to it.

    Mode and time are what its last member in the tar says, as they are after unpacking.
    """
    last = {source: entries[path] for path, source in links.items()}
    first: dict[bytes, bytes] = {}
    linked = []
    for entry in ordered:
        source = links.get(entry.path, entry.path)
        if source in last:
            mode, mtime = last[source].mode, last[source].mtime
            if source in first:
                entry = Entry(entry.path, mode, 0, mtime, first[source])
            else:
                first[source] = entry.path
                entry = Entry(entry.path, mode, entries[source].size, mtime, b"", entries[source].offset)
        linked.append(entry)
    return linked


def _members(file: BinaryIO) -> Iterator[tuple[Member, int]]:
    extended: dict[bytes, bytes] = {}
    while (block := file.read(BLOCK_BYTES)) != _ZEROS:
        if not is_header(block):
            raise invalid("the context in the content store is damaged")
        if block[156:157] == PAX:
            size = header_number(block[124:136], "size")
            extended = parse_pax_records(file.read(size + -size % BLOCK_BYTES)[:size])
            continue
        member = parse_member(block, extended, {})
        extended = {}
        at = file.tell()
        yield member, at
        file.seek(at + member.size + -member.size % BLOCK_BYTES)
