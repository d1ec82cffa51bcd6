"""What a build is asked to do: the caller's spec, checked, and what of it is stored.

Exactly one source of the context: `dockerfile` (text, alone), an uploaded tar, or `tar_url`. Passwords and the query
of a URL, where tokens hide, go to the job's secrets; the stored spec has neither.
"""

import re
from collections.abc import Mapping
from typing import Literal

import msgspec

from imagejobd.kinds.build.fetch import parse_url, shown_url
from imagejobd.model.dockerfile.policy import Policy
from imagejobd.model.errors import ErrorCode, Permanent, invalid
from imagejobd.model.job import Json
from imagejobd.model.reference import ImageReference
from imagejobd.model.reserved import LABEL_PREFIX, refuse_reserved
from imagejobd.model.secret import Credentials, Secret
from imagejobd.model.work import Accepted, Upload

PASSWORD = "password"  # noqa: S105 - the name of a secret, not one
TAR_URL = "tar_url"

TAGS_MAX = 20
BUILD_ARGS_MAX = 100
LABELS_MAX = 100
VALUE_MAX_CHARS = 4096

# os, os/architecture or os/architecture/variant.
_PLATFORM = re.compile(r"[a-z0-9._-]{1,32}(?:/[a-z0-9._-]{1,32}){0,2}")


class BuildSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A build as it is stored. `context` is the digest of a checked tar in the content store.

    `tags` are further tags of the same repository; `pull` says when bases are pulled.
    """

    image: str
    dockerfile: str | None = None
    context: str | None = None
    tar_url: str | None = None
    username: str | None = None
    nocache: bool = False
    tags: tuple[str, ...] = ()
    build_args: dict[str, str] = {}
    target: str | None = None
    labels: dict[str, str] = {}
    platform: str | None = None
    pull: Literal["missing", "always", "never"] = "missing"

    @property
    def references(self) -> list[ImageReference]:
        """Every reference to push, without repetition: the image, then its further tags."""
        image = ImageReference.parse(self.image)
        return list(dict.fromkeys([image, *(image.with_tag(tag) for tag in self.tags)]))

    def credentials(self, secrets: Mapping[str, Secret]) -> Credentials | None:
        """The request's own credentials for the host of `image`."""
        if PASSWORD not in secrets:
            return None
        return Credentials(self.username or "", secrets[PASSWORD])


class _Request(BuildSpec, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A caller's spec: a stored one plus the password; `context` may only come from an upload."""

    password: str | None = None


def parse(spec: Json, upload: Upload | None = None, *, policy: Policy, knows_heredocs: bool = True) -> Accepted:
    """Check a caller's spec for an engine that knows heredocs or not. Raises `Permanent(invalid | policy)` that names
    the field, or the Dockerfile's line."""
    fields = {name: value for name, value in spec.items() if value not in (None, "")}
    _check_source(fields, upload)
    try:
        request = msgspec.convert(fields | (upload.fields if upload else {}), _Request)
    except msgspec.ValidationError as error:
        raise invalid(f"spec: {error}") from None
    _check_names(request)
    _check_sizes(request)
    if request.dockerfile is None:
        policy.check_build_args(request.build_args)
    else:
        policy.check(
            request.dockerfile,
            build_args=request.build_args,
            target=request.target or "",
            platform=request.platform or "",
            knows_heredocs=knows_heredocs,
        )
    return _split(request, upload)


def _check_source(fields: Json, upload: Upload | None) -> None:
    if "context" in fields:
        raise invalid("spec.context is set by the daemon; send the tar as the context of the request")
    given = sum(name in fields for name in ("dockerfile", "tar_url")) + (upload is not None)
    if given != 1:
        raise invalid("a build needs exactly one of: spec.dockerfile, an uploaded context tar, spec.tar_url")


def _check_names(request: _Request) -> None:
    image = ImageReference.parse(request.image)
    if image.digest:
        raise invalid(f"image {request.image!r}: a build is pushed to a tag; a digest cannot be chosen")
    refuse_reserved("image", image)
    for tag in request.tags:
        image.with_tag(tag)
    for label in request.labels:
        if label.startswith(LABEL_PREFIX):
            raise Permanent(
                ErrorCode.POLICY, f"spec.labels: {label[:80]!r}: {LABEL_PREFIX}* is reserved for the service itself"
            )
    if request.platform is not None and not _PLATFORM.fullmatch(request.platform):
        raise invalid(f"spec.platform: {request.platform[:80]!r} is not a platform, such as linux/amd64")
    if (request.username is None) != (request.password is None):
        raise invalid("username and password belong together; one of them is missing")


def _check_sizes(request: _Request) -> None:
    for name, count, most in (
        ("tags", len(request.tags), TAGS_MAX),
        ("build_args", len(request.build_args), BUILD_ARGS_MAX),
        ("labels", len(request.labels), LABELS_MAX),
    ):
        if count > most:
            raise invalid(f"spec.{name} has {count} entries; the limit is {most}")
    for name, values in (("build_args", request.build_args), ("labels", request.labels)):
        for key, value in values.items():
            if not key or len(key) + len(value) > VALUE_MAX_CHARS:
                raise invalid(f"spec.{name}: {key[:80]!r} is empty or longer than {VALUE_MAX_CHARS} characters")
    for name, text in (("target", request.target), ("username", request.username), ("password", request.password)):
        if text is not None and len(text) > VALUE_MAX_CHARS:
            raise invalid(f"spec.{name} is {len(text)} characters long; the limit is {VALUE_MAX_CHARS}")


def _split(request: _Request, upload: Upload | None) -> Accepted:
    """Part what may be read by everybody from what may not."""
    secrets: dict[str, Secret] = {}
    changes: dict[str, str] = {}
    if request.password is not None:
        secrets[PASSWORD] = Secret(request.password)
    if request.tar_url is not None:
        url = parse_url(request.tar_url)
        changes["tar_url"] = shown_url(url)
        # One without user and query is no secret, and would be masked wherever the log tells of it.
        if changes["tar_url"] != str(url):
            secrets[TAR_URL] = Secret(request.tar_url)
    stored = msgspec.to_builtins(request) | changes
    del stored["password"]
    return Accepted(
        spec={name: value for name, value in stored.items() if value or value is False},
        secrets=secrets,
        blobs=upload.blobs if upload else (),
    )
