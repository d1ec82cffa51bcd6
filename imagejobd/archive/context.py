"""A build context from a stranger: read once, checked, and written anew.

What the engine gets is not what came in but a plain PAX tar of what was understood, so that no two readers can take the
same bytes for different files: no compression, nothing twice, no escape, no owner, no device. Symbolic links keep their
targets, absolute ones too: the engine resolves them within the context. Runs in a thread; the disk is the caller's.

An index says where each file stands in such a tar, so that it can be sent without being unpacked, less what the
context's ignore file excludes. It reads only what `rewrite` wrote: no name twice, nothing compressed, hard links behind
what they lead to.

Of what the engine is sent it never reads the Dockerfile, wherever that lies: it is given the text that was judged
beside the context. So a path that two readers resolve differently leads nobody to another text.
"""

import stat
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec

from imagejobd.archive.contents import Components, Leaf, Node, Tree
from imagejobd.archive.ignore import IGNORE_FILE_MAX_BYTES, IgnoreFile
from imagejobd.archive.inflate import Inflated, Stop, Stopped, over_limit
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
NAME_MAX_BYTES = 4096
# What an engine gives a directory that no member of a tar announces. Its time is nobody's.
IMPLIED_MODE = stat.S_IFDIR | 0o755

# Lines of an ignore file times bytes of names, where the lines have no wildcards that are slow (for those see
# `PROCESSOR_MAX_S`). Each comparison counts as so many bytes besides.
COMPARED_MAX_BYTES = 1_000_000_000
COMPARISON_BYTES = 64

_DOCKERFILE_PATH: Components = (DOCKERFILE.encode(),)
# The engine's own name first: the first that is there counts.
_DEFAULT_PATHS: tuple[Components, ...] = (_DOCKERFILE_PATH, (DOCKERFILE.lower().encode(),))
_IGNORE_SUFFIX = b".dockerignore"
_REFUSED_TYPES = {b"3": "a character device", b"4": "a block device", b"6": "a FIFO"}
_TYPES = {REGULAR: stat.S_IFREG, HARD_LINK: stat.S_IFREG, DIRECTORY: stat.S_IFDIR, SYMLINK: stat.S_IFLNK}
_ZEROS = bytes(BLOCK_BYTES)
_END = 2 * _ZEROS


class ContextBounds(msgspec.Struct, frozen=True, kw_only=True):
    """How large a context may be unpacked. `max_bytes` bounds the rewritten tar too; names are counted in bytes."""

    max_bytes: int
    max_entries: int
    max_name_bytes: int = NAME_MAX_BYTES
    max_dockerfile_bytes: int = DOCKERFILE_MAX_BYTES


def rewrite(
    source: BinaryIO | Path, target: BinaryIO, bounds: ContextBounds, stop: Stop, dockerfile_path: str | None = None
) -> str:
    """Check the tar in `source`, compressed or not, and write it anew to `target`; the text of its Dockerfile.

    Without `dockerfile_path` the context's `Dockerfile` counts, else its `dockerfile`. The text has no byte order mark.
    Raises `Permanent(invalid)` or `Permanent(too_large)` that names the member and the reason, also for an ignore file
    that cannot be read; `Stopped` soon after `stop()` is true, and OSError only for the disk under `source` and
    `target`.
    """
    if isinstance(source, Path):
        with source.open("rb") as file:
            return rewrite(file, target, bounds, stop, dockerfile_path)
    rewriter = _Rewriter(target, bounds, _candidates(dockerfile_path))
    return rewriter.run(Inflated(source, max_bytes=bounds.max_bytes, stop=stop))


