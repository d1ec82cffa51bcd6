"""The `auth` block of a source or target: how a request says that it logs in there.

All of it is secret. It travels as one JSON text per registry among the job's secrets and is decoded when the job runs.
With `basicauth` the token set-up is ignored, and with the `url` of a token server a ready `token`. A peer may echo what
it was sent, so every string in it is kept out of logs, errors and history, whatever its name. What the token protocol
itself makes public, such as `service`, is not, nor are short plain words and numbers whose name does not say secret: a
log without the word registry could not be read.
"""

import base64
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import msgspec

from imagejobd.jobs.distribute.fields import FieldFault, below, convert, read_fields, wrong
from imagejobd.model.secrets import REDACT_MIN_CHARS, Credentials, Secret
from imagejobd.registry.hosts import Login, ReadyToken, TokenRequest

AUTH_MAX_BYTES = 128 * 1024
URL_MAX_CHARS = 4096
HEADERS_MAX = 50
HEADER_NAME_MAX_CHARS = 128
HEADER_VALUE_MAX_CHARS = 16 * 1024
TOKEN_MAX_CHARS = 16 * 1024
USER_MAX_CHARS = 4096
PASSWORD_MAX_CHARS = 64 * 1024
JSON_DEPTH_MAX = 32

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 §5.6.2
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\U0010ffff]*")
_TOKEN_TYPE = re.compile(r"[A-Za-z]{1,32}")
_TOKEN = re.compile(r"[\x21-\x7e]+")
# distribution's `offline_token` is a flag.
_SECRET = re.compile(r"(?!offlinetoken$).*(?:password|passwd|secret|token|key|pin|pass)")
# A word or number that is in every other message.
_ORDINARY = re.compile(r"[A-Za-z]{0,5}|[0-9.-]{0,5}")
# They frame the message or name the server: the HTTP library's own to say.
_FRAMING = re.compile(
    "connection|content-encoding|content-length|expect|host|keep-alive|proxy-authorization|proxy-connection|te|trailer|"
    "transfer-encoding|upgrade"
)
# What is asked for and who asks (distribution's token and OAuth2 specifications, RFC 6749, RFC 9110), without the
# separators in which `client_id` and `clientId` differ.
_PUBLIC = re.compile(
    "accept|acceptlanguage|accesstype|account|audience|clientid|contenttype|granttype|realm|responsetype|scopes?|"
    "service|tokentype|user|useragent|username"
)


