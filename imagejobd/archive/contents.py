"""What an archive holds, gathered in one pass: its tree of names, and the sizes, digests and documents of its files.

Every member goes through `Tree` by name before anything is stored: no way out of the tree, nothing twice, nothing below
what is not a directory. Nothing is unpacked to disk, and nothing but small JSON stays in memory. What the files of an
image archive mean is for `images` to judge, because the archive may name them before or after they come.
"""

import hashlib
from collections.abc import Iterator
from enum import Enum
from typing import Annotated, BinaryIO, TypeVar, cast

import msgspec

from imagejobd.archive.inflate import CHUNK_BYTES, Inflated, Stop, Stopped, over_limit
from imagejobd.archive.tar import DIRECTORY, HARD_LINK, REGULAR, SYMLINK, Member, Members, read_sparse
from imagejobd.model.errors import ErrorCode, Permanent, invalid
from imagejobd.model.text import quoted

# What file systems hold (NAME_MAX), and deeper than any real tree.
COMPONENT_MAX_BYTES = 255
DEPTH_MAX = 256

ENTRIES_MAX = 50_000
NAME_MAX_BYTES = 4096
# Of files and links, with the targets of these: all of them are held in memory.
NAMES_MAX_BYTES = 16 << 20
# A registry takes no larger manifest; all together they are what is held in memory.
DOCUMENT_MAX_BYTES = 4 << 20
DOCUMENTS_MAX_BYTES = 32 << 20
LINKS_MAX = 16
# How often documents may name a file; every descriptor does so two or three times.
LOOKUPS_MAX = 500_000

# Manifests, indexes and configurations; blobs may be JSON of other sorts, and larger.
_DOCUMENT_MARKS = (b'"schemaVersion"', b'"rootfs"')

# `sha256:` and 64 digits; of other algorithms, more. Strings shorter than that would fill a hundred times the memory
# that their document has bytes.
Digest = Annotated[str, msgspec.Meta(min_length=71, max_length=256)]
Components = tuple[bytes, ...]
Node = dict[bytes, "Node | Leaf"]

T = TypeVar("T")


class Leaf(Enum):
    """What stands at a name that is not a directory."""

    FILE = "a file"
    SYMLINK = "a symbolic link"


