"""Receivers of webhooks: what is taken for one, and how messages are signed."""

import base64

import pytest

from imagejobd.model.errors import Permanent
from imagejobd.model.secrets import Secret
from imagejobd.model.webhook import URL_MAX_CHARS, Receiver

SECRET = "0123456789abcdef0123456789abcdef"
NAMES = {"url_name": "webhook.url", "secret_name": "webhook.secret"}


def test_the_specifications_own_example() -> None:
    """The signature of the specification's test vector, with the key in its form."""
    receiver = Receiver("", Secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"))
    headers = receiver.signed_headers("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_secret_is_text_or_in_the_specifications_form() -> None:
    """Both give the same key."""
    coded = "whsec_" + base64.b64encode(SECRET.encode()).decode()
    keys = {Receiver.parse("https://x.example/", secret, **NAMES).key for secret in (SECRET, coded)}
    assert keys == {SECRET.encode()}


@pytest.mark.parametrize(
    ("url", "secret", "words"),
    [
        ("ftp://x.example/", SECRET, "webhook.url is not"),
        ("//x.example/", SECRET, "webhook.url is not"),
        ("http://", SECRET, "webhook.url is not"),
        ("http://x.example:99999/", SECRET, "webhook.url is not"),
        (f"http://x.example/{'a' * URL_MAX_CHARS}", SECRET, "webhook.url is not"),
        ("https://user:hunter2@x.example/", SECRET, "webhook.url holds a user"),
        ("https://x.example/", "hunter2", "webhook.secret holds 7 bytes"),
        ("https://x.example/", "hunter2" * 1000, "webhook.secret holds 7000 bytes"),
        ("https://x.example/", "whsec_hunter2!", "webhook.secret: .*not base64"),
        ("https://x.example/", "whsec_hünter2", "webhook.secret: .*not base64"),
    ],
)
def test_what_is_no_receiver_is_refused(url: str, secret: str, words: str) -> None:
    """With the field, and without what is secret."""
    with pytest.raises(Permanent, match=words) as refused:
        Receiver.parse(url, secret, **NAMES)
    assert "hunter2" not in refused.value.message
