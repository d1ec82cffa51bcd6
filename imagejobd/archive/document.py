"""The JSON documents of image archives: decoded to a type, and every way in which that fails told as one."""

from typing import Annotated, TypeVar

import msgspec

from imagejobd.archive.members import shown
from imagejobd.model.errors import invalid

# `sha256:` and 64 digits; of other algorithms, more. Strings shorter than that would fill a hundred times the memory
# that their document has bytes.
Digest = Annotated[str, msgspec.Meta(min_length=71, max_length=256)]

T = TypeVar("T")


class _RootFs(msgspec.Struct, frozen=True):
    diff_ids: list[Digest] | None = None


class ImageConfig(msgspec.Struct, frozen=True):
    """An image's configuration as far as it speaks of layers."""

    rootfs: _RootFs

    @property
    def diff_ids(self) -> list[str]:
        """The digests of the layers, uncompressed, from the lowest."""
        return self.rootfs.diff_ids or []


def decoded(document: bytes, kind: type[T], name: str) -> T:
    """`document` as a `kind`. Raises `Permanent(invalid)` that speaks of it as `name`."""
    try:
        return msgspec.json.decode(document, type=kind)
    # Besides its own error, msgspec raises these for bytes that are not UTF-8 and for ten thousand nested brackets.
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(f"the image archive is damaged: {shown(name)} cannot be read: {error}") from None