class Tree:
    """Names seen so far, as nested dictionaries, so that long paths cost their last component only: at most
    `max_entries`, the directories that no member announced included.

    A directory that is announced again counts again, so that every member of a tar meets the bound.
    """

    def __init__(self, *, max_entries: int, max_name_bytes: int) -> None:
        self._root: Node = {}
        self._announced: set[int] = set()
        self._max_entries = max_entries
        self._max_name_bytes = max_name_bytes
        self.count = 0

    def path(self, name: bytes) -> Components:
        """The components of `name`, without `.`; empty for the root. Raises `Permanent` for a name that may not be."""
        if not name or b"\0" in name:
            raise invalid(f"the tar has a member whose name is {'empty' if not name else 'cut by a NUL byte'}")
        if len(name) > self._max_name_bytes:
            raise _too_large(f"the name {quoted(name)} is {len(name)} bytes long", self._max_name_bytes)
        if name.startswith(b"/"):
            raise invalid(f"{quoted(name)} is an absolute name; pack the tar from within the folder")
        path = tuple(part for part in name.split(b"/") if part not in (b"", b"."))
        if b".." in path:
            raise invalid(f"{quoted(name)} leads out of the tar by '..'")
        if len(path) > DEPTH_MAX:
            raise _too_large(f"{quoted(name)} is {len(path)} folders deep", DEPTH_MAX)
        if any(len(part) > COMPONENT_MAX_BYTES for part in path):
            raise _too_large(f"{quoted(name)} has a component that is too long for a file system", COMPONENT_MAX_BYTES)
        return path

    def add_directory(self, path: Components) -> bool:
        """Add a directory; False for the root, and when a member announced it before, which is harmless."""
        folder = self._enter(path, path)
        if id(folder) in self._announced:
            self._counted()
            return False
        self._announced.add(id(folder))
        return bool(path)

    def add(self, path: Components, leaf: Leaf) -> None:
        """Add a file or a link. Raises `Permanent(invalid)` for a name that is taken."""
        if not path:
            raise invalid(f"the root of the tar is {leaf.value}, not a directory")
        folder = self._enter(path[:-1], path)
        if path[-1] in folder:
            raise invalid(f"{_joined(path)} is in the tar twice")
        self._counted()
        folder[path[-1]] = leaf

    def add_symlink(self, path: Components, target: bytes) -> None:
        """Add a symbolic link, wherever it leads. Raises also for a target that is no path."""
        if not target or b"\0" in target or len(target) > self._max_name_bytes:
            raise invalid(f"the symbolic link {_joined(path)} has an empty or over-long target")
        self.add(path, Leaf.SYMLINK)

    def add_hard_link(self, path: Components, member: Member) -> Components:
        """Add another name of a file that was added before; the path of that file."""
        target = self.path(member.link)
        if self.at(target) is not Leaf.FILE:
            raise invalid(
                f"the hard link {quoted(member.name)} leads to {quoted(member.link)}, which is no file before it"
            )
        self.add(path, Leaf.FILE)
        return target

    def at(self, path: Components) -> "Node | Leaf | None":
        """What stands at `path`; a symbolic link on the way is not followed."""
        node: Node | Leaf | None = self._root
        for part in path:
            node = node.get(part) if isinstance(node, dict) else None
        return node

    def _enter(self, folders: Components, path: Components) -> Node:
        node = self._root
        for depth, part in enumerate(folders, 1):
            below = node.get(part)
            if below is None:
                self._counted()
                below = node[part] = {}
            if isinstance(below, Leaf):
                raise _not_below(path, path[:depth], below)
            node = below
        return node

    def _counted(self) -> None:
        self.count += 1
        if self.count > self._max_entries:
            raise _too_large("the tar has too many entries", self._max_entries)


class _RootFs(msgspec.Struct, frozen=True):
    diff_ids: list[Digest] | None = None


class ImageConfig(msgspec.Struct, frozen=True):
    """An image's configuration as far as it speaks of layers."""

    rootfs: _RootFs

    @property
    def diff_ids(self) -> list[str]:
        """The digests of the layers, uncompressed, from the lowest."""
        return self.rootfs.diff_ids or []


class File(msgspec.Struct, frozen=True):
    """A regular file. `unpacked_digest` is that of what it holds when it is a compressed one, else its own.

    `document` are its bytes where they look like JSON about images.
    """

    size: int
    digest: str
    unpacked_digest: str
    document: bytes | None = None


