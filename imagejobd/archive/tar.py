"""The members of a tar as they stand in it: ustar, GNU and PAX headers, read one after the other.

Written for hostile archives, which the standard library's reader is not: it follows chains of headers by recursion and
keeps whatever a header claims to be long. Here every header is bounded before it is read, every number checked, and
each fault is `Permanent` with the member's name. Nothing is judged by its name or type; `context` does that.

Sparse members, whose holes are left out of the archive, are turned back into plain files, because not every engine
reads each form. Known are the map of old GNU archives (type `S`, `tar --sparse`) and PAX format 1.0, which bsdtar, the
tar of macOS, writes without being asked wherever a file has holes; older PAX forms are refused.
"""

import re
from collections.abc import Iterator

import msgspec

from imagejobd.archive.inflate import Inflated, looks_like, over_limit
from imagejobd.model.errors import ErrorCode, Permanent, invalid
from imagejobd.model.text import quoted

BLOCK_BYTES = 512
# One extended header: a PAX record set or a GNU long name. Both are held in memory.
HEADER_MAX_BYTES = 1 << 20
# A PAX header and a GNU long name and long link, some with a global header in front.
HEADERS_PER_MEMBER_MAX = 8
# Times, owners, extended attributes: a few dozen. Each takes time to read, and a mebibyte has room for 200,000.
RECORDS_PER_HEADER_MAX = 1024
SIZE_MAX_BYTES = 1 << 62
SPARSE_EXTENTS_MAX = 65_536
SPARSE_DIGITS_MAX = 19

REGULAR = b"0"
HARD_LINK = b"1"
SYMLINK = b"2"
DIRECTORY = b"5"
GNU_SPARSE = b"S"
_REGULAR_TYPES = (b"0", b"\0", b"7")
PAX, _PAX_SUN, _PAX_GLOBAL = b"x", b"X", b"g"
_LONG_NAME, _LONG_LINK = b"L", b"K"
_HEADER_TYPES = (PAX, _PAX_SUN, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK)
_KEPT_RECORDS = (b"path", b"linkpath", b"size")
_SPARSE_PREFIX = b"GNU.sparse."

# The sparse map in a header of old GNU archives, and in the blocks that go on with it.
_MAP_OFFSET, _MAP_ENTRIES = 386, 4
_MORE_OFFSET, _REAL_SIZE = 482, slice(483, 495)
_EXTENSION_ENTRIES, _EXTENSION_MORE_OFFSET = 21, 504
_ENTRY_BYTES = 24

_ZEROS = bytes(BLOCK_BYTES)
_DECIMAL = re.compile(rb"[0-9]{1,19}")
_OCTAL = re.compile(rb"[ \0]*([0-7]*)[ \0]*")
_RECORD = re.compile(rb"([0-9]{1,7}) ([^=]+)=", re.DOTALL)

Extents = list[tuple[int, int]]


class Member(msgspec.Struct, frozen=True):
    """One member. Names are bytes as sent; `size` counts the data bytes that follow in the archive.

    `header` is the raw block, for the sparse map of old GNU archives; `pax` the records about name, size and holes.
    """

    name: bytes
    type: bytes
    link: bytes
    size: int
    mode: int
    mtime: int
    header: bytes
    pax: dict[bytes, bytes]


