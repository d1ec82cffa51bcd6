"""What a folder holds that is sent to an engine: indexed in a checked tar, read from there when it is asked for."""

import stat

import msgspec


class Entry(msgspec.Struct, frozen=True):
    """A file, directory or link.

    `path` is below the folder, without `.` or a slash at either end. `mode` has the type too, as stat(2) does; `mtime`
    counts seconds; `offset` is where a file's bytes begin in what holds them all. `link` is the target of a symbolic
    link, or the path of the entry before this one that is the same file.
    """

    path: bytes
    mode: int = stat.S_IFREG | 0o644
    size: int = 0
    mtime: int = 0
    link: bytes = b""
    offset: int = 0