class BasicAuth(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    user: str
    password: str


class Auth(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """As the distribute API's document has it; `token`, a ready one, is in its original's source."""

    url: str | None = None
    token_type: str = "Bearer"  # noqa: S105 - a scheme, not a token
    header: dict[str, str] = {}
    json: dict[str, Any] | None = None
    token: str | None = None
    basicauth: BasicAuth | None = None


def parse_auth(value: Any, path: str) -> Secret | None:
    """Check an `auth` block and make it the text that is stored; an empty one is none. Raises `FieldFault`."""
    fields = read_fields(value, path)
    for name in ("header", "json"):
        if name in fields:
            fields[name] = _object(fields[name], below(path, name))
    if not any(fields.values()):
        return None
    auth = convert(fields, Auth, path)
    if auth.basicauth is not None:
        user, password = auth.basicauth.user, auth.basicauth.password
        if not 0 < len(user) <= USER_MAX_CHARS or ":" in user or not user.isprintable():
            why = f"must be 1 to {USER_MAX_CHARS} printable characters without ':'"
            raise wrong(below(path, "basicauth.user"), why)
        if not 0 < len(password) <= PASSWORD_MAX_CHARS or "\0" in password:
            raise wrong(below(path, "basicauth.password"), f"must be 1 to {PASSWORD_MAX_CHARS} characters of text")
        auth = Auth(basicauth=auth.basicauth)
    elif auth.url is None and auth.token is not None:
        _check_token_type(auth, path)
        if len(auth.token) > TOKEN_MAX_CHARS or not _TOKEN.fullmatch(auth.token):
            why = f"must be 1 to {TOKEN_MAX_CHARS} printable ASCII characters without spaces"
            raise wrong(below(path, "token"), why)
        auth = Auth(token=auth.token, token_type=auth.token_type)
    else:
        _check_token_request(auth, path)
        auth = msgspec.structs.replace(auth, token=None)
    try:
        text = msgspec.json.encode(auth)
    except UnicodeEncodeError:  # half a surrogate pair
        raise wrong(path, "holds text that is no Unicode") from None
    if len(text) > AUTH_MAX_BYTES:
        raise wrong(path, f"is larger than {AUTH_MAX_BYTES} bytes")
    return Secret(text.decode())


def login(auth: Secret | None) -> Login | None:
    """What a stored `auth` block means to the registry client."""
    if auth is None:
        return None
    block = msgspec.json.decode(auth.reveal(), type=Auth)
    if block.basicauth is not None:
        return Credentials(block.basicauth.user, Secret(block.basicauth.password))
    if block.token is not None:
        return ReadyToken(token=Secret(block.token), token_type=block.token_type)
    return TokenRequest(
        url=Secret(block.url or ""),
        token_type=block.token_type,
        headers={name: Secret(text) for name, text in block.header.items()},
        body=None if block.json is None else Secret(msgspec.json.encode(block.json).decode()),
    )


def secret_words(auth: Secret) -> set[Secret]:
    """What to redact of a stored `auth` block: its passwords, and all strings that are neither ordinary nor public.

    The user, the token type and the host of `url` stay readable.
    """
    block = msgspec.json.decode(auth.reveal(), type=Auth)
    if block.basicauth is not None:
        return {Secret(block.basicauth.password)}
    if block.token is not None:
        return {Secret(block.token)}
    words: set[str] = set()
    parts = urlsplit(block.url or "")
    if parts.path.strip("/") or parts.query or parts.fragment:  # else it is no more than the name of a host
        words.add(block.url or "")
    for name, value in (*parse_qsl(parts.query), *block.header.items(), *(block.json or {}).items()):
        words.update(_strings(name, value))
    for name, text in block.header.items():
        if not _is_public(name):
            words.update(_words_of_login(text))
    return {Secret(word) for word in words}


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


def _check_token_request(auth: Auth, path: str) -> None:
    if auth.url is None:
        raise FieldFault.missing(below(path, "url"), "auth needs basicauth, a token, or the url of one")
    if not _is_web_url(auth.url):
        raise wrong(below(path, "url"), "must be an http:// or https:// URL without user and password")
    _check_token_type(auth, path)
    field = below(path, "header")
    if len(auth.header) > HEADERS_MAX:
        raise wrong(field, f"has {len(auth.header)} entries; the limit is {HEADERS_MAX}")
    for name, value in auth.header.items():
        if len(name) > HEADER_NAME_MAX_CHARS or not _NAME.fullmatch(name):
            raise wrong(field, "holds a name that is no HTTP header")
        if _FRAMING.fullmatch(name.lower()):
            raise wrong(below(field, name), "may not be set by a request")
        if len(value) > HEADER_VALUE_MAX_CHARS or not _VALUE.fullmatch(value):
            raise wrong(below(field, name), f"must be one line of at most {HEADER_VALUE_MAX_CHARS} characters")


def _check_token_type(auth: Auth, path: str) -> None:
    if not _TOKEN_TYPE.fullmatch(auth.token_type):
        raise wrong(below(path, "token_type"), "must be letters, such as Bearer or JWT")


def _is_web_url(text: str) -> bool:
    if len(text) > URL_MAX_CHARS or not text.isprintable() or " " in text:
        return False
    try:
        parts = urlsplit(text)
        has_host = bool(parts.hostname) and "@" not in parts.netloc and parts.port != 0
    except ValueError:
        return False
    return has_host and parts.scheme in ("http", "https")


def _strings(name: str, value: Any, *, is_below_secret: bool = False) -> Iterator[str]:
    """The strings and numbers of a value that are not public, ordinary ones only below a name that says secret.

    Its depth is bounded.
    """
    is_secret = is_below_secret or _SECRET.fullmatch(_letters(name)) is not None
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _strings(key, item, is_below_secret=is_secret)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(name, item, is_below_secret=is_secret)
    elif isinstance(value, str | int | float) and not isinstance(value, bool) and not _is_public(name):
        word = str(value)
        if not _ORDINARY.fullmatch(word) or (is_secret and len(word) >= REDACT_MIN_CHARS):
            yield word


def _is_public(name: str) -> bool:
    return _PUBLIC.fullmatch(_letters(name)) is not None


def _letters(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())


def _words_of_login(header: str) -> Iterator[str]:
    """`Authorization: Basic x` is echoed as `x` too, or as the password that is in it."""
    rest = header.partition(" ")[2].strip()
    if not _ORDINARY.fullmatch(rest):
        yield rest
    try:
        _, mark, password = base64.b64decode(rest, validate=True).decode().partition(":")
    except ValueError:
        return
    if mark and password:
        yield password