class Members:
    """Iterates over the members of `stream`. Data that the caller does not read between two steps is skipped."""

    def __init__(self, stream: Inflated) -> None:
        self._stream = stream
        self._unread_bytes = 0
        self._padding = 0
        self._is_first = True
        self._name = "its first header"

    def __iter__(self) -> Iterator[Member]:
        while (member := self._next()) is not None:
            self._name = quoted(member.name)
            self._unread_bytes = member.size
            self._padding = -member.size % BLOCK_BYTES
            yield member
            for _ in self.data():
                pass
            if len(self._stream.read(self._padding)) < self._padding:
                raise invalid(f"the tar is cut short after {self._name}")

    def data(self) -> Iterator[bytes]:
        """The rest of the current member's data, in pieces."""
        while self._unread_bytes:
            piece = self._stream.read_some(self._unread_bytes)
            if not piece:
                raise invalid(f"the tar is cut short within {self._name}")
            self._unread_bytes -= len(piece)
            yield piece

    def read(self, count: int) -> bytes:
        """Exactly `count` bytes of the current member's data; raises `Permanent(invalid)` when it has fewer."""
        piece = self._stream.read(count) if count <= self._unread_bytes else b""
        if len(piece) < count:
            raise invalid(f"the tar is damaged: {self._name} ends too early")
        self._unread_bytes -= count
        return piece

    def hole(self, count: int) -> Iterator[bytes]:
        """What a sparse member leaves out, in pieces: `count` zeros, under the bound of the stream."""
        return self._stream.zeros(count)

    def read_map_block(self) -> bytes:
        """One more block of an old GNU sparse map. Those stand before the data and are not counted in its size."""
        block = self._stream.read(BLOCK_BYTES)
        if len(block) < BLOCK_BYTES:
            raise invalid(f"the tar is cut short within the sparse map of {self._name}")
        return block

    def _next(self) -> Member | None:
        extended: dict[bytes, bytes] = {}
        long_names: dict[bytes, bytes] = {}
        for _ in range(HEADERS_PER_MEMBER_MAX):
            block = self._block()
            if block is None:
                if extended or long_names:
                    raise invalid("the tar is cut short after an extended header")
                return None
            kind = block[156:157]
            if kind not in _HEADER_TYPES:
                return parse_member(block, extended, long_names)
            content = self._header_content(block)
            if kind in (_LONG_NAME, _LONG_LINK):
                long_names[kind] = content.split(b"\0", 1)[0]
            elif kind == _PAX_GLOBAL:
                # `git archive` writes its commit into one.
                for key in parse_pax_records(content):
                    raise invalid(f"the tar sets {quoted(key)} for all members at once, which is not supported")
            else:
                extended |= parse_pax_records(content)
        raise invalid(f"the tar has more than {HEADERS_PER_MEMBER_MAX} headers for one member")

    def _block(self) -> bytes | None:
        """The next header, or None at the end. An archive may end without its two blocks of zeros, as for GNU tar."""
        block = self._stream.read(BLOCK_BYTES)
        is_first, self._is_first = self._is_first, False
        if not block and not is_first:
            return None
        if len(block) == BLOCK_BYTES and block == _ZEROS:
            if self._stream.read(BLOCK_BYTES).strip(b"\0"):
                raise invalid("the tar is damaged: an empty block stands between members")
            return None
        if is_header(block):
            return block
        if is_first:
            inside = f" inside the {self._stream.format} data" if self._stream.format else ""
            kind = looks_like(block + self._stream.read(BLOCK_BYTES))
            raise invalid(f"this is not a tar{inside}: it looks like {kind}")
        if len(block) < BLOCK_BYTES:
            raise invalid(f"the tar is cut short after {self._name}")
        raise invalid(f"the tar is damaged after {self._name}: a header has a wrong checksum")

    def _header_content(self, block: bytes) -> bytes:
        size = header_number(block[124:136], "size")
        if size > HEADER_MAX_BYTES:
            raise Permanent(
                ErrorCode.TOO_LARGE, f"the tar has an extended header of {size} bytes; the limit is {HEADER_MAX_BYTES}"
            )
        padded = size + -size % BLOCK_BYTES
        content = self._stream.read(padded)
        if len(content) < padded:
            raise invalid("the tar is cut short within an extended header")
        return content[:size]


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
                length, piece = max(0, length - len(piece)), piece[length:]
        yield from members.hole(self.size - at)


def header_number(field: bytes, what: str) -> int:
    """An octal number, or GNU's base-256 form, which can also be negative or absurdly large."""
    if field[0] & 0x80:
        value = int.from_bytes(field) - (0x80 << 8 * (len(field) - 1))
        if field[0] != 0x80 or value > SIZE_MAX_BYTES:
            raise invalid(f"the tar is damaged: a header has an impossible {what}")
        return value
    match = _OCTAL.fullmatch(field)
    if not match:
        raise invalid(f"the tar is damaged: a header has a {what} that is no number")
    return int(match.group(1) or b"0", 8)


def is_header(block: bytes) -> bool:
    """Whether a block is a header: its checksum, with the field for it as spaces, says so.

    Some old tars summed signed bytes.
    """
    if len(block) < BLOCK_BYTES:
        return False
    match = _OCTAL.fullmatch(block[148:156])
    if not match or not match.group(1):
        return False
    expected = int(match.group(1), 8)
    actual = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    return expected == actual or expected == actual - 256 * sum(byte > 127 for byte in block[:148] + block[156:])


def parse_member(block: bytes, extended: dict[bytes, bytes], long_names: dict[bytes, bytes]) -> Member:
    kind = block[156:157]
    name = extended.get(b"path") or long_names.get(_LONG_NAME) or _ustar_name(block)
    if kind in _REGULAR_TYPES:
        kind = DIRECTORY if kind == b"\0" and name.endswith(b"/") else REGULAR
    size = header_number(block[124:136], "size")
    if b"size" in extended:
        if not _DECIMAL.fullmatch(extended[b"size"]) or int(extended[b"size"]) > SIZE_MAX_BYTES:
            raise invalid("the tar is damaged: a PAX header has an impossible size")
        size = int(extended[b"size"])
    return Member(
        name=name,
        type=kind,
        link=extended.get(b"linkpath") or long_names.get(_LONG_LINK) or block[157:257].split(b"\0", 1)[0],
        # Links and directories have no data, whatever their header says (POSIX pax, ustar Interchange Format).
        size=size if kind in (REGULAR, GNU_SPARSE) else 0,
        mode=header_number(block[100:108], "mode") & 0o7777,
        mtime=_mtime(block[136:148]),
        header=block,
        pax=extended,
    )


