"""Which words of a login are kept out of all that is told, and which may stay readable."""

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
    """Of basicauth, and under any name that says so, however plain the word is."""
    assert words_of(basicauth={"user": "me", "password": password}) == {password}
    names = ("password", "passwd", "clientSecret", "API-Key", "apikey", "refresh_token", "credentials", "auth", "pwd")
    for name in names:
        assert password in words_of(json={name: password})
        assert password in words_of(json={name: {"a": [{"x": password}]}})
        assert password in words_of(header={name: password})
        assert password in words_of(url=f"{URL}?{name}={password}")


def test_a_pin_is_hidden() -> None:
    """A number is a secret where its name says so."""
    assert words_of(json={"pin": 48151, "retries": 1623, "key": True}) == {"48151"}


@pytest.mark.parametrize("value", ["registry", "registry.example", "repository:team/app:pull", "application/json"])
def test_what_is_asked_for_is_not_hidden(value: str) -> None:
    """A log without the word registry could not be read."""
    names = ("service", "scope", "grant_type", "client_id", "clientId", "account", "username", "Accept", "Content-Type")
    for name in names:
        assert words_of(json={name: value}) == set()
        assert words_of(header={name: value}) == set()
    assert words_of(json={"auth": {"service": value, "scopes": [value], "token": "abcd"}}) == {"abcd"}
    assert words_of(json={"offline_token": "true"}) == set()


def test_what_nobody_can_know() -> None:
    """Under any other name short words and numbers are left; all else may be a secret."""
    plain = {"a": "push", "b": "12", "c": "", "d": None, "e": 7}
    assert words_of(json=plain) == set()
    assert words_of(json={"p": "b0dy", "q": "correcthorse", "r": ["a-b"]}) == {"b0dy", "correcthorse", "a-b"}


def test_a_login_in_a_header() -> None:
    """It is echoed with its scheme, without it, and as the password that is in it; the scheme alone is no secret."""
    sent = base64.b64encode(b"me:pa55").decode()
    assert words_of(header={"Authorization": f"Basic {sent}"}) == {f"Basic {sent}", sent, "pa55"}
    assert words_of(header={"Authorization": "Bearer abc.def"}) == {"Bearer abc.def", "abc.def"}


def test_a_url() -> None:
    """With a path or a query it may be a secret as a whole; the name of a host is none."""
    assert words_of() == words_of(url=f"{URL}/") == set()
    assert words_of(url=f"{URL}/t0ken") == {f"{URL}/t0ken"}
    assert words_of(url=f"{URL}/t?service=registry&key=abcd") == {f"{URL}/t?service=registry&key=abcd", "abcd"}
