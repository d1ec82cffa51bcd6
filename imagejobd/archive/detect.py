"""What a payload is, told by its bytes and never by a name.

In this order:

- a text whose first instruction is FROM or ARG, or whose first line is a `syntax` directive, is a Dockerfile. One that
  cannot be read is still meant as one, so that its sender hears what is wrong with it;
- a tar, compressed or not, with a `Dockerfile` or `dockerfile` at its top level is a build context, whatever else is in
  it: a web application has a `manifest.json` too;
- a tar with an `oci-layout`, or with a `manifest.json` as `docker save` writes it, is an image archive;
- everything else is a file.

A tar that begins well and cannot be read to its end is a fault: nobody can tell what it was to be.
"""

import re
from enum import StrEnum
from itertools import islice
from typing import BinaryIO

import msgspec

from imagejobd.archive.context import DOCKERFILE, dockerfile_text
from imagejobd.archive.inflate import ANYTHING, Inflated, Stop, media_type_of, over_limit, tar_media_type
from imagejobd.archive.tar import BLOCK_BYTES, DIRECTORY, REGULAR, Member, Members, is_header, read_sparse
from imagejobd.dockerfile.policy import DOCKERFILE_MAX_BYTES
from imagejobd.model.errors import ErrorCode, Permanent

# Room for a licence above the first instruction.
HEAD_BYTES = 64 << 10
OCI_LAYOUT = b"oci-layout"
SAVED_MANIFEST = b"manifest.json"

_BOM = b"\xef\xbb\xbf"
_DOCKERFILES = (DOCKERFILE.encode(), DOCKERFILE.lower().encode())
_SHEBANG = re.compile(rb"#![^\n]*\n")
_SYNTAX = re.compile(rb"\s*(?:#|//)[ \t]*syntax[ \t]*=[ \t]*\S", re.IGNORECASE)
# Blank lines and comments, then a whole line with an instruction that a Dockerfile may begin with. Written as manuals
# write it, the word decides. In lower case (`from x import y`, `From the beginning`) what follows has to fit too.
_COMMENTS = rb"(?:[ \t\f\r]*(?:#[^\n]*)?\n)*[ \t\f\r]*"
_WORD = re.compile(_COMMENTS + rb"(?:FROM|ARG)[ \t]")
_FROM = rb"from[ \t]+(?:--\S+[ \t]+)*\S+(?:[ \t]+as[ \t]+\S+)?"
_ARG = rb"arg[ \t]+[a-z_]\w*(?:=[^\n]*)?"
_LINE = re.compile(_COMMENTS + rb"(?:" + _FROM + rb"|" + _ARG + rb")[ \t]*\r?(?:\n|$)", re.IGNORECASE)
# `docker save` and its kin write an array of images, each begun with one of its keys.
_SAVED = re.compile(rb'\s*\[\s*\{\s*"(?:Config|RepoTags|Layers|Parent|LayerSources)"')


class What(StrEnum):
    """The types of payload. Stored in results: never renamed."""

    DOCKERFILE = "dockerfile"
    CONTEXT = "context"
    IMAGE_ARCHIVE = "image_archive"
    FILE = "file"


class Detected(msgspec.Struct, frozen=True):
    """What a payload is. `dockerfile` is the text of one that stands alone."""

    what: What
    media_type: str
    dockerfile: str = ""


def detect(source: BinaryIO, *, max_bytes: int, max_entries: int, stop: Stop) -> Detected:
    """Say what the seekable `source` holds.

    Of a tar all is read, up to `max_bytes` unpacked and `max_entries` members, or up to its Dockerfile; of anything
    else the beginning. Raises `Permanent(invalid | too_large)` for a Dockerfile that is no text or too large and for a
    tar that cannot be read to its end, and `Stopped`.
    """
    head = source.read(HEAD_BYTES)
    source.seek(0)
    stream = Inflated(source, max_bytes=max_bytes, stop=stop)
    if _is_tar(stream):
        source.seek(0)
        stream = Inflated(source, max_bytes=max_bytes, stop=stop)
        return Detected(_tar(stream, max_entries), tar_media_type(stream.format))
    if not stream.format and _is_dockerfile(head):
        source.seek(0)
        return _dockerfile(source.read(DOCKERFILE_MAX_BYTES + 1), media_type_of(head))
    return Detected(What.FILE, media_type_of(head))


def _is_tar(stream: Inflated) -> bool:
    """Whether the first block is a tar's header. What cannot even be unpacked so far is none."""
    try:
        return is_header(stream.read(BLOCK_BYTES))
    except Permanent:
        return False


def _tar(stream: Inflated, max_entries: int) -> What:
    members = Members(stream)
    is_image = False
    for member in islice(members, max_entries):
        sparse = read_sparse(member, members)
        parts = [part for part in (sparse or member).name.split(b"/") if part not in (b"", b".")]
        name = parts[0] if len(parts) == 1 else b""
        if name in _DOCKERFILES and member.type != DIRECTORY:
            return What.CONTEXT
        is_image = is_image or _marks_image(name, member, members)
    if next(iter(members), None) is not None:
        raise over_limit(f"the tar has more than {max_entries} members")
    return What.IMAGE_ARCHIVE if is_image else What.FILE


def _marks_image(name: bytes, member: Member, members: Members) -> bool:
    if member.type != REGULAR:
        return False
    if name == SAVED_MANIFEST:
        return _SAVED.match(members.read(min(member.size, HEAD_BYTES))) is not None
    return name == OCI_LAYOUT


def _is_dockerfile(head: bytes) -> bool:
    text = head.removeprefix(_BOM)
    if b"\0" in text:
        return False
    below_shebang = _SHEBANG.sub(b"", text, count=1) if text.startswith(b"#!") else text
    return any((_SYNTAX.match(below_shebang), _WORD.match(text), _LINE.match(text)))


def _dockerfile(content: bytes, media_type: str) -> Detected:
    if b"\0" in content:
        return Detected(What.FILE, media_type)
    if len(content) > DOCKERFILE_MAX_BYTES:
        limit = f"the limit is {DOCKERFILE_MAX_BYTES} bytes"
        raise Permanent(ErrorCode.TOO_LARGE, f"the payload begins as a Dockerfile and is too large for one; {limit}")
    return Detected(What.DOCKERFILE, ANYTHING, dockerfile_text(content, "the payload begins as a Dockerfile and"))