class Contents:
    """The files and links of one archive by their paths. Every lookup raises `Stopped` once `stop()` is true."""

    def __init__(self, stop: Stop) -> None:
        self.files: dict[bytes, File] = {}
        self.links: dict[bytes, bytes] = {}
        self._stop = stop
        self._lookups_remaining = LOOKUPS_MAX
        self._diff_ids: dict[str, list[str]] = {}

    def file(self, name: str, *, named_by: str) -> File:
        """The file at `name`, through links within the archive. Raises `Permanent(invalid)` where there is none."""
        file = self.find(_path(name.encode(errors="surrogateescape"), b"", named_by))
        if file is None:
            raise invalid(f"the image archive is damaged: {named_by} names {quoted(name)}, which is not in it")
        return file

    def find(self, path: bytes) -> File | None:
        """The file at `path`, through links within the archive. Raises `Permanent(invalid)` for one that leads out."""
        if self._stop():
            raise Stopped
        self._lookups_remaining -= 1
        if self._lookups_remaining < 0:
            raise over_limit(f"the documents of the image archive name files more than {LOOKUPS_MAX} times")
        for _ in range(LINKS_MAX):
            if path in self.files:
                return self.files[path]
            if path not in self.links:
                return None
            path = _path(self.links[path], path.rpartition(b"/")[0], f"the symbolic link {quoted(path)}")
        raise invalid(f"the image archive has a chain of more than {LINKS_MAX} links at {quoted(path)}")

    def diff_ids(self, name: str, *, named_by: str) -> list[str]:
        """The layers of the configuration at `name`, which is read once, however many images name it.

        Raises as `document`.
        """
        digest = self.file(name, named_by=named_by).digest
        if digest not in self._diff_ids:
            self._diff_ids[digest] = decoded(self.document(name, named_by=named_by), ImageConfig, name).diff_ids
        return self._diff_ids[digest]

    def document(self, name: str, *, named_by: str) -> bytes:
        """The JSON at `name`. Raises as `file`, and for a file that is too large for it or something else."""
        file = self.file(name, named_by=named_by)
        if file.document is not None:
            return file.document
        if file.size > DOCUMENT_MAX_BYTES:
            raise _too_large(f"{quoted(name)} has {file.size} bytes", DOCUMENT_MAX_BYTES)
        raise invalid(f"the image archive is damaged: {quoted(name)} is not the JSON that belongs there")


def survey(source: BinaryIO, *, max_bytes: int, stop: Stop) -> Contents:
    """Read the whole tar in `source`, at most `max_bytes` unpacked; compressed files are read through too.

    What those hold has the same bound again, all together. Raises `Permanent(invalid | too_large)` that names the
    member, and `Stopped`.
    """
    stream = Inflated(source, max_bytes=max_bytes, stop=stop)
    members, survey = Members(stream), _Survey(max_bytes, stop)
    for member in members:
        survey.add(member, members)
    stream.drain()
    return survey.contents


def decoded(document: bytes, kind: type[T], name: str) -> T:
    """`document` as a `kind`. Raises `Permanent(invalid)` that speaks of it as `name`."""
    try:
        return msgspec.json.decode(document, type=kind)
    # Besides its own error, msgspec raises these for bytes that are not UTF-8 and for ten thousand nested brackets.
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(f"the image archive is damaged: {quoted(name)} cannot be read: {error}") from None


def _too_large(what: str, limit: int) -> Permanent:
    return Permanent(ErrorCode.TOO_LARGE, f"{what}; the limit is {limit}")


