"""A build context from a stranger: read once, checked, and written anew.

What the engine gets is not what came in but a plain PAX tar of what was understood, so that no two readers can take the
same bytes for different files: no compression, nothing twice, no escape, no owner, no device. Symbolic links keep their
targets, absolute ones too: the engine resolves them within the context. Runs in a thread; the disk is the caller's.

An index says where each file stands in such a tar, so that it can be sent without being unpacked. It reads only what
`rewrite` wrote: no name twice, nothing compressed, hard links behind what they lead to.
"""

import stat
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from imagejobd.archive.contents import Components, Leaf, Tree
from imagejobd.archive.inflate import Inflated, Stop, over_limit
from imagejobd.archive.tar import (
    BLOCK_BYTES,
    DIRECTORY,
    HARD_LINK,
    PAX,
    REGULAR,
    SYMLINK,
    Member,
    Members,
    header_number,
    is_header,
    parse_member,
    parse_pax_records,
    read_sparse,
)
from imagejobd.dockerfile.policy import DOCKERFILE_MAX_BYTES
from imagejobd.model.entry import Entry
from imagejobd.model.errors import ErrorCode, Permanent, invalid
from imagejobd.model.text import quoted

DOCKERFILE = "Dockerfile"
DOCKERFILE_MODE = 0o644
# What an engine gives a directory that no member of a tar announces. Its time is nobody's.
IMPLIED_MODE = stat.S_IFDIR | 0o755

_DOCKERFILE_PATH: Components = (DOCKERFILE.encode(),)
# The engine's own name first: the first that is there counts.
_DOCKERFILE_NAMES = {_DOCKERFILE_PATH: DOCKERFILE, (DOCKERFILE.lower().encode(),): DOCKERFILE.lower()}
_REFUSED_TYPES = {b"3": "a character device", b"4": "a block device", b"6": "a FIFO"}
_TYPES = {REGULAR: stat.S_IFREG, HARD_LINK: stat.S_IFREG, DIRECTORY: stat.S_IFDIR, SYMLINK: stat.S_IFLNK}
_ZEROS = bytes(BLOCK_BYTES)
_END = 2 * _ZEROS


class ContextBounds(msgspec.Struct, frozen=True, kw_only=True):
    """How large a context may be unpacked. `max_bytes` bounds the rewritten tar too; names are counted in bytes."""

    max_bytes: int
    max_entries: int
    max_name_bytes: int = 4096
    max_dockerfile_bytes: int = DOCKERFILE_MAX_BYTES


def rewrite(source: BinaryIO | Path, target: BinaryIO, bounds: ContextBounds, stop: Stop) -> str:
    """Check the tar in `source`, compressed or not, and write it anew to `target`; the text of its Dockerfile.

    The context's `Dockerfile` counts, else its `dockerfile`, which is then written under both names. The text has no
    byte order mark. Raises `Permanent(invalid)` or `Permanent(too_large)` that names the member and the reason,
    `Stopped` soon after `stop()` is true, and OSError only for the disk under `source` and `target`.
    """
    if isinstance(source, Path):
        with source.open("rb") as file:
            return rewrite(file, target, bounds, stop)
    return _Rewriter(target, bounds).run(Inflated(source, max_bytes=bounds.max_bytes, stop=stop))


def dockerfile_context(text: str) -> bytes:
    """The tar of a context that holds one Dockerfile."""
    content = text.encode()
    header = _header(_DOCKERFILE_PATH, tarfile.REGTYPE, size=len(content), mode=DOCKERFILE_MODE)
    return header + content + bytes(-len(content) % BLOCK_BYTES) + _END


