"""Upload locations in all the forms in which registries write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from imagejobd.registry.blobs import resolve_location, with_digest

ASKED = "/v2/team/app/blobs/uploads/"
HOST = "registry.example:5000"
DIGEST = "sha256:" + "a" * 64
STATE = "_state=aZ-_%2B%2F%3d%3D+x~'()"


@pytest.mark.parametrize(
    ("location", "target"),
    [
        (f"/v2/team/app/blobs/uploads/1?{STATE}", f"/v2/team/app/blobs/uploads/1?{STATE}"),
        ("1", "/v2/team/app/blobs/uploads/1"),
        ("?id=1", "/v2/team/app/blobs/uploads/?id=1"),
        (f"https://registry.example:5000/up/1?{STATE}", f"/up/1?{STATE}"),
        ("http://registry.example:5000/up/1", "/up/1"),
        ("HTTP://Registry.Example:5000/up/1#there", "/up/1"),
        ("//registry.example:5000/up/1", "/up/1"),
        (f"http://registry.example:5001/up/1?{STATE}", URL(f"http://registry.example:5001/up/1?{STATE}", encoded=True)),
        ("https://storage.example/up/1", URL("https://storage.example/up/1")),
        ("", None),
        ("ftp://registry.example:5000/up", None),
        ("https://user:word@storage.example/up", None),
        ("http://[::1/up", None),
        ("http://registry.example:99999/up", None),
        ("/" + "x" * 20_000, None),
    ],
)
def test_resolve(location: str, target: str | URL | None) -> None:
    """What names the registry itself stays on its own connection, to the letter; others are taken as they are."""
    assert resolve_location(location, ASKED, HOST) == target


@pytest.mark.parametrize("location", ["http://registry.example/up?a=%2f", "https://registry.example:443/up?a=%2f"])
def test_behind_a_tls_proxy(location: str) -> None:
    """A registry that knows nothing of the TLS before it says http: the connection's own scheme is kept."""
    assert resolve_location(location, ASKED, "registry.example") == "/up?a=%2f"


def test_hub() -> None:
    """The Hub's API has another name than the Hub."""
    assert resolve_location("https://registry-1.docker.io/v2/x", ASKED, "docker.io") == "/v2/x"


def test_relative_to_an_upload_elsewhere() -> None:
    """A location that is relative belongs to the host that was asked, which need not be the registry."""
    asked = URL("https://storage.example/up/1")
    assert resolve_location("/up/2?x=%2F", asked, HOST) == URL("https://storage.example/up/2?x=%2F", encoded=True)


@pytest.mark.parametrize("as_url", [False, True])
def test_digest_behind_a_signed_query(as_url: bool) -> None:
    """The digest is added without a change to any other letter."""
    for text, sign in ((f"http://h/up/1?{STATE}", "&"), ("http://h/up/1", "?")):
        target = URL(text, encoded=True) if as_url else text
        assert str(with_digest(target, DIGEST)) == f"{text}{sign}digest={DIGEST}"


@given(st.text() | st.text("htps:/?#[]@%2F.:-0123456789abc"))
def test_whatever_the_peer_makes_of_it(location: str) -> None:
    """No location raises; what is taken is a path at the registry or an absolute http(s) URL."""
    target = resolve_location(location, ASKED, HOST)
    if isinstance(target, URL):
        assert target.scheme in ("http", "https")
        assert target.host
    else:
        assert target is None or target.startswith("/")
