"""Promises of secrets: they do not show."""

import base64

import pytest

from imagejobd.model.secrets import MASK, Credentials, Redactor, Secret

PASSWORD = "correct horse"


def test_a_secret_shows_in_no_form():
    """Neither `str` nor `repr` nor formatting, alone or inside others, shows the value."""
    secret = Secret(PASSWORD)
    credentials = Credentials("joe", secret)
    shown = f"{secret} {secret!r} {secret!s} {[secret]} {credentials} {credentials!r}"
    assert PASSWORD not in shown
    assert "joe" in shown
    assert secret.reveal() == PASSWORD


def test_secrets_have_no_dict_to_leak():
    """A secret keeps no `__dict__` that a generic dump would print."""
    with pytest.raises(TypeError):
        vars(Secret(PASSWORD))


def test_secrets_compare_by_value():
    """Equal values are equal, an empty one is false, and a plain string is never equal."""
    assert Secret("a") == Secret("a")
    assert len({Secret("a"), Secret("a"), Secret("b")}) == 2
    assert Secret("a") != "a"
    assert not Secret("")


def test_redactor_masks_plain_and_encoded_forms():
    """A secret is masked wherever it stands, also as base64, and the longest goes first."""
    redact = Redactor([Secret(PASSWORD), Secret("correct")])
    encoded = base64.b64encode(PASSWORD.encode()).decode()
    assert redact(f"a {PASSWORD}b {encoded} correct.") == f"a {MASK}b {MASK} {MASK}."


@pytest.mark.parametrize("before", ["", "u:", "joe:", "builder:", '{"username":"joé","password":"'])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_redactor_masks_secrets_within_base64(before, encode):
    """What an engine or registry echoes of an Authorization header tells at most the edges of the secret."""
    secret = "s3cret?>word~with/odd+bytes"
    header = encode(f'{before}{secret}"}}'.encode()).decode()
    redacted = Redactor([Secret(secret)])(f"Authorization: Basic {header}")
    assert MASK in redacted
    kept = redacted.removeprefix("Authorization: Basic ").replace(MASK, "")
    assert len(kept) <= len(encode(before.encode())) + 8


def test_redactor_leaves_short_secrets_and_other_text():
    """A secret of less than four characters would mask ordinary words, so it is left."""
    assert Redactor([Secret("the"), Secret("")])("the text") == "the text"
    assert Redactor()("text") == "text"
