"""A folder as the tar of a build context, as docker's client sends it.

`.dockerignore` decides what is in it, or `<Dockerfile>.dockerignore` where there is one. Both it and the Dockerfile are
in the tar whatever it says, because the daemon needs them, and takes them away again. Members come in the order of
their bytes, belong to root, and keep mode, time, links and hard links. Nothing is written to disk: files are read while
they are sent.
"""

import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from imagejobd.archive.ignore import IGNORE_FILE, IGNORE_FILE_MAX_BYTES, IgnoreFile
from imagejobd.cli.errors import CommandError
from imagejobd.model.errors import Fault
from imagejobd.model.text import quoted

DOCKERFILES = ("Dockerfile", "dockerfile")
# In the tar, that of a Dockerfile from elsewhere. Its own ignore file hides both.
OUTSIDE_DOCKERFILE = ".imagejobd.Dockerfile"
DOCKERFILE_MAX_BYTES = 16 * 1024 * 1024
BLOCK_BYTES = 256 * 1024
_TAR_BLOCK_BYTES = 512
_KINDS = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
}
_REFUSED = {
    stat.S_IFSOCK: "a socket",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


class Member(msgspec.Struct, frozen=True):
    """What goes into the tar: `link` is the target of a symbolic link, or the earlier name of the same file."""

    path: bytes
    kind: bytes
    mode: int
    size: int
    mtime: int
    link: bytes = b""

    def header(self) -> bytes:
        """Its header blocks: ustar where that can say it, PAX where not."""
        info = tarfile.TarInfo(os.fsdecode(self.path))
        info.type, info.size, info.mode, info.mtime = self.kind, self.size, self.mode, self.mtime
        info.linkname = os.fsdecode(self.link)
        return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


class Folder:
    """A folder to be sent as a build context.

    `members` is read once, when it is made; what has changed by the time it is sent is noticed. `dockerfile_path` is
    where in it the Dockerfile is, None for the usual place.
    """

    def __init__(self, root: Path, dockerfile: Path | None = None) -> None:
        """Raises `CommandError` for what cannot be read, or cannot be in an image."""
        self._root = root
        self._names: dict[tuple[int, int], bytes] = {}
        self._extra: dict[bytes, bytes] = {}
        try:
            path, outside = _located(root, dockerfile)
            ignore_name, ignore_content = _ignore_file(root, outside or root / path, path)
            if outside is not None:
                ignore_content += b"\n/%b*\n" % OUTSIDE_DOCKERFILE.encode()
                ignore_name = f"{path}{IGNORE_FILE}"
                with outside.open("rb") as file:
                    content = file.read(DOCKERFILE_MAX_BYTES + 1)
                self._extra = {path.encode(): content, ignore_name.encode(): ignore_content}
            self.dockerfile_path = None if path in DOCKERFILES else path
            self._ignore = IgnoreFile(ignore_content, ignore_name)
            self._needed = _with_parents({os.fsencode(path), os.fsencode(ignore_name)})
            self.members = [*self._walk(b""), *(_extra_member(*file) for file in self._extra.items())]
        except Fault as fault:
            raise CommandError(fault.message) from None
        except OSError as error:
            raise _unreadable(os.fsdecode(error.filename or root), error) from None

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(member.size for member in self.members)

    def tar(self) -> Iterator[bytes]:
        """The tar in pieces. Raises `CommandError` for a file that has changed or gone meanwhile."""
        for member in self.members:
            yield member.header()
            if member.path in self._extra:
                yield self._extra[member.path] + bytes(-member.size % _TAR_BLOCK_BYTES)
            elif member.size:
                yield from self._content(member)
        yield bytes(2 * _TAR_BLOCK_BYTES)

    def _at(self, path: bytes) -> Path:
        return self._root / os.fsdecode(path)

    def _walk(self, folder: bytes, *, is_excluded: bool = False) -> Iterator[Member]:
        """What is in a folder, depth first; a folder that is left out comes right before the first that is not."""
        try:
            names = sorted(os.fsencode(name) for name in os.listdir(self._at(folder)))  # noqa: PTH208 - names
        except PermissionError:
            if not is_excluded:
                raise
            return
        for name in names:
            path = b"%b/%b" % (folder, name) if folder else name
            status = self._at(path).lstat()
            is_in = not self._ignore.excludes(path) or path in self._needed
            if not stat.S_ISDIR(status.st_mode):
                if is_in:
                    yield self._member(path, status)
                continue
            if is_in:
                yield self._member(path, status)
            elif self._ignore.prunes(path):
                continue
            for member in self._walk(path, is_excluded=not is_in):
                if not is_in:
                    is_in = True
                    yield self._member(path, status)
                yield member

    def _member(self, path: bytes, status: os.stat_result) -> Member:
        sort = stat.S_IFMT(status.st_mode)
        if sort in _REFUSED:
            raise CommandError(
                f"{quoted(path)} is {_REFUSED[sort]}, which no image can hold; remove it, or name it in {IGNORE_FILE}"
            )
        kind, size, link = _KINDS[sort], 0, b""
        if kind == tarfile.SYMTYPE:
            link = os.fsencode(self._at(path).readlink())
        elif kind == tarfile.REGTYPE:
            size = status.st_size
            # The daemon reads the needed ones as they come, and takes no hard link for a file of its own.
            if status.st_nlink > 1 and path not in self._needed:
                first = self._names.setdefault((status.st_dev, status.st_ino), path)
                if first != path:
                    kind, size, link = tarfile.LNKTYPE, 0, first
        return Member(path, kind, stat.S_IMODE(status.st_mode), size, int(status.st_mtime), link)

    def _content(self, member: Member) -> Iterator[bytes]:
        rest = member.size
        try:
            with self._at(member.path).open("rb", buffering=0) as file:
                while rest and (piece := file.read(min(rest, BLOCK_BYTES))):
                    rest -= len(piece)
                    yield piece
        except OSError as error:
            raise _unreadable(os.fsdecode(member.path), error) from None
        if rest:
            raise CommandError(f"{quoted(member.path)} became shorter while it was sent; try again when it is finished")
        yield bytes(-member.size % _TAR_BLOCK_BYTES)


def _located(root: Path, dockerfile: Path | None) -> tuple[str, Path | None]:
    """The path of the Dockerfile in the tar; and in the file system, where it is not in the folder."""
    if dockerfile is None:
        dockerfile = next((root / name for name in DOCKERFILES if (root / name).exists()), None)
        if dockerfile is None:
            raise CommandError(f"{quoted(os.fspath(root))} has no Dockerfile; name it with -f")
    elif not dockerfile.is_file():
        raise CommandError(f"{quoted(os.fspath(dockerfile))} is no file; -f names the Dockerfile, seen from here")
    # With links followed: the daemon reads no link for the Dockerfile.
    resolved = dockerfile.resolve()
    try:
        return resolved.relative_to(root.resolve()).as_posix(), None
    except ValueError:
        return OUTSIDE_DOCKERFILE, resolved


def _ignore_file(root: Path, dockerfile: Path, path: str) -> tuple[str, bytes]:
    """The name and the content of the file that says what is left out, as BuildKit chooses it."""
    beside = dockerfile.with_name(dockerfile.name + IGNORE_FILE)
    for name, file in ((f"{path}{IGNORE_FILE}", beside), (IGNORE_FILE, root / IGNORE_FILE)):
        if file.is_file():
            with file.open("rb") as opened:
                return name, opened.read(IGNORE_FILE_MAX_BYTES + 1)
    return IGNORE_FILE, b""


def _extra_member(path: bytes, content: bytes) -> Member:
    return Member(path, tarfile.REGTYPE, 0o644, len(content), 0)


def _with_parents(paths: set[bytes]) -> set[bytes]:
    for path in list(paths):
        while b"/" in path:
            path = path.rpartition(b"/")[0]
            paths.add(path)
    return paths


def _unreadable(path: str, error: OSError) -> CommandError:
    return CommandError(f"cannot read {quoted(path)}: {error.strerror}; mend it, or name it in {IGNORE_FILE}")
