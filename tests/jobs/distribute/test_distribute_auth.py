"""Which words of a login are kept out of all that is shown, and which may stay readable."""

import base64
from typing import Any

import pytest

from imagejobd.jobs.distribute.auth import parse_auth, secret_words

URL = "https://auth.example"


def words_of(**auth: Any) -> set[str]:
    kept = parse_auth({"url": URL, **auth}, "auth")
    assert kept is not None
    return {word.reveal() for word in secret_words(kept)}


@pytest.mark.parametrize("password", ["hunter2", "abcd", "registry"])
def test_a_password_is_always_hidden(password: str) -> None:
    """Of basicauth, and in a Basic header, however short and plain the word is; the rest of the block is not used."""
    assert words_of(basicauth={"user": "me", "password": password}, json={"a": "n0t-sent"}) == {password}
    assert password in words_of(
        header={"Authorization": f"Basic {base64.b64encode(f'me:{password}'.encode()).decode()}"}
    )


def test_a_ready_token_is_always_hidden() -> None:
    """However short and plain; beside a url it is not used."""
    kept = parse_auth({"token": "abcd", "header": {"X": "n0t-sent"}}, "auth")
    assert kept is not None
    assert {word.reveal() for word in secret_words(kept)} == {"abcd"}
    assert words_of(token="abcd") == set()


@pytest.mark.parametrize("secret", ["hunter2", "secret", "481516", "b0dy", "a-b"])
def test_strings_are_hidden_under_any_name(secret: str) -> None:
    """Six characters are enough, and fewer that are no plain word."""
    for name in ("password", "clientSecret", "API-Key", "refresh_token", "pwd", "p", "x-thing"):
        assert words_of(json={name: secret}) == {secret}
        assert words_of(json={name: {"a": [{"x": secret}]}}) == {secret}
        assert words_of(header={name: secret}) == {secret}
        assert secret in words_of(url=f"{URL}?{name}={secret}")


@pytest.mark.parametrize("name", ["password", "passwd", "client_secret", "refreshToken", "API-Key", "pin", "pass"])
def test_four_characters_are_hidden_where_the_name_says_secret(name: str) -> None:
    """Also of a plain word or a number; a flag and fewer characters are not worth it."""
    assert words_of(json={name: "abcd"}) == words_of(header={name: "abcd"}) == {"abcd"}
    assert words_of(json={name: {"value": ["abcd"]}}) == {"abcd"}
    assert words_of(json={"a": [{name: ["true", 1623]}]}) == {"true", "1623"}
    assert words_of(json={"a": {name: "abc"}, name: [True, None, 162]}) == set()


@pytest.mark.parametrize("value", ["registry", "registry.example", "repository:team/app:pull", "application/json"])
def test_what_is_asked_for_is_not_hidden(value: str) -> None:
    """A log without the word registry could not be read."""
    names = ("service", "scope", "grant_type", "client_id", "clientId", "account", "username", "Accept", "Content-Type")
    for name in names:
        assert words_of(json={name: value}) == set()
        assert words_of(header={name: value}) == set()
    assert words_of(json={"auth": {"service": value, "scopes": [value], "token": "abcdef"}}) == {"abcdef"}


def test_ordinary_words_and_numbers_are_not_hidden() -> None:
    """Short ones are in every other line."""
    plain = {"a": "push", "b": "1.0", "c": "", "d": None, "e": 7, "offline_token": "true", "f": False, "g": 1.5}
    assert words_of(json=plain) == set()
    assert words_of(json={"pin": 481516, "retries": 1623}) == {"481516"}


def test_a_login_in_a_header() -> None:
    """It is echoed with its scheme, without it, and as the password that is in it; the scheme alone is no secret."""
    sent = base64.b64encode(b"me:pa55").decode()
    assert words_of(header={"Authorization": f"Basic {sent}"}) == {f"Basic {sent}", sent, "pa55"}
    assert words_of(header={"Authorization": "Bearer abc.def"}) == {"Bearer abc.def", "abc.def"}
    assert words_of(header={"Accept": "text/plain, application/json"}) == set()


def test_a_url() -> None:
    """With a path or a query it may be a secret as a whole; the name of a host is none."""
    assert words_of() == words_of(url=f"{URL}/") == set()
    assert words_of(url=f"{URL}/t0ken") == {f"{URL}/t0ken"}
    assert words_of(url=f"{URL}/t?service=registry&key=abcdef") == {f"{URL}/t?service=registry&key=abcdef", "abcdef"}
