"""What a signed token has to claim, and whom it names."""

from pathlib import Path
from typing import Any

import pytest
from signing import (
    AUDIENCE,
    CLAIMS,
    by_secret,
    forged,
    part,
    signed,
    token,
)
from token_checks import MALFORMED, NOT_ACCEPTED, NOW_S, caller, refusal

from imagejobd.api.auth import Tokens
from imagejobd.api.keys import Auth, load_keys
from imagejobd.model.errors import Permanent


@pytest.fixture
def auth(tmp_path: Path) -> Auth:
    return by_secret(tmp_path)


@pytest.mark.parametrize(
    "payload",
    [b"", b"null", b"[]", b"1", b"{", b"\xff", b"[" * 5000, b'{"tid":' + b"9" * 5000 + b"}", b'{"a":"\\ud800"}'],
)
def test_signed_nonsense(auth: Auth, payload: bytes) -> None:
    """A payload that is no JSON object is refused even with a good signature, nested tokens among them."""
    assert refusal(auth, signed({"alg": "HS256"}, payload)) in ("the token's claims are not a JSON object", MALFORMED)
    nested = signed({"alg": "HS256", "cty": "JWT"}, token().encode())
    assert refusal(auth, nested) == "the token's claims are not a JSON object"


@pytest.mark.parametrize("name", ["tid", "oid"])
@pytest.mark.parametrize(
    "value", [..., None, True, False, 1.0, "1", "", [1], {"a": 1}, 2**63, -(2**63) - 1, 2**70, 1e30]
)
def test_tenant_and_client_are_integers(auth: Auth, name: str, value: Any) -> None:
    """`tid` and `oid` are integers of 64 bits; what merely looks like one is refused."""
    assert refusal(auth, token(**{name: value})) == f"the token's claim {name} is missing or not an integer"


@pytest.mark.parametrize("value", [0, -1, 2**63 - 1, -(2**63)])
def test_extreme_tenants(auth: Auth, value: int) -> None:
    """Every integer is a tenant of its own in decimal, so that none is ever the anonymous one."""
    assert caller(auth, token(tid=value)).tenant == str(value)


@pytest.mark.parametrize(
    "audience", ["other", "", AUDIENCE + " ", AUDIENCE.upper(), [], ["other"], 1, {AUDIENCE: 1}, True]
)
def test_tokens_for_others(auth: Auth, audience: Any) -> None:
    """A token for another audience, or none, is refused; one that names several, ours among them, is taken."""
    assert refusal(auth, token(aud=audience)) == "the token is for another audience (aud)"
    assert refusal(auth, token(aud=...)) == "the token's claim aud is missing"
    assert caller(auth, token(aud=["other", AUDIENCE])).tenant == "1"


def test_the_audience_is_configured(tmp_path: Path) -> None:
    """`auth.audience` replaces the default one."""
    auth = by_secret(tmp_path, audience="mine")
    assert caller(auth, token(aud="mine")).tenant == "1"
    assert refusal(auth, token()) == "the token is for another audience (aud)"


def test_times_with_leeway(tmp_path: Path) -> None:
    """`exp`, `nbf` and `iat` count where present, give or take the leeway."""
    auth = by_secret(tmp_path, leeway_s=10.0)
    assert caller(auth, token(exp=NOW_S - 9, nbf=NOW_S + 10, iat=NOW_S + 10.0)).tenant == "1"
    assert refusal(auth, token(exp=NOW_S - 10)) == "the token has expired"
    for name in ("nbf", "iat"):
        assert refusal(auth, token(**{name: NOW_S + 11})) == "the token is not valid yet (nbf, iat)"
    assert refusal(auth, token(exp=-1)) == "the token has expired"
    assert caller(auth, token(exp=10**100)).tenant == "1"
    assert refusal(auth, token(nbf=10**100)) == "the token is not valid yet (nbf, iat)"


@pytest.mark.parametrize("name", ["exp", "nbf", "iat"])
@pytest.mark.parametrize("value", [None, "1", "never", True, [], {}])
def test_times_are_numbers(auth: Auth, name: str, value: Any) -> None:
    """A time that is no number is refused, rather than taken for none."""
    text = signed({"alg": "HS256"}, CLAIMS | {name: value})
    assert refusal(auth, text) == f"the token's claim {name} is not a number"


def test_a_remembered_token_expires(auth: Auth) -> None:
    """A token that was good is refused from the moment it expires."""
    tokens = Tokens(load_keys(auth), auth)
    text = token(exp=NOW_S, nbf=NOW_S)
    assert tokens.caller(text, NOW_S).tenant == "1"
    assert tokens.caller(text, NOW_S + 29).tenant == "1"
    for now_s in (NOW_S + 30, NOW_S - 31):
        with pytest.raises(Permanent):
            tokens.caller(text, now_s)


def test_claims_are_spoken_of_after_the_signature(auth: Auth) -> None:
    """Who cannot sign learns nothing of which claims would be good."""
    for claims in ({}, {"aud": "other"}, {"exp": 1}, {"tid": "1"}):
        assert refusal(auth, forged({"alg": "HS256"}, part("x"), claims)) == NOT_ACCEPTED


def test_who_submitted(auth: Auth) -> None:
    """Of the person only short, showable texts of four claims are kept."""
    told = caller(auth, token(sub="s", email="e" * 257, azp=1, name="A\x1b[31m", phone="p")).submitter
    assert told == {"sub": "s"}
    assert caller(auth, token(sub=..., email=...)).submitter == {}
    whole = {"sub": "s" * 256, "email": "e@x", "azp": "1", "name": "Žofie Nováková"}
    assert caller(auth, token(**whole)).submitter == whole


def test_admins(tmp_path: Path) -> None:
    """`admin_subjects` see every tenant; their own jobs belong to the tenant of their token."""
    auth = by_secret(tmp_path, admin_subjects=("root",))
    admin = caller(auth, token(sub="root"))
    assert (admin.is_admin, admin.tenant, admin.sees) == (True, "1", None)
    for subject in ("jane", "ROOT", "root ", ...):
        assert caller(auth, token(sub=subject)).sees == "1"
    for subject in (["root"], {"root": 1}, None):
        assert not caller(auth, signed({"alg": "HS256"}, CLAIMS | {"sub": subject})).is_admin
