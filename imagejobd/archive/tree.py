"""The tree that a tar's members make, and which of them may not be part of it.

Every member goes through `Tree` by name before anything is kept: no way out of the tree, nothing twice, nothing below
what is not a directory. Kept as nested dictionaries, so that long paths cost their last component only.
"""

from enum import Enum

from imagejobd.archive.members import shown
from imagejobd.model.errors import ErrorCode, Permanent, invalid

# What file systems hold (NAME_MAX), and deeper than any real tree.
COMPONENT_MAX_BYTES = 255
DEPTH_MAX = 256


class Leaf(Enum):
    """What stands at a name that is not a directory."""

    FILE = "a file"
    SYMLINK = "a symbolic link"


Components = tuple[bytes, ...]
Node = dict[bytes, "Node | Leaf"]


class Tree:
    """Names seen so far: at most `max_entries`, the directories that no member announced included.

    A directory that is announced again counts again, so that every member of a tar meets the bound.
    """

    def __init__(self, *, max_entries: int, max_name_bytes: int) -> None:
        self._root: Node = {}
        self._announced: set[int] = set()
        self._max_entries = max_entries
        self._max_name_bytes = max_name_bytes
        self._count = 0

    def path(self, name: bytes) -> Components:
        """The components of `name`, without `.`; empty for the root. Raises `Permanent` for a name that may not be."""
        if not name or b"\0" in name:
            raise invalid(f"the tar has a member whose name is {'empty' if not name else 'cut by a NUL byte'}")
        if len(name) > self._max_name_bytes:
            raise _too_large(f"the name {shown(name)} is {len(name)} bytes long", self._max_name_bytes)
        if name.startswith(b"/"):
            raise invalid(f"{shown(name)} is an absolute name; pack the tar from within the folder")
        path = tuple(part for part in name.split(b"/") if part not in (b"", b"."))
        if b".." in path:
            raise invalid(f"{shown(name)} leads out of the tar by '..'")
        if len(path) > DEPTH_MAX:
            raise _too_large(f"{shown(name)} is {len(path)} folders deep", DEPTH_MAX)
        if any(len(part) > COMPONENT_MAX_BYTES for part in path):
            raise _too_large(f"{shown(name)} has a component that is too long for a file system", COMPONENT_MAX_BYTES)
        return path

    def add_directory(self, path: Components) -> bool:
        """Keep a directory; False for the root, and when a member announced it before, which is harmless."""
        folder = self._enter(path, path)
        if id(folder) in self._announced:
            self._counted()
            return False
        self._announced.add(id(folder))
        return bool(path)

    def add(self, path: Components, leaf: Leaf) -> None:
        """Keep a file or a link. Raises `Permanent(invalid)` for a name that is taken."""
        if not path:
            raise invalid(f"the root of the tar is {leaf.value}, not a directory")
        folder = self._enter(path[:-1], path)
        if path[-1] in folder:
            raise invalid(f"{_joined(path)} is in the tar twice")
        self._counted()
        folder[path[-1]] = leaf

    def add_symlink(self, path: Components, target: bytes) -> None:
        """Keep a symbolic link, wherever it leads. Raises also for a target that is no path."""
        if not target or b"\0" in target or len(target) > self._max_name_bytes:
            raise invalid(f"the symbolic link {_joined(path)} has an empty or over-long target")
        self.add(path, Leaf.SYMLINK)

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
        self._count += 1
        if self._count > self._max_entries:
            raise _too_large("the tar has too many entries", self._max_entries)


def _not_below(path: Components, taken: Components, leaf: Leaf) -> Permanent:
    if path == taken:
        return invalid(f"{_joined(path)} is in the tar twice: as {leaf.value} and as a directory")
    return invalid(f"{_joined(path)} lies below {_joined(taken)}, which is {leaf.value} in this tar")


def _joined(path: Components) -> str:
    return shown(b"/".join(path))


def _too_large(what: str, limit: int) -> Permanent:
    return Permanent(ErrorCode.TOO_LARGE, f"{what}; the limit is {limit}")
