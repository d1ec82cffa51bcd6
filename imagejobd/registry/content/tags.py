"""What a registry lists as the tags of a repository: read within bounds, kept only where it can be a tag."""

import msgspec

from imagejobd.model.errors import ErrorCode, Permanent
from imagejobd.model.reference import is_tag

# All pages together.
TAGS_MAX = 100_000
# docker-registry 2.8 knows no pages for tags: all of them come at once.
TAGS_PAGE_MAX_BYTES = 16 * 1024 * 1024


class _Page(msgspec.Struct):
    # GCR's says far more of every manifest, which is not decoded.
    tags: msgspec.Raw = msgspec.Raw(b"null")


class TagsRead(msgspec.Struct, frozen=True):
    """`tags` of a page; `listed` counts what is no tag, too."""

    tags: list[str]
    listed: int


def read_tags(body: bytes, *, most: int) -> TagsRead:
    """The tags in a body of the spec's form. Raises `Permanent(too_large)` for more than `most`, before they are
    decoded (strings take 20 times what they took on the wire), and `Permanent(registry_unavailable)` for no list."""
    try:
        raw = bytes(msgspec.json.decode(body, type=_Page).tags)
        listed = [] if raw.count(b",") > most else msgspec.json.decode(raw, type=list[str] | None) or []
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Permanent(ErrorCode.REGISTRY_UNAVAILABLE, "its list of the tags cannot be read") from None
    if len(listed) > most or raw.count(b",") > most:
        raise Permanent(ErrorCode.TOO_LARGE, f"they are more than {TAGS_MAX}")
    return TagsRead([tag for tag in listed if is_tag(tag)], len(listed))
