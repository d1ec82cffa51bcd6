"""Headers as registries write them, and as nobody should: links, locations, ranges."""

import contextlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from imagejobd.registry.headers import next_page, parse_content_range, resolve_location, with_digest

TAGS = "/v2/team/app/tags/list?n=1000"
PAGE = "/v2/team/app/tags/list?last=b"


@pytest.mark.parametrize(
    "values",
    [
        [f'<{PAGE}>; rel="next"'],
        [f"<{PAGE}>;rel=next"],
        [f'<{PAGE}> ; REL = "Next"'],
        [f'<{PAGE}>; title="a, b; c"; rel="last next"; n=1'],
        [f'</a>; rel="first", </b>; rel=prev,<{PAGE}>; rel="next", </d>; rel=next'],
        ['</a>; rel="first"', f'<{PAGE}>; rel="next"'],
        [f"</a>, <{PAGE}>; rel=next"],
        [f"<{PAGE}>"],
        [f'<{PAGE}>; title="more"; n=2'],
        [f'</a>; rel="prev", <{PAGE}>'],
        [f"{PAGE}; rel=next"],
        [PAGE],
        ["<?last=b>; rel=next"],
        ["<list?last=b>; rel=next"],
        [f"<http://inner:5000{PAGE}>; rel=next"],
    ],
)
def test_next_page(values: list[str]) -> None:
    """The link that is marked as the next, else the one that is not marked at all, in every way in which it is written:
    always the same list at the registry that was asked."""
    assert next_page(values, [TAGS]) == PAGE


@pytest.mark.parametrize("values", [[], ["", " "], ['</a>; rel="first"'], ['</a>; rel="nextish", </b>; rel=last']])
def test_last_page(values: list[str]) -> None:
    """Without a link, or with links to other things only, the list is whole."""
    assert next_page(values, [TAGS]) is None


@pytest.mark.parametrize(
    "reference",
    [
        "/v2/team/other/tags/list?last=b",
        "https://evil.example/steal?last=b",
        "//evil.example/?last=b",
        "/v2/team/app/tags/list",
        "/v2/team/app/tags/../../secret/list?a=b",
        "ftp://h/v2/team/app/tags/list?a=b",
        "http://[::1/v2/team/app/tags/list?a=b",
        "?last=a b",
        "?last=a\r\nX: 1",
        "?last=ä",
    ],
)
@pytest.mark.parametrize("link", ["<{}>; rel=next", "<{}>"])
def test_page_elsewhere(reference: str, link: str) -> None:
    """Another list, another place or no address at all: refused, and not taken for the end."""
    with pytest.raises(ValueError):
        next_page([link.format(reference)], [TAGS])


@pytest.mark.parametrize("value", ["</a; rel=next", "rel=next", "<", ">", ">;;;=", "\x00"])
def test_link_that_is_none(value: str) -> None:
    """What cannot be understood promises more: it is not taken for the end."""
    with pytest.raises(ValueError):
        next_page([value], [TAGS])


@given(values=st.lists(st.text() | st.text('<>;,="\\ relnxt/?a')))
def test_whatever_link(values: list[str]) -> None:
    """No header makes anything but a page of the list, its end or a refusal."""
    try:
        page = next_page(values, [TAGS])
    except ValueError:
        return
    assert page is None or page.startswith("/v2/team/app/tags/list?")


@pytest.mark.parametrize(
    "value", ["<>;a" + " " * 32_000, "<" * 32_000, "<>;" * 10_000, '<>;rel="' * 4_000, ", " * 16_000, ";rel " * 6_000]
)
def test_costly_link(value: str) -> None:
    """A header made to be read slowly is read quickly."""
    before = time.process_time()
    with contextlib.suppress(ValueError):
        next_page([value], [TAGS])
    assert time.process_time() - before < 5


HOST = "registry.example:5000"
ASKED = URL(f"https://{HOST}/v2/team/app/blobs/uploads/")
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
def test_location(location: str, target: str | URL | None) -> None:
    """What names the registry itself stays on its own connection, to the letter; others are taken as they are."""
    assert resolve_location(location, ASKED, HOST) == target


@pytest.mark.parametrize("location", ["http://registry.example/up?a=%2f", "https://registry.example:443/up?a=%2f"])
def test_location_behind_a_tls_proxy(location: str) -> None:
    """A registry that knows nothing of the TLS before it says http: the connection's own scheme is kept."""
    assert resolve_location(location, ASKED, "registry.example") == "/up?a=%2f"


def test_location_at_the_hub() -> None:
    """The Hub's API has another name than the Hub."""
    assert resolve_location("https://registry-1.docker.io/v2/x", ASKED, "docker.io") == "/v2/x"


def test_location_relative_to_an_upload_elsewhere() -> None:
    """A location that is relative belongs to the host that was asked, which need not be the registry."""
    asked = URL("https://storage.example/up/1")
    assert resolve_location("/up/2?x=%2F", asked, HOST) == URL("https://storage.example/up/2?x=%2F", encoded=True)


@given(st.text() | st.text("htps:/?#[]@%2F.:-0123456789abc"))
def test_whatever_location(location: str) -> None:
    """No location raises; what is taken is a path at the registry or an absolute http(s) URL."""
    target = resolve_location(location, ASKED, HOST)
    if isinstance(target, URL):
        assert target.scheme in ("http", "https")
        assert target.host
    else:
        assert target is None or target.startswith("/")


@pytest.mark.parametrize("as_url", [False, True])
def test_digest_behind_a_signed_query(as_url: bool) -> None:
    """The digest is added without a change to any other letter."""
    for text, sign in ((f"http://h/up/1?{STATE}", "&"), ("http://h/up/1", "?")):
        target = URL(text, encoded=True) if as_url else text
        assert str(with_digest(target, DIGEST)) == f"{text}{sign}digest={DIGEST}"


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "bytes 0-4/*",
        "bytes */5",
        "bytes 5-4/10",
        "bytes 0-5/5",
        "bytes 0-4/5, bytes 0-4/5",
        "bytes=0-4/5",
        "bytes 0-4",
        "bytes -1-4/5",
        "bytes 0 - 4 / 5",
        "items 0-4/5",
        "bytes 0-4/" + "9" * 10_000,
        "bytes ٠-٤/٥",
    ],
)
def test_range_that_is_not_exactly_understood(value: str | None) -> None:
    """What contradicts itself, tells no full length or is written otherwise is no range."""
    assert parse_content_range(value) is None


SIZES = st.integers(0, 2**51)


@given(start=SIZES, length=SIZES, rest=SIZES, unit=st.sampled_from(["bytes", "Bytes"]))
def test_range(start: int, length: int, rest: int, unit: str) -> None:
    """A range that was written is read again."""
    whole = (start, start + length, start + length + 1 + rest)
    assert parse_content_range(f"{unit} {whole[0]}-{whole[1]}/{whole[2]}") == whole


@given(st.text() | st.text("bytes 0123456789-/*"))
def test_whatever_range(value: str) -> None:
    """No header raises, and a range that is taken lies within its total."""
    content_range = parse_content_range(value)
    assert content_range is None or 0 <= content_range[0] <= content_range[1] < content_range[2]
