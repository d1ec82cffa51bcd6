"""Which words of an `auth` block no log, error or history may show, because a peer may echo what it was sent.

A password is hidden however short it is. A word that is in every message anyway, such as the `service: registry` of a
token request, is not: it would make the log unreadable and protect nothing.
"""

import base64
import re
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import msgspec

from imagejobd.kinds.distribute.login import Auth
from imagejobd.model.secret import Secret

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


def hidden_words(auth: Secret) -> Iterator[Secret]:
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
