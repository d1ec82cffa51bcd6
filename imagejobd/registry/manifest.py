"""Manifests (OCI image spec): raw bytes as they arrived, their digest, and what they refer to.

The bytes that arrive are the bytes that are pushed: reading changes nothing.

Refuses, with the reason: schema 1, bad JSON, more than `MANIFEST_MAX_BYTES` or `COMMAS_MAX`, more than
`DESCRIPTORS_MAX` entries or `ANNOTATIONS_MAX` annotations of them, a media type that contradicts the content, digests
that cannot be verified, negative sizes. Of a key that comes twice the last counts, as it does for the registries
themselves; what nobody here reads is not even decoded: unknown keys, inline `data`, annotations of the whole and of
blobs.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Annotated

import msgspec

from imagejobd.model.errors import ErrorCode, Permanent, invalid
from imagejobd.model.reference import is_digest
from imagejobd.model.text import one_line, quoted

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+json"
SCHEMA1_SIGNED = "application/vnd.docker.distribution.manifest.v1+prettyjws"

INDEX_TYPES = frozenset({OCI_INDEX, DOCKER_LIST})
_IMAGE_TYPES = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
# docker-registry answers 404 for a manifest of a type that the client does not accept: so all, always. Schema 1 is
# among them to be refused by name.
MANIFEST_TYPES = (OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST, SCHEMA1_SIGNED, SCHEMA1)
ACCEPT = ", ".join(MANIFEST_TYPES)
QUOTE_MAX_CHARS = 80


class Platform(msgspec.Struct, frozen=True):
    """The platform of an index's child."""

    os: str = ""
    architecture: str = ""
    variant: str = ""

    def __str__(self) -> str:
        """For messages: on one bounded line, because the words are a stranger's."""
        return one_line("/".join(filter(None, (self.os, self.architecture, self.variant))), QUOTE_MAX_CHARS)


class Descriptor(msgspec.Struct, frozen=True, kw_only=True):
    """Content by digest: `digest` is one that can be verified here, `size` in bytes is at least 0."""

    digest: str
    size: int
    media_type: str = ""
    artifact_type: str = ""
    urls: tuple[str, ...] = ()
    annotations: Mapping[str, str] = {}
    platform: Platform | None = None

    @property
    def is_foreign(self) -> bool:
        """Whether registries do not hold it: base layers that may not be distributed, fetched from `urls`."""
        return bool(self.urls) and ("foreign" in self.media_type or "nondistributable" in self.media_type)


# Registries may refuse larger ones (distribution spec, "Pushing Manifests": at least 4 megabytes must be taken).
MANIFEST_MAX_BYTES = 4 * 1024 * 1024
DESCRIPTORS_MAX = 10_000
# Every member and every entry but the first has one, and takes some 100 bytes when it is decoded, with the interpreter
# held: 4 MiB of them would be 40 MiB and a fifth of a second. Honest entries have eight each.
COMMAS_MAX = 100_000
# Of all an index's entries together; BuildKit writes two for every image.
ANNOTATIONS_MAX = 20_000
# What JSON numbers hold exactly everywhere; far more than any registry takes.
SIZE_MAX_BYTES = 2**53

# RFC 6838 §4.2; it becomes a header again when the manifest is pushed.
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}")
# Said by servers that know nothing of the content: no contradiction to anything.
_GENERIC_TYPES = frozenset({"application/json", "application/octet-stream", "text/plain", "binary/octet-stream"})


class _Entry(msgspec.Struct, rename="camel"):
    """A descriptor on the wire. Writers in Go say null for what they have not."""

    digest: str
    size: Annotated[int, msgspec.Meta(ge=0, le=SIZE_MAX_BYTES)]
    media_type: str | None = None
    urls: tuple[str, ...] | None = None


class _Child(_Entry, rename="camel"):
    """An index's entry."""

    artifact_type: str | None = None
    annotations: dict[str, str] | None = None
    platform: Platform | None = None


