"""Where a registry is, as distributions name it: `[http[s]://]host[:port][/v2][/]`.

What was sent is kept as it was sent and reported so; this is what it means. Errors never quote an endpoint: a user and
password may stand in it.

The `auth` block of a source or target: how a request says that it logs in there.

All of it is secret. It travels as one JSON text per registry among the job's secrets, and is understood again when the
job runs. With `basicauth` the token set-up is ignored.

Which words of an `auth` block no log, error or history may show, because a peer may echo what it was sent.

A password is hidden however short it is. A word that is in every message anyway, such as the `service: registry` of a
token request, is not: it would make the log unreadable and protect nothing.
"""

import base64
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import msgspec

from imagejobd.jobs.distribute.fields import FieldFault, below, convert, given, parse_endpoint, wrong
from imagejobd.model.secrets import Credentials, Secret
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


# What stands under any other name may be a secret, if it is as long as this or no plain word or number.
WORD_MAX_CHARS = 7

# Names below which everything is secret, as parts of longer ones (`client_secret`, `X-Api-Key`, `apikey`) ...
_SECRET_PART = re.compile(r"pass|secret|token|key|credential|auth|bearer|jwt|cookie|signature|session", re.IGNORECASE)
# ... or as one of their words.
_SECRET_WORDS = frozenset({"pw", "pwd", "pin", "otp", "sig", "code", "assertion"})
# Names of what is asked for and of who asks; they win over the parts above (`token_type`).
_OPEN = frozenset(
    {
        "accept",
        "accept_language",
        "access_type",
        "account",
        "audience",
        "client_id",
        "content_type",
        "expires_in",
        "grant_type",
        "realm",
        "response_type",
        "scope",
        "scopes",
        "service",
        "token_type",
        "user",
        "user_agent",
        "user_name",
        "username",
    }
)
# `offline_token=true` asks for one.
_ANSWERS = frozenset({"true", "false"})
_SCHEME = re.compile(r"[A-Za-z]{1,32} +(?P<rest>\S.*)")
_PLAIN = re.compile(r"[A-Za-z]+|[0-9]+|")


def secret_words(auth: Secret) -> Iterator[Secret]:
    """What to hide of a kept `auth` block."""
    block = msgspec.json.decode(auth.reveal(), type=Auth)
    return (Secret(word) for word in _words(block) if word)


def _words(block: Auth) -> Iterator[str]:
    if block.basicauth is not None:
        yield block.basicauth.password
    if block.url:
        yield from _words_of_url(block.url)
    for name, text in block.header.items():
        yield from _words_below(name, text)
        if (scheme := _SCHEME.fullmatch(text)) and _is_secret(name):
            yield from _words_of_login(scheme["rest"])
    for name, value in (block.json or {}).items():
        yield from _words_below(name, value)


def _words_of_url(url: str) -> Iterator[str]:
    parts = urlsplit(url)
    if parts.path.strip("/") or parts.query or parts.fragment:  # else it is no more than the name of a host
        yield url
    for name, value in parse_qsl(parts.query):
        yield from _words_below(name, value)


def _words_of_login(rest: str) -> Iterator[str]:
    """`Authorization: Basic x` is echoed as `x` too, or as what is in it."""
    yield rest
    try:
        _, mark, password = base64.b64decode(rest, validate=True).decode().partition(":")
    except ValueError:
        return
    if mark:
        yield password


def _words_below(name: str, value: Any, *, is_secret: bool = False) -> Iterator[str]:
    """What to hide of a value; its depth is bounded. A name counts for what is below it, until a name that is open."""
    is_open = _plain_name(name) in _OPEN
    is_secret = (is_secret or _is_secret(name)) and not is_open
    if isinstance(value, dict | list):
        for key, item in _items(name, value):
            yield from _words_below(key, item, is_secret=is_secret)
    elif isinstance(value, str):
        if (is_secret and value not in _ANSWERS) or not (is_open or _is_ordinary(value)):
            yield value
    elif is_secret and isinstance(value, int | float) and not isinstance(value, bool):
        yield str(value)


def _items(name: str, value: dict[str, Any] | list[Any]) -> Iterable[tuple[str, Any]]:
    return value.items() if isinstance(value, dict) else ((name, item) for item in value)


def _is_secret(name: str) -> bool:
    plain = _plain_name(name)
    return plain not in _OPEN and bool(_SECRET_PART.search(plain) or _SECRET_WORDS.intersection(plain.split("_")))


def _plain_name(name: str) -> str:
    """`userName`, `User-Name` and `user_name` are one."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[^A-Za-z0-9]+", "_", name).strip("_").lower()


def _is_ordinary(value: str) -> bool:
    return len(value) <= WORD_MAX_CHARS and _PLAIN.fullmatch(value) is not None
