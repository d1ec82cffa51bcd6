"""The `auth` block of a source or target: how a request says that it logs in there.

All of it is secret. It travels as one JSON text per registry among the job's secrets, and is understood again when the
job runs. With `basicauth` the token set-up is ignored.
"""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec

from imagejobd.kinds.distribute.endpoint import parse_endpoint
from imagejobd.kinds.distribute.fields import FieldFault, below, convert, given, wrong
from imagejobd.model.secret import Credentials, Secret
from imagejobd.registry.site import Login, Site, TokenRequest

AUTH_MAX_BYTES = 128 * 1024
URL_MAX_CHARS = 4096
HEADERS_MAX = 50
HEADER_NAME_MAX_CHARS = 128
HEADER_VALUE_MAX_CHARS = 16 * 1024
USER_MAX_CHARS = 4096
PASSWORD_MAX_CHARS = 64 * 1024
JSON_DEPTH_MAX = 32

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 §5.6.2
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\U0010ffff]*")
_TOKEN_TYPE = re.compile(r"[A-Za-z]{1,32}")
# They frame the message or name the server: the HTTP library's own to say.
_FRAMING = frozenset(
    {
        "connection",
        "content-encoding",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


class _Basic(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    user: str
    password: str


class Auth(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """As the distribute API's document has it."""

    url: str | None = None
    token_type: str = "Bearer"  # noqa: S105 - a scheme, not a token
    header: dict[str, str] = {}
    json: dict[str, Any] | None = None
    basicauth: _Basic | None = None


def parse_auth(value: Any, path: str) -> Secret | None:
    """Check an `auth` block and make it the text that is kept; an empty one is none. Raises `FieldFault`."""
    fields = given(value, path)
    for name in ("header", "json"):
        if name in fields:
            fields[name] = _object(fields[name], below(path, name))
    if not any(fields.values()):
        return None
    auth = convert(fields, Auth, path)
    if auth.basicauth is not None:
        _check_basic(auth.basicauth, below(path, "basicauth"))
    else:
        _check_token_request(auth, path)
    return Secret(_text(auth, path))


def login(auth: Secret | None) -> Login | None:
    """What a kept `auth` block means to the registry client."""
    if auth is None:
        return None
    block = msgspec.json.decode(auth.reveal(), type=Auth)
    if block.basicauth is not None:
        return Credentials(block.basicauth.user, Secret(block.basicauth.password))
    return TokenRequest(
        url=Secret(block.url or ""),
        token_type=block.token_type,
        headers={name: Secret(text) for name, text in block.header.items()},
        body=None if block.json is None else Secret(msgspec.json.encode(block.json).decode()),
    )


def site(endpoint: str, verify_tls: bool | None, auth: Secret | None) -> Site:
    """The registry at a stored `endpoint`, as the registry client takes it."""
    parsed = parse_endpoint(endpoint, "endpoint")
    return Site(host=parsed.host, scheme=parsed.scheme, verify_tls=verify_tls, login=login(auth))


def _text(auth: Auth, path: str) -> str:
    try:
        text = msgspec.json.encode(auth)
    except UnicodeEncodeError:  # half a surrogate pair
        raise wrong(path, "holds text that is no Unicode") from None
    if len(text) > AUTH_MAX_BYTES:
        raise wrong(path, f"is larger than {AUTH_MAX_BYTES} bytes")
    return text.decode()


def _object(value: Any, field: str) -> Any:
    """An object, or the text of one."""
    if isinstance(value, str):
        if len(value) > AUTH_MAX_BYTES:
            raise wrong(field, f"is larger than {AUTH_MAX_BYTES} bytes")
        try:
            value = msgspec.json.decode(value) if value.strip() else {}
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            raise wrong(field, "must be an object, or a string that holds a JSON object") from None
    if not isinstance(value, dict):
        raise wrong(field, "must be an object, or a string that holds a JSON object")
    if _depth(value) > JSON_DEPTH_MAX:
        raise wrong(field, f"is nested deeper than {JSON_DEPTH_MAX} levels")
    return value


def _depth(value: Any) -> int:
    """Levels of nesting, walked without recursion: hostile JSON may have thousands."""
    depth, level = 0, [value]
    while level and depth <= JSON_DEPTH_MAX:
        level = [
            item
            for outer in level
            if isinstance(outer, dict | list)
            for item in (outer.values() if isinstance(outer, dict) else outer)
        ]
        depth += 1
    return depth - 1


def _check_basic(basic: _Basic, path: str) -> None:
    if not 0 < len(basic.user) <= USER_MAX_CHARS or ":" in basic.user or not basic.user.isprintable():
        raise wrong(below(path, "user"), f"must be 1 to {USER_MAX_CHARS} printable characters without ':'")
    if not 0 < len(basic.password) <= PASSWORD_MAX_CHARS or "\0" in basic.password:
        raise wrong(below(path, "password"), f"must be 1 to {PASSWORD_MAX_CHARS} characters of text")


def _check_token_request(auth: Auth, path: str) -> None:
    if auth.url is None:
        raise FieldFault.missing(below(path, "url"), "auth needs basicauth, or the url of a token")
    if not _is_web_url(auth.url):
        raise wrong(below(path, "url"), "must be an http:// or https:// URL without user and password")
    if not _TOKEN_TYPE.fullmatch(auth.token_type):
        raise wrong(below(path, "token_type"), "must be letters, such as Bearer or JWT")
    _check_headers(auth.header, below(path, "header"))


def _is_web_url(text: str) -> bool:
    if len(text) > URL_MAX_CHARS or not text.isprintable() or " " in text:
        return False
    try:
        parts = urlsplit(text)
        has_host = bool(parts.hostname) and "@" not in parts.netloc and parts.port != 0
    except ValueError:
        return False
    return has_host and parts.scheme in ("http", "https")


def _check_headers(headers: Mapping[str, str], path: str) -> None:
    if len(headers) > HEADERS_MAX:
        raise wrong(path, f"has {len(headers)} entries; the limit is {HEADERS_MAX}")
    for name, value in headers.items():
        if len(name) > HEADER_NAME_MAX_CHARS or not _NAME.fullmatch(name):
            raise wrong(path, "holds a name that is no HTTP header")
        if name.lower() in _FRAMING:
            raise wrong(below(path, name), "may not be set by a request")
        if len(value) > HEADER_VALUE_MAX_CHARS or not _VALUE.fullmatch(value):
            raise wrong(below(path, name), f"must be one line of at most {HEADER_VALUE_MAX_CHARS} characters")