class _Body(msgspec.Struct, rename="camel"):
    """All that any kind of manifest says; which keys are there decides what it is."""

    schema_version: int | None = None
    media_type: str | None = None
    artifact_type: str | None = None
    config: _Entry | None = None
    layers: list[_Entry] | None = None
    blobs: list[_Entry] | None = None
    manifests: list[_Child] | None = None
    subject: _Entry | None = None
    fs_layers: msgspec.Raw = msgspec.Raw(b"null")

    @property
    def is_schema1(self) -> bool:
        return self.schema_version == 1 or bytes(self.fs_layers) != b"null"


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed manifest or index. `children` are manifests (of an index), `blobs` config and layers, config first."""

    raw: bytes
    digest: str
    media_type: str
    children: tuple[Descriptor, ...] = ()
    blobs: tuple[Descriptor, ...] = ()

    @property
    def descriptor(self) -> Descriptor:
        return Descriptor(digest=self.digest, size=len(self.raw), media_type=self.media_type)


def digest_of(raw: bytes, algorithm: str = "sha256") -> str:
    """The digest of `raw`; `algorithm` is `sha256` or `sha512`."""
    return f"{algorithm}:{hashlib.new(algorithm, raw).hexdigest()}"


def media_type_of(content_type: str) -> str:
    """The media type in a Content-Type header, lower case and without parameters; empty where it is none."""
    media_type = content_type.partition(";")[0].strip()
    return media_type.lower() if _MEDIA_TYPE.fullmatch(media_type) else ""


def parse_manifest(raw: bytes, content_type: str, *, expected_digest: str | None = None) -> Manifest:
    """Read manifest bytes that a registry sent as `content_type` (parameters such as charset are ignored).

    `expected_digest` decides the algorithm and must equal the digest of `raw`; without it the digest is SHA-256.
    The body's own media type counts before `content_type`. Raises `Permanent(invalid | too_large | copy_failed)` that
    says what is wrong, without quoting more than a few words.
    """
    if len(raw) > MANIFEST_MAX_BYTES:
        raise Permanent(ErrorCode.TOO_LARGE, f"the manifest is larger than {MANIFEST_MAX_BYTES} bytes")
    digest = _proved_digest(raw, expected_digest)
    try:
        return _read(raw, digest, media_type_of(content_type))
    except Permanent as fault:
        raise fault.with_message(f"manifest {digest}: {fault.message}") from None


def _proved_digest(raw: bytes, expected: str | None) -> str:
    if expected is None:
        return digest_of(raw)
    if not is_digest(expected):
        raise invalid(f"{quoted(expected, QUOTE_MAX_CHARS)} is not a digest that can be verified (sha256 or sha512)")
    digest = digest_of(raw, expected.partition(":")[0])
    if digest != expected:
        raise Permanent(ErrorCode.COPY_FAILED, f"the manifest is corrupt: its digest is {digest} instead of {expected}")
    return digest


def _read(raw: bytes, digest: str, sent_as: str) -> Manifest:
    if raw.count(b",") > COMMAS_MAX:
        raise Permanent(ErrorCode.TOO_LARGE, f"it has more than {COMMAS_MAX} members")
    body = _decode(raw)
    if body.is_schema1 or (body.media_type or sent_as) in (SCHEMA1, SCHEMA1_SIGNED):
        raise invalid(
            "it is of Docker's schema 1, which registries have given up; "
            "push the image again with a current tool (docker 1.10 or later, podman, buildah, skopeo)"
        )
    children = body.manifests or []
    blobs = [*([body.config] if body.config else []), *(body.layers or body.blobs or [])]
    entries = len(children) + len(blobs)
    if entries > DESCRIPTORS_MAX:
        raise invalid(f"it has {entries} entries; the limit is {DESCRIPTORS_MAX}")
    annotations = sum(len(child.annotations or ()) for child in children)
    if annotations > ANNOTATIONS_MAX:
        raise invalid(f"its entries have {annotations} annotations; the limit is {ANNOTATIONS_MAX}")
    return Manifest(
        raw=raw,
        digest=digest,
        media_type=_media_type(body, sent_as, is_index=_is_index(body, sent_as)),
        children=tuple(_descriptor(child) for child in children),
        blobs=tuple(_descriptor(blob) for blob in blobs),
    )


def _decode(raw: bytes) -> _Body:
    try:
        return msgspec.json.decode(raw, type=_Body)
    except RecursionError:
        reason = "its JSON is nested too deeply"
    except msgspec.ValidationError as error:
        reason = quoted(str(error), 200)
    except (msgspec.DecodeError, UnicodeDecodeError):
        reason = "it is not valid JSON"
    raise invalid(reason)


def _is_index(body: _Body, sent_as: str) -> bool:
    """What the content is. One that could be read as both kinds is the attack of CVE-2021-41190."""
    is_index = body.manifests is not None
    is_image = any(part is not None for part in (body.config, body.layers, body.blobs))
    if is_index and is_image:
        raise invalid("it lists both manifests and layers, so its media type is a lie")
    if is_index or is_image:
        return is_index
    # Go writes null for an empty list: known types may be without.
    if _promises_index(body.media_type or sent_as):
        return True
    if body.subject is not None and body.artifact_type:
        return False
    raise invalid("it has neither a config nor layers, blobs or manifests")


def _media_type(body: _Body, sent_as: str, *, is_index: bool) -> str:
    """The type that the bytes are pushed as: what the body says of itself, else what the registry sent them as."""
    if body.media_type and not _MEDIA_TYPE.fullmatch(body.media_type):
        raise invalid(f"its mediaType {quoted(body.media_type, QUOTE_MAX_CHARS)} is no media type")
    for media_type in filter(None, (body.media_type, sent_as)):
        if _promises_index(media_type) is (not is_index):
            lists = "manifests" if is_index else "layers"
            raise invalid(f"its media type {quoted(media_type, QUOTE_MAX_CHARS)} is a lie: it lists {lists}")
    if body.media_type:
        return body.media_type
    if sent_as and sent_as not in _GENERIC_TYPES:
        return sent_as
    # Docker's types always name themselves; OCI's need not.
    return OCI_INDEX if is_index else OCI_MANIFEST


def _promises_index(media_type: str) -> bool | None:
    """Whether a media type promises an index; None for types that are not known here."""
    known = media_type.lower()
    return known in INDEX_TYPES if known in INDEX_TYPES | _IMAGE_TYPES else None


def _descriptor(entry: _Entry) -> Descriptor:
    if not is_digest(entry.digest):
        raise invalid(f"{quoted(entry.digest, QUOTE_MAX_CHARS)} is not a digest that can be verified (sha256, sha512)")
    descriptor = Descriptor(
        digest=entry.digest, size=entry.size, media_type=entry.media_type or "", urls=entry.urls or ()
    )
    if not isinstance(entry, _Child):
        return descriptor
    return msgspec.structs.replace(
        descriptor,
        artifact_type=entry.artifact_type or "",
        annotations=entry.annotations or {},
        platform=entry.platform,
    )