def parse_pax_records(content: bytes) -> dict[bytes, bytes]:
    """The `length key=value\\n` records (POSIX pax) that matter here; the length counts the whole record."""
    records: dict[bytes, bytes] = {}
    at = count = 0
    while at < len(content):
        count += 1
        if count > RECORDS_PER_HEADER_MAX:
            raise over_limit(f"the tar has a PAX header of more than {RECORDS_PER_HEADER_MAX} records")
        match = _RECORD.match(content, at)
        end = at + int(match.group(1)) if match else 0
        if not match or end <= match.end() or content[end - 1 : end] != b"\n":
            raise invalid("the tar is damaged: a PAX header cannot be read")
        key, value = match.group(2), content[match.end() : end - 1]
        if b"\0" in value and key in (b"path", b"linkpath"):
            raise invalid("the tar has a name with a NUL byte")
        if key in _KEPT_RECORDS or key.startswith(_SPARSE_PREFIX):
            records[key] = value
        at = end
    return records


def read_sparse(member: Member, members: Members) -> Sparse | None:
    """The map of `member`, None when it is not sparse. Raises `Permanent` for a wrong map and for other forms.

    A map is checked before its first use: ascending, not overlapping, within the file, and as long as its data.
    """
    if member.type == GNU_SPARSE:
        sparse, data_bytes = _old_gnu(member, members), member.size
    elif (member.pax.get(b"GNU.sparse.major"), member.pax.get(b"GNU.sparse.minor")) == (b"1", b"0"):
        sparse, map_bytes = _pax_1_0(member, members)
        data_bytes = member.size - map_bytes
    elif any(key.startswith(_SPARSE_PREFIX) for key in member.pax):
        raise invalid(f"{quoted(member.name)} is sparse in a form that is not supported; pack it without --sparse")
    else:
        return None
    at = 0
    for offset, length in sparse.extents:
        if offset < at:
            raise _wrong_map(sparse.name)
        at = offset + length
    if at > sparse.size or sum(length for _, length in sparse.extents) != data_bytes or sparse.size > SIZE_MAX_BYTES:
        raise _wrong_map(sparse.name)
    return sparse


def _ustar_name(block: bytes) -> bytes:
    name = block[:100].split(b"\0", 1)[0]
    # GNU headers have other things where ustar has the prefix.
    prefix = block[345:500].split(b"\0", 1)[0] if block[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _mtime(field: bytes) -> int:
    """Seconds; a time before 1970 (a base-256 negative) is 1970. Fractions from PAX records are not kept."""
    if field[0] & 0xC0 == 0xC0:
        return 0
    return min(header_number(field, "time"), (1 << 33) - 1)


def _old_gnu(member: Member, members: Members) -> Sparse:
    extents = _entries(member.header[_MAP_OFFSET:], _MAP_ENTRIES)
    more = member.header[_MORE_OFFSET]
    while more:
        block = members.read_map_block()
        extents += _entries(block, _EXTENSION_ENTRIES)
        more = block[_EXTENSION_MORE_OFFSET]
        _check_count(member, len(extents))
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
    """The map, and its bytes in front of the data: decimal numbers, one a line, padded to whole blocks."""
    text, map_bytes = b"", 0

    def number() -> int:
        nonlocal text, map_bytes
        while b"\n" not in text:
            if len(text) > SPARSE_DIGITS_MAX:
                raise _wrong_map(member.name)
            text += members.read(BLOCK_BYTES)
            map_bytes += BLOCK_BYTES
        line, _, text = text.partition(b"\n")
        return _decimal(member, line)

    count = number()
    _check_count(member, count)
    extents = [(number(), number()) for _ in range(count)]
    size = _decimal(member, member.pax.get(b"GNU.sparse.realsize", b""))
    return Sparse(member.pax.get(b"GNU.sparse.name", member.name), size, extents), map_bytes


def _decimal(member: Member, digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > SPARSE_DIGITS_MAX:
        raise _wrong_map(member.name)
    return int(digits)


def _check_count(member: Member, count: int) -> None:
    if count > SPARSE_EXTENTS_MAX:
        what = f"{quoted(member.name)} has a sparse map of more than {SPARSE_EXTENTS_MAX} entries"
        raise Permanent(ErrorCode.TOO_LARGE, f"{what}, which is the limit; pack it without --sparse")


def _wrong_map(name: bytes) -> Permanent:
    return invalid(f"the tar is damaged: the sparse map of {quoted(name)} is wrong")