class _Survey:
    """One pass over the members. What remains of each bound is counted in bytes."""

    def __init__(self, max_bytes: int, stop: Stop) -> None:
        self._unpack_remaining = max_bytes
        self._stop = stop
        self._documents_remaining = DOCUMENTS_MAX_BYTES
        self._names_remaining = NAMES_MAX_BYTES
        self._tree = Tree(max_entries=ENTRIES_MAX, max_name_bytes=NAME_MAX_BYTES)
        self.contents = Contents(stop)

    def add(self, member: Member, members: Members) -> None:
        sparse = read_sparse(member, members)
        path = self._tree.path(sparse.name if sparse else member.name)
        if sparse:
            self._file(path, sparse.data(members))
        elif member.type == REGULAR:
            self._file(path, members.data())
        elif member.type == DIRECTORY:
            self._tree.add_directory(path)
        elif member.type == SYMLINK:
            self._tree.add_symlink(path, member.link)
            self.contents.links[self._name(path, len(member.link))] = member.link
        elif member.type == HARD_LINK:
            target = self._tree.add_hard_link(path, member)
            self.contents.files[self._name(path)] = self.contents.files[b"/".join(target)]
        else:
            raise invalid(f"{quoted(member.name)} is a device or the like; an image archive holds files and links")

    def _name(self, path: Components, target_bytes: int = 0) -> bytes:
        """The name of the file or link at `path`, accounted for with the target of a link."""
        name = b"/".join(path)
        self._names_remaining -= len(name) + target_bytes
        if self._names_remaining < 0:
            raise over_limit(f"the image archive has names and targets of links of more than {NAMES_MAX_BYTES} bytes")
        return name

    def _file(self, path: Components, pieces: Iterator[bytes]) -> None:
        self._tree.add(path, Leaf.FILE)
        name = self._name(path)
        reader = _Reader(pieces)
        unpacked_digest = self._unpacked_digest(name, reader)
        reader.drain()
        digest = reader.digest
        self.contents.files[name] = File(reader.size, digest, unpacked_digest or digest, self._document(name, reader))

    def _unpacked_digest(self, name: bytes, reader: "_Reader") -> str:
        """The digest of what a compressed file holds; "" for one that is not, or that is damaged."""
        sha256 = hashlib.sha256()
        try:
            inflated = Inflated(cast(BinaryIO, reader), max_bytes=self._unpack_remaining, stop=self._stop)
            if not inflated.format:
                return ""
            while chunk := inflated.read_some(CHUNK_BYTES):
                sha256.update(chunk)
                self._unpack_remaining -= len(chunk)
        except Permanent as fault:
            if fault.code is not ErrorCode.TOO_LARGE:
                return ""
            raise fault.with_message(f"unpacking {quoted(name)}: {fault.message}") from None
        return f"sha256:{sha256.hexdigest()}"

    def _document(self, name: bytes, reader: "_Reader") -> bytes | None:
        content = reader.document
        if content is None or (b"/" in name and not any(mark in content for mark in _DOCUMENT_MARKS)):
            return None
        self._documents_remaining -= len(content)
        if self._documents_remaining < 0:
            what = f"more than {DOCUMENTS_MAX_BYTES} bytes of manifests and configurations"
            raise over_limit(f"the image archive has {what}")
        return content


class _Reader:
    """One file as `Inflated` reads a source: hashed as it goes, and remembered where it may be a document."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._sha256 = hashlib.sha256()
        self._document: list[bytes] | None = None
        self.size = 0

    @property
    def digest(self) -> str:
        return f"sha256:{self._sha256.hexdigest()}"

    @property
    def document(self) -> bytes | None:
        return b"".join(self._document) if self._document else None

    def read(self, count: int) -> bytes:
        """At least `count` bytes, fewer only at the end."""
        pieces: list[bytes] = []
        while count > 0 and (piece := next(self._pieces, b"")):
            self._take(piece)
            pieces.append(piece)
            count -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def drain(self) -> None:
        for piece in self._pieces:
            self._take(piece)

    def _take(self, piece: bytes) -> None:
        if not self.size and piece.lstrip()[:1] in (b"{", b"["):
            self._document = []
        self._sha256.update(piece)
        self.size += len(piece)
        if self.size > DOCUMENT_MAX_BYTES:
            self._document = None
        if self._document is not None:
            self._document.append(piece)


def _path(name: bytes, folder: bytes, named_by: str) -> bytes:
    """`name` as seen from `folder`, without `.` and `..`. Raises `Permanent(invalid)` where it leads out."""
    if not name or name.startswith(b"/") or len(name) > NAME_MAX_BYTES:
        raise _leads_out(name, named_by)
    path = folder.split(b"/") if folder else []
    for part in name.split(b"/"):
        if part == b"..":
            if not path:
                raise _leads_out(name, named_by)
            path.pop()
        elif part not in (b"", b"."):
            path.append(part)
    return b"/".join(path)


def _leads_out(name: bytes, named_by: str) -> Permanent:
    return invalid(f"the image archive is damaged: {named_by} names {quoted(name)}, which is no path within it")


def _not_below(path: Components, other: Components, leaf: Leaf) -> Permanent:
    if path == other:
        return invalid(f"{_joined(path)} is in the tar twice: as {leaf.value} and as a directory")
    return invalid(f"{_joined(path)} lies below {_joined(other)}, which is {leaf.value} in this tar")


def _joined(path: Components) -> str:
    return quoted(b"/".join(path))