def parse_dockerfile_path(text: str) -> Components:
    """The components of a Dockerfile's path in its context. Raises `Permanent(invalid)` for one that leads out of it,
    or that names no file."""
    path = text.encode(errors="surrogateescape")
    parts = tuple(part for part in path.split(b"/") if part not in (b"", b"."))
    why = ""
    if path.startswith(b"/") or b".." in parts:
        why = "leads out of the context; give the path below its top, without .. and a / in front"
    elif not parts or path.endswith((b"/", b"/.")) or path == b".":
        why = "names a folder; give the path of the file, such as docker/Dockerfile"
    elif b"\0" in path or len(path) > NAME_MAX_BYTES:
        why = f"holds a NUL, or is longer than {NAME_MAX_BYTES} bytes"
    if why:
        raise invalid(f"dockerfile_path {quoted(text)} {why}")
    return parts


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


def index(tar: Path, dockerfile_path: str | None = None, *, stop: Stop = lambda: False) -> list[Entry]:
    """What of a checked context belongs to the build, in the order of a walk: siblings by their bytes, a directory
    right before what is in it. With `dockerfile_path` as for `rewrite`: an ignore file beside the Dockerfile goes
    before `.dockerignore`.

    Directories that no member announces are there too. Reads the headers and the ignore file only, blocking. Raises
    OSError, `Permanent(invalid)` for a file that is not what `rewrite` wrote, `Permanent(too_large)` for an ignore file
    that takes too long, and `Stopped` soon after `stop()` is true.
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
    ignore = _ignore_file(tar, entries, dockerfile_path)
    if ignore is not None:
        ordered = _without_ignored(ordered, ignore, stop)
    return _with_hard_links(ordered, entries, links) if links else ordered


class _Rewriter:
    """One pass from a stream of members to `target`."""

    def __init__(self, target: BinaryIO, bounds: ContextBounds, dockerfiles: Sequence[Components]) -> None:
        """`dockerfiles` are the paths of which the first that is there is the Dockerfile."""
        self._target = target
        self._bounds = bounds
        self._tree = Tree(max_entries=bounds.max_entries, max_name_bytes=bounds.max_name_bytes)
        self._tar_bytes = 0
        self._names_bytes = 0
        self._dockerfiles = dockerfiles
        self._ignore_files = _ignore_paths(dockerfiles)
        # Which of them count is known at the end only, so each one's content is remembered; None when it is too large.
        self._contents: dict[Components, bytes | None] = {}
        self._max_bytes = dict.fromkeys(self._ignore_files, IGNORE_FILE_MAX_BYTES)
        self._max_bytes |= dict.fromkeys(dockerfiles, bounds.max_dockerfile_bytes)

    def run(self, stream: Inflated) -> str:
        members = Members(stream)
        for member in members:
            self._member(member, members)
        stream.drain()
        path = self._dockerfile()
        text = dockerfile_text(self._content(path, "the Dockerfile"), f"the Dockerfile {quoted(b'/'.join(path))}")
        # All of them, whichever counts: the engine reads `.dockerignore` for itself.
        for ignore_file in self._ignore_files:
            if self._tree.at(ignore_file) is not None:
                self._check_ignore_file(ignore_file)
        self._write(_END)
        return text

    def _member(self, member: Member, members: Members) -> None:
        sparse = read_sparse(member, members)
        path = self._tree.path(sparse.name if sparse else member.name)
        self._names_bytes += len(member.name)
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
        """`pieces`; those of a file that is read here are also remembered."""
        max_bytes = self._max_bytes.get(path)
        if max_bytes is None:
            return pieces
        self._contents[path] = None
        if size > max_bytes:
            return pieces
        content = self._contents[path] = b"".join(pieces)
        return [content]

    def _write(self, piece: bytes) -> None:
        self._tar_bytes += len(piece)
        if self._tar_bytes > self._bounds.max_bytes:
            raise over_limit(f"the tar unpacks to more than {self._bounds.max_bytes} bytes")
        self._target.write(piece)

    def _dockerfile(self) -> Components:
        """The path of the Dockerfile. Raises `Permanent(invalid)` where there is none."""
        for path in self._dockerfiles:
            if self._tree.at(path) is not None:
                return path
        names = " or ".join(quoted(b"/".join(path)) for path in self._dockerfiles)
        if self._dockerfiles == _DEFAULT_PATHS:
            hint = "pack the tar from within the folder that holds it, or name another by dockerfile_path"
            raise invalid(f"the tar has no {names} at its top level; {hint}")
        [path] = self._dockerfiles
        for depth in range(1, len(path)):
            if isinstance(leaf := self._tree.at(path[:depth]), Leaf):
                where = quoted(b"/".join(path[:depth]))
                raise invalid(f"the Dockerfile {names} lies below {where}, which is {leaf.value} in this tar")
        raise invalid(f"the tar has no {names}; dockerfile_path is read from the top of the tar, case counts")

    def _check_ignore_file(self, path: Components) -> None:
        name, content = quoted(b"/".join(path)), self._content(path, "the ignore file")
        IgnoreFile(content, name)
        lines = content.count(b"\n") + 1
        compared_bytes = lines * (self._tree.count * COMPARISON_BYTES + self._names_bytes)
        if compared_bytes > COMPARED_MAX_BYTES:
            what = f"{name} has {lines} lines for {self._tree.count} entries, {compared_bytes} bytes to compare"
            raise over_limit(f"{what} instead of {COMPARED_MAX_BYTES}")

    def _content(self, path: Components, what: str) -> bytes:
        """What the regular file at `path` holds. Raises `Permanent` for anything else, and for one too large."""
        name = quoted(b"/".join(path))
        if path not in self._contents:
            raise invalid(f"{what} {name} is {_kind(self._tree.at(path))} in this tar; send it as a regular file")
        content = self._contents[path]
        if content is None:
            limit = self._max_bytes[path]
            raise Permanent(ErrorCode.TOO_LARGE, f"{what} {name} is larger than {limit} bytes, the limit")
        return content


def _kind(node: Node | Leaf | None) -> str:
    """What stands at a name that is not a regular file of its own."""
    return node.value if node is Leaf.SYMLINK else "a hard link" if node is Leaf.FILE else "a directory"


def _candidates(dockerfile_path: str | None) -> Sequence[Components]:
    """The paths of which the first that is there is the Dockerfile."""
    return _DEFAULT_PATHS if dockerfile_path is None else (parse_dockerfile_path(dockerfile_path),)


def _ignore_paths(dockerfiles: Iterable[Components]) -> tuple[Components, ...]:
    """The ignore files that may count for these Dockerfiles: those beside them, and that of the context."""
    return (*((*path[:-1], path[-1] + _IGNORE_SUFFIX) for path in dockerfiles), (_IGNORE_SUFFIX,))


def _ignore_file(tar: Path, entries: Mapping[bytes, Entry], dockerfile_path: str | None) -> IgnoreFile | None:
    """The one that counts: the file beside the Dockerfile before that of the context, as BuildKit has it."""
    there = [path for path in _candidates(dockerfile_path) if b"/".join(path) in entries]
    for path in _ignore_paths(there[:1]):
        name = b"/".join(path)
        if (entry := entries.get(name)) is not None:
            with tar.open("rb") as file:
                file.seek(entry.offset)
                return IgnoreFile(file.read(entry.size), quoted(name))
    return None


def _without_ignored(ordered: Iterable[Entry], ignore: IgnoreFile, stop: Stop) -> list[Entry]:
    """What is not excluded, and the directories that it lies in."""
    included: list[Entry] = []
    folders: list[Entry] = []
    pruned = b""
    for entry in ordered:
        if stop():
            raise Stopped
        if pruned and entry.path.startswith(pruned):
            continue
        while folders and not entry.path.startswith(folders[-1].path + b"/"):
            folders.pop()
        if not ignore.excludes(entry.path):
            included += [*folders, entry]
            folders.clear()
        elif stat.S_ISDIR(entry.mode):
            if ignore.prunes(entry.path):
                pruned = entry.path + b"/"
            else:
                folders.append(entry)
    return included


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