def dockerfile_text(content: bytes, name: str) -> str:
    """The text without a byte order mark. Raises `Permanent(invalid)`, which begins with `name`."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise invalid(f"{name} is not UTF-8 text (line {line})") from None


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
            target = member.link if member.type == SYMLINK else b""
            entries[path] = Entry(path, _TYPES[member.type] | member.mode, member.size, member.mtime, target, offset)
            if member.type == HARD_LINK:
                links[path] = links.get(member.link, member.link)
    for path in list(entries):
        parent = path.rpartition(b"/")[0]
        while parent and parent not in entries:
            entries[parent] = Entry(parent, IMPLIED_MODE)
            parent = parent.rpartition(b"/")[0]
    ordered = sorted(entries.values(), key=lambda entry: entry.path.replace(b"/", b"\0"))
    return _with_hard_links(ordered, entries, links) if links else ordered


class _Rewriter:
    """One pass from a stream of members to `target`."""

    def __init__(self, target: BinaryIO, bounds: ContextBounds) -> None:
        self._target = target
        self._bounds = bounds
        self._tree = Tree(max_entries=bounds.max_entries, max_name_bytes=bounds.max_name_bytes)
        self._tar_bytes = 0
        # Which name counts is known at the end only, so each one's content is remembered; None when it is too large.
        self._contents: dict[str, bytes | None] = {}

    def run(self, stream: Inflated) -> str:
        members = Members(stream)
        for member in members:
            self._member(member, members)
        stream.drain()
        name, content = self._dockerfile()
        text = dockerfile_text(content, f"the Dockerfile {name!r}")
        if name != DOCKERFILE:
            self._file(_DOCKERFILE_PATH, len(content), DOCKERFILE_MODE, 0, [content])
        self._write(_END)
        return text

    def _member(self, member: Member, members: Members) -> None:
        sparse = read_sparse(member, members)
        path = self._tree.path(sparse.name if sparse else member.name)
        if sparse:
            self._file(path, sparse.size, member.mode, member.mtime, sparse.data(members))
        elif member.type == REGULAR:
            self._file(path, member.size, member.mode, member.mtime, members.data())
        elif member.type == DIRECTORY:
            if self._tree.add_directory(path):
                self._write(_header(path, tarfile.DIRTYPE, mode=member.mode, mtime=member.mtime))
        elif member.type == SYMLINK:
            self._tree.add_symlink(path, member.link)
            self._write(_header(path, tarfile.SYMTYPE, mode=member.mode, mtime=member.mtime, link=member.link))
        elif member.type == HARD_LINK:
            target = b"/".join(self._tree.add_hard_link(path, member))
            self._write(_header(path, tarfile.LNKTYPE, mode=member.mode, mtime=member.mtime, link=target))
        else:
            what = _REFUSED_TYPES.get(member.type, f"of unknown type {quoted(member.type)}")
            raise invalid(f"{quoted(member.name)} is {what}; a build context holds only files, directories and links")

    def _file(self, path: Components, size: int, mode: int, mtime: int, pieces: Iterable[bytes]) -> None:
        self._tree.add(path, Leaf.FILE)
        if self._tar_bytes + size > self._bounds.max_bytes:
            raise over_limit(f"the tar unpacks to more than {self._bounds.max_bytes} bytes")
        self._write(_header(path, tarfile.REGTYPE, size=size, mode=mode, mtime=mtime))
        for piece in self._remember(path, size, pieces):
            self._write(piece)
        self._write(bytes(-size % BLOCK_BYTES))

    def _remember(self, path: Components, size: int, pieces: Iterable[bytes]) -> Iterable[bytes]:
        """`pieces`; those of a Dockerfile are also remembered."""
        name = _DOCKERFILE_NAMES.get(path)
        if name is None:
            return pieces
        self._contents[name] = None
        if size > self._bounds.max_dockerfile_bytes:
            return pieces
        content = self._contents[name] = b"".join(pieces)
        return [content]

    def _write(self, piece: bytes) -> None:
        self._tar_bytes += len(piece)
        if self._tar_bytes > self._bounds.max_bytes:
            raise over_limit(f"the tar unpacks to more than {self._bounds.max_bytes} bytes")
        self._target.write(piece)

    def _dockerfile(self) -> tuple[str, bytes]:
        for path, name in _DOCKERFILE_NAMES.items():
            node = self._tree.at(path)
            if node is None:
                continue
            if name not in self._contents:
                kind = (
                    "a directory" if isinstance(node, dict) else node.value if node is Leaf.SYMLINK else "a hard link"
                )
                raise invalid(f"the Dockerfile {name!r} is {kind} in this tar; send it as a regular file")
            content = self._contents[name]
            if content is None:
                limit = self._bounds.max_dockerfile_bytes
                raise Permanent(ErrorCode.TOO_LARGE, f"the Dockerfile {name!r} is larger than {limit} bytes, the limit")
            return name, content
        names = " or ".join(map(repr, _DOCKERFILE_NAMES.values()))
        raise invalid(f"the tar has no {names} at its top level; pack the tar from within the folder that holds it")


def _header(path: Components, kind: bytes, *, size: int = 0, mode: int, mtime: int = 0, link: bytes = b"") -> bytes:
    """The header blocks of one member: ustar where that can say it, PAX where not. Owner is root, without names."""
    info = tarfile.TarInfo(b"/".join(path).decode(errors="surrogateescape"))
    info.type, info.size, info.mode, info.mtime = kind, size, mode, mtime
    info.linkname = link.decode(errors="surrogateescape")
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


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
