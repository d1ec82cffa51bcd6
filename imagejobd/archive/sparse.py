"""Sparse members: files whose holes are left out of the archive (`tar --sparse`).

Turned back into plain files, because not every engine reads each form. Knows the map of old GNU archives (type `S`) and
PAX format 1.0, the two that GNU tar has written since 2006, and refuses the others. A map is checked before its first
use: ascending, not overlapping, within the file, and as long as its data.
"""

from collections.abc import Iterator

import msgspec

from imagejobd.archive.members import (
    BLOCK_BYTES,
    GNU_SPARSE,
    SIZE_MAX_BYTES,
    Member,
    Members,
    header_number,
    shown,
)
from imagejobd.model.errors import ErrorCode, Permanent, invalid

EXTENTS_MAX = 65_536
DIGITS_MAX = 19

_MAP_OFFSET, _MAP_ENTRIES = 386, 4
_MORE_OFFSET, _REAL_SIZE = 482, slice(483, 495)
_EXTENSION_ENTRIES, _EXTENSION_MORE_OFFSET = 21, 504
_ENTRY_BYTES = 24

Extents = list[tuple[int, int]]


class Sparse(msgspec.Struct, frozen=True):
    """A sparse file unrolled: its own name, its logical size in bytes, and where (offset, length) its data belongs."""

    name: bytes
    size: int
    extents: Extents

    def data(self, members: Members) -> Iterator[bytes]:
        """The file's bytes, holes as zeros; the members' position is right behind the map."""
        at = 0
        pieces = members.data()
        piece = b""
        for offset, length in self.extents:
            yield from members.hole(offset - at)
            at = offset + length
            while length:
                piece = piece or next(pieces)
                yield piece[:length]
                taken = min(length, len(piece))
                length -= taken
                piece = piece[taken:]
        yield from members.hole(self.size - at)


def read_sparse(member: Member, members: Members) -> Sparse | None:
    """The map of `member`, None when it is not sparse. Raises `Permanent` for a wrong map and for other forms."""
    version = member.pax.get(b"GNU.sparse.major"), member.pax.get(b"GNU.sparse.minor")
    if member.type == GNU_SPARSE:
        found = _old_gnu(member, members)
        data_size = member.size
    elif version == (b"1", b"0"):
        found, map_size = _pax_1_0(member, members)
        data_size = member.size - map_size
    elif any(key.startswith(b"GNU.sparse.") for key in member.pax):
        raise invalid(f"{shown(member.name)} is sparse in a form that is not supported; pack it without --sparse")
    else:
        return None
    _check(found, data_size)
    return found


def _old_gnu(member: Member, members: Members) -> Sparse:
    extents = _entries(member.header[_MAP_OFFSET:], _MAP_ENTRIES)
    more = member.header[_MORE_OFFSET]
    while more:
        block = members.read_map_block()
        extents += _entries(block, _EXTENSION_ENTRIES)
        more = block[_EXTENSION_MORE_OFFSET]
        _bound(member, len(extents))
    return Sparse(member.name, header_number(member.header[_REAL_SIZE], "size"), extents)


def _entries(block: bytes, count: int) -> Extents:
    extents: Extents = []
    for at in range(0, count * _ENTRY_BYTES, _ENTRY_BYTES):
        if block[at] == 0:
            break
        offset, length = block[at : at + 12], block[at + 12 : at + 24]
        extents.append((header_number(offset, "sparse map"), header_number(length, "sparse map")))
    return extents


def _pax_1_0(member: Member, members: Members) -> tuple[Sparse, int]:
    """The map stands in front of the data: decimal numbers, one a line, padded to whole blocks."""
    numbers = _Numbers(member, members)
    count = numbers.next()
    _bound(member, count)
    extents = [(numbers.next(), numbers.next()) for _ in range(count)]
    size = _decimal(member, member.pax.get(b"GNU.sparse.realsize", b""))
    return Sparse(member.pax.get(b"GNU.sparse.name", member.name), size, extents), numbers.bytes_read


class _Numbers:
    def __init__(self, member: Member, members: Members) -> None:
        self._member = member
        self._members = members
        self._text = b""
        self.bytes_read = 0

    def next(self) -> int:
        while b"\n" not in self._text:
            if len(self._text) > DIGITS_MAX:
                raise _broken(self._member.name)
            self._text += self._members.read(BLOCK_BYTES)
            self.bytes_read += BLOCK_BYTES
        line, _, self._text = self._text.partition(b"\n")
        return _decimal(self._member, line)


def _decimal(member: Member, digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > DIGITS_MAX:
        raise _broken(member.name)
    return int(digits)


def _bound(member: Member, count: int) -> None:
    if count > EXTENTS_MAX:
        what = f"{shown(member.name)} has a sparse map of more than {EXTENTS_MAX} entries"
        raise Permanent(ErrorCode.TOO_LARGE, f"{what}, which is the limit; pack it without --sparse")


def _check(sparse: Sparse, data_size: int) -> None:
    at = 0
    for offset, length in sparse.extents:
        if offset < at:
            raise _broken(sparse.name)
        at = offset + length
    stored = sum(length for _, length in sparse.extents)
    if at > sparse.size or stored != data_size or sparse.size > SIZE_MAX_BYTES:
        raise _broken(sparse.name)


def _broken(name: bytes) -> Permanent:
    return invalid(f"the tar is damaged: the sparse map of {shown(name)} is wrong")
