"""Image references as Docker's grammar has them (distribution/reference), parsed once where they come in; platforms.

`[host/]path[:tag][@digest]`. The first component is a registry host only if it holds a `.` or a `:` or is `localhost`;
everything else is on the Hub. Nothing here asks a registry anything.
"""

import re
from typing import Self

import msgspec

from imagejobd.model.errors import invalid

HUB_HOST = "docker.io"
DEFAULT_TAG = "latest"
REFERENCE_MAX_CHARS = 512
PATH_MAX_CHARS = 255

_HOST = re.compile(
    r"(?:(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])(?:\.(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9]))*"
    r"|\[[a-fA-F0-9:]+\])(?::[0-9]{1,5})?"
)
_PATH = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"sha256:[a-f0-9]{64}|sha512:[a-f0-9]{128}")
_HEX_NAME = re.compile(r"[a-f0-9]{64}")

DEFAULT_PLATFORM = "linux/amd64"

_SYSTEMS = frozenset({"darwin", "freebsd", "linux", "macos", "windows"})
_ALIASES = {
    "aarch64": "arm64",
    "armel": "arm/v6",
    "armhf": "arm/v7",
    "i386": "386",
    "x86-64": "amd64",
    "x86_64": "amd64",
}
# Variants that say no more than the architecture does, and those that are written without their `v`.
_VARIANTS = {
    ("amd64", "v1"): "",
    ("arm", ""): "v7",
    ("arm", "5"): "v5",
    ("arm", "6"): "v6",
    ("arm", "7"): "v7",
    ("arm", "8"): "v8",
    ("arm64", "8"): "",
    ("arm64", "v8"): "",
}


def is_digest(text: str) -> bool:
    """Whether `text` is a digest that this project can verify (`sha256:…` or `sha512:…`)."""
    return _DIGEST.fullmatch(text) is not None


def is_tag(text: str) -> bool:
    return _TAG.fullmatch(text) is not None


class ImageReference(msgspec.Struct, frozen=True):
    """One parsed reference. `host` is where the registry is; `path` is the repository on it.

    A Hub name without a slash keeps Docker's meaning: `busybox` is `docker.io/library/busybox`.
    """

    host: str
    path: str
    tag: str | None = None
    digest: str | None = None

    @classmethod
    def parse(cls, text: str, *, default_tag: str | None = DEFAULT_TAG) -> Self:
        """Parse `text`; a reference with neither tag nor digest gets `default_tag`.

        Raises `Permanent(invalid)` that names the part which is wrong.
        """
        if len(text) > REFERENCE_MAX_CHARS:
            raise invalid(f"image name is {len(text)} characters long; the limit is {REFERENCE_MAX_CHARS}")
        rest, digest = _cut_digest(text)
        host, rest = _cut_host(rest)
        path, tag = _cut_tag(text, rest)
        _check_path(text, host, path)
        if host == HUB_HOST and "/" not in path:
            path = f"library/{path}"
        if tag is None and digest is None:
            tag = default_tag
        return cls(host, path, tag, digest)

    @property
    def repository(self) -> str:
        """`host/path`, the way the engine names it: Hub names stay short."""
        if self.host != HUB_HOST:
            return f"{self.host}/{self.path}"
        return self.path.removeprefix("library/")

    @property
    def canonical(self) -> str:
        """The one spelling that two references to the same image have: `host/path[:tag]` or `host/path@digest`, with
        every host written out, in lower case, and without the port of https."""
        name = f"@{self.digest}" if self.digest else f":{self.tag}" if self.tag else ""
        return f"{self.host.lower().removesuffix(':443')}/{self.path}{name}"

    @property
    def repository_only(self) -> "ImageReference":
        """Without tag and digest."""
        return ImageReference(self.host, self.path)

    def with_tag(self, tag: str) -> "ImageReference":
        if not is_tag(tag):
            raise invalid(f"{tag!r} is not a valid tag: at most 128 of A-Z a-z 0-9 _ . - and not '.' or '-' first")
        return ImageReference(self.host, self.path, tag)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.repository}{tag}{digest}"


def normalize(platform: str, host: str = DEFAULT_PLATFORM) -> str:
    """A platform (`os/architecture[/variant]`) in one spelling; what it leaves out is the `host`'s.

    As containerd's `platforms.Parse` and `Normalize` do it, so that `TARGETARCH` and its kin are here what they are in
    a build, however a request or a Dockerfile writes the platform.
    """
    parts = platform.lower().split("/")
    if parts == [""]:
        parts = host.split("/")
    elif len(parts) == 1:
        host_system, host_architecture = host.split("/")[:2]
        parts = [parts[0], host_architecture] if parts[0] in _SYSTEMS else [host_system, parts[0]]
    system, architecture, *variants = parts
    architecture, _, alias_variant = _ALIASES.get(architecture, architecture).partition("/")
    variant = alias_variant or "/".join(variants)
    system = "darwin" if system == "macos" else system
    return "/".join(filter(None, (system, architecture, _VARIANTS.get((architecture, variant), variant))))


def _cut_digest(text: str) -> tuple[str, str | None]:
    rest, at, digest = text.partition("@")
    if at and not is_digest(digest):
        raise invalid(f"image name {text!r}: {digest!r} is not a digest (sha256: and 64 hex digits)")
    return rest, digest if at else None


def _cut_host(rest: str) -> tuple[str, str]:
    first, slash, tail = rest.partition("/")
    if not slash or not ("." in first or ":" in first or first == "localhost"):
        return HUB_HOST, rest
    if not _HOST.fullmatch(first):
        raise invalid(f"image name {rest!r}: {first!r} is not a registry host (name or address, optionally :port)")
    host = first.lower()
    return (HUB_HOST if host in ("index.docker.io", "registry-1.docker.io") else host), tail


def _cut_tag(text: str, rest: str) -> tuple[str, str | None]:
    path, colon, tag = rest.rpartition(":")
    if not colon:
        return rest, None
    if not is_tag(tag):
        raise invalid(f"image name {text!r}: {tag!r} is not a valid tag")
    return path, tag


def _check_path(text: str, host: str, path: str) -> None:
    if not path:
        raise invalid(f"image name {text!r}: the repository name is missing")
    if len(path) > PATH_MAX_CHARS:
        raise invalid(f"image name {text!r}: the repository name is longer than {PATH_MAX_CHARS} characters")
    if not _PATH.fullmatch(path):
        why = "must be lower case" if path != path.lower() else "has characters or separators that are not allowed"
        raise invalid(f"image name {text!r}: repository name {path!r} {why}")
    if host == HUB_HOST and _HEX_NAME.fullmatch(path):
        raise invalid(f"image name {text!r}: 64 hex digits are an image id, not a name")
