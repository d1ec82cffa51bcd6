"""What is wrong with a field of a request, and what its endpoints and repository paths mean.

A fault names its field, so that the API that the request came through can put it into its own words. Messages never
quote a value, because anything may stand where a password was meant to.
"""

import re
from ipaddress import IPv6Address
from typing import Any, Literal, Self, TypeVar

import msgspec

from imagejobd.model.errors import ErrorCode, Permanent
from imagejobd.model.job import Json
from imagejobd.model.reference import HUB_HOST, ImageReference

NAME_MAX_CHARS = 80
ENDPOINT_MAX_CHARS = 300
PORT_MAX = 65_535
BOOLEANS = frozenset({"overwrite", "verify_tls", "referrers", "dry_run"})
# What marshmallow, which the original reads its requests with, takes for a boolean (`fields.Boolean.truthy`, `.falsy`).
_TRUE_WORDS, _FALSE_WORDS = ("t", "true", "on", "y", "yes", "1"), ("f", "false", "off", "n", "no", "0")
_BOOLEAN_FORMS: dict[Any, bool] = {
    form: words is _TRUE_WORDS
    for words in (_TRUE_WORDS, _FALSE_WORDS)
    for word in words
    for form in (word, word.capitalize(), word.upper(), int(words is _TRUE_WORDS))
}

# How msgspec says it; there is no typed way to know.
_MISSING = re.compile(r"Object missing required field `(.*?)`(?: - at `\$\.?(.*)`)?", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(.*?)`(?: - at `\$\.?(.*)`)?", re.DOTALL)
_OTHER = re.compile(r"(.*?)(?: - at `\$\.?(.*)`)?", re.DOTALL)

_HUB_HOSTS = frozenset({HUB_HOST, "index.docker.io", "registry-1.docker.io"})
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_ENDPOINT = re.compile(
    rf"(?:(?P<scheme>https?)://)?(?P<name>{_LABEL}(?:\.{_LABEL})*|\[[a-f0-9:.]+\])(?::(?P<port>[0-9]{{1,5}}))?(?:/v2)?/?",
    re.ASCII | re.IGNORECASE,
)

T = TypeVar("T")


class FieldFault(Permanent):
    """`field` is its path below the spec (`source.ref`, `targets[2].endpoint`; empty for the spec itself), `why` the
    reason alone; the message has both."""

    def __init__(self, field: str, why: str, *, is_missing: bool = False) -> None:
        super().__init__(ErrorCode.INVALID, f"{below('spec', field)}: {why}")
        self.field = field
        self.why = why
        self.is_missing = is_missing

    @classmethod
    def missing(cls, field: str, what: str = "") -> Self:
        return cls(field, f"missing: {what}" if what else "missing", is_missing=True)

    @property
    def name(self) -> str:
        """The field without the path to it."""
        return self.field.rpartition(".")[2]


class Endpoint(msgspec.Struct, frozen=True):
    """`host` is `name[:port]` in lower case, the Hub by its one name; `scheme` is None where the text has none."""

    host: str
    scheme: Literal["http", "https"] | None

    @property
    def key(self) -> str:
        """The same for two endpoints that are surely one: with the port that a scheme stands for."""
        if self.host.rpartition("]")[2].count(":"):
            return self.host
        return f"{self.host}:{80 if self.scheme == 'http' else 443}"


def wrong(field: str, why: str) -> FieldFault:
    return FieldFault(field, why)


def below(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name


def read_fields(value: Any, path: str) -> Json:
    """The fields of an object: null is as if the field were not there, booleans may be words or 1 and 0.

    Raises `FieldFault` for what is no object.
    """
    if not isinstance(value, dict):
        raise wrong(path, "must be an object")
    return {name: boolean(item) if name in BOOLEANS else item for name, item in value.items() if item is not None}


def boolean(value: Any) -> Any:
    """`value` as a boolean where it is one or stands for one, else as it is."""
    return _BOOLEAN_FORMS.get(value, value) if isinstance(value, str | int | float) else value


def items(value: Any, path: str, *, most: int) -> list[Any]:
    """A list within its bound. Raises `FieldFault`."""
    if not isinstance(value, list | tuple):
        raise wrong(path, "must be an array")
    if len(value) > most:
        raise wrong(path, f"has {len(value)} entries; the limit is {most}")
    return list(value)


def convert(value: Any, kind: type[T], path: str) -> T:
    """`value` as `kind`. Raises `FieldFault` that tells a missing field from an unknown one."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise _field_fault(str(error), path) from None


def parse_endpoint(text: str, field: str) -> Endpoint:
    """What `[http[s]://]host[:port][/v2][/]` means. Raises `FieldFault` on `field`."""
    match = _ENDPOINT.fullmatch(text) if len(text) <= ENDPOINT_MAX_CHARS else None
    if match is None or not _is_name(match["name"]):
        raise wrong(field, f"must be {_endpoint_form(text)}")
    name, port = match["name"].lower(), match["port"]
    if port is not None and not 0 < int(port) <= PORT_MAX:
        raise wrong(field, f"its port must lie between 1 and {PORT_MAX}")
    # The Hub speaks TLS only.
    if name in _HUB_HOSTS and port in (None, "443"):
        return Endpoint(HUB_HOST, "https" if match["scheme"] else None)
    host = f"{name}:{port}" if port else name
    if not match["scheme"]:
        return Endpoint(host, None)
    return Endpoint(host, "http" if match["scheme"].lower() == "http" else "https")


def parse_path(text: str, host: str, field: str) -> str:
    """A repository's path at `host`; on the Hub `busybox` is `library/busybox`. Raises `FieldFault` on `field`."""
    at = HUB_HOST if host == HUB_HOST else "registry.invalid"
    try:
        parsed = ImageReference.parse(f"{at}/{text}", default_tag=None)
    except Permanent:
        parsed = None
    if parsed is None or parsed.tag or parsed.digest:
        raise wrong(
            field,
            "must be a repository such as team/app: a-z, 0-9 and single separators . _ - between them, at most 255 "
            "characters, without registry, tag or digest",
        )
    return parsed.path


def path_at(host: str, path: str) -> str:
    """Where the repository `path`, which was checked, lies at `host`."""
    return f"library/{path}" if host == HUB_HOST and "/" not in path else path


def _field_fault(text: str, path: str) -> FieldFault:
    if missing := _MISSING.fullmatch(text):
        return FieldFault.missing(below(below(path, missing[2] or ""), missing[1]))
    if unknown := _UNKNOWN.fullmatch(text):
        return wrong(below(below(path, unknown[2] or ""), unknown[1][:NAME_MAX_CHARS]), "unknown field")
    other = _OTHER.fullmatch(text)
    why, where = (other[1], other[2]) if other else (text, "")
    return wrong(below(path, where or ""), why)


def _is_name(name: str) -> bool:
    """Whether what is in brackets is an IPv6 address."""
    try:
        return not name.startswith("[") or bool(IPv6Address(name[1:-1]))
    except ValueError:
        return False


def _endpoint_form(text: str) -> str:
    """What an endpoint looks like, with a hint at what is probably wrong with this one."""
    form = "[http[s]://]host[:port], optionally with /v2"
    if "@" in text:
        return f"{form}; user and password go into auth"
    if "/" in text.partition("://")[2].removesuffix("/") or "/" in text.partition("://")[0].removesuffix("/"):
        return f"{form}; what follows the host belongs into image"
    return form
