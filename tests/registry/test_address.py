"""Addresses keep their letters, and hosts have one name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from imagejobd.registry.address import exact_url, host_of, http_url, numeric_address, origin_of


@pytest.mark.parametrize(
    "text",
    [
        "https://s3.example/a%2Fb?X-Sig=a%2Bb%7e%2F&empty=&plus=a+b#f",
        "http://[::1]:5000/v2/x?_state=abc%3D%3D",
    ],
)
def test_letters_are_kept(text: str) -> None:
    """Signatures cover the address as it is written."""
    assert str(exact_url(text)) == text


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://R.example/x", "r.example"),
        ("https://r.example:443/x", "r.example:443"),
        ("http://u:p@r.example:5000/x", "r.example:5000"),
        ("http://[::1]:5000/", "[::1]:5000"),
        ("http://[::1]/", "[::1]"),
    ],
)
def test_names_of_hosts(url: str, host: str) -> None:
    """As references have them, without a login."""
    assert host_of(exact_url(url)) == host


@pytest.mark.parametrize(
    "url",
    [
        "http://a..b/",
        "http://.a/",
        f"http://{'a' * 64}.test/",
        f"http://{'a.' * 200}b/",
        "http://[::1",
        "http://a:99999/",
        "http://xn--\u0661/",
        "http://\udcff/",
        "ftp://a/",
        "/a",
        "http://",
    ],
)
def test_what_cannot_be_asked_for_is_no_address(url: str) -> None:
    """A host that no resolver can be asked about is none, whoever named it."""
    assert http_url(url) is None


@pytest.mark.parametrize(
    "url", ["http://a_b.test./", f"http://{'a' * 63}.test/", "http://[::1]/", "https://\u00e9.test/"]
)
def test_odd_names_are_names(url: str) -> None:
    """Underscores, final dots and other alphabets are in use."""
    assert http_url(url) is not None


def test_origins() -> None:
    """Scheme, host and port decide; the default port may be written or not."""
    assert origin_of(exact_url("https://A.example:443/x")) == origin_of(URL("https://a.example/y"))
    assert origin_of(URL("https://a.example")) != origin_of(URL("http://a.example"))
    assert origin_of(URL("https://a.example")) != origin_of(URL("https://a.example:444"))


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("10.1.2.3", "10.1.2.3"),
        ("127.1", "127.0.0.1"),
        ("0x7f000001", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("0177.0.0.1", "127.0.0.1"),
        ("::1", "::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("r.example", None),
        ("1.2.3.4.example", None),
        ("", None),
    ],
)
def test_numbers_in_all_spellings(host: str, expected: str | None) -> None:
    """What a resolver takes for a number is one."""
    assert numeric_address(host) == expected


@given(st.text(max_size=60))
def test_any_text_may_be_an_address(text: str) -> None:
    """What is no http(s) URL is None, and what is one has a host and a port."""
    for url in (http_url(text), http_url(f"http://{text}")):
        assert url is None or (url.host and url.port is not None and host_of(url))
