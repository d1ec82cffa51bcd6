"""The `Link` header as registries write it, and as nobody should."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagejobd.registry.repository import next_link, page_target

TAGS = "/v2/team/app/tags/list?n=1000"


@pytest.mark.parametrize(
    ("values", "reference"),
    [
        (['</v2/team/app/tags/list?last=b&n=2>; rel="next"'], "/v2/team/app/tags/list?last=b&n=2"),
        (["</x?a=1>;rel=next"], "/x?a=1"),
        (['</x?a=1> ; REL = "Next"'], "/x?a=1"),
        (['</x?a=1>; title="a, b; c"; rel="last next"; n=1'], "/x?a=1"),
        (['</a>; rel="first", </b>; rel=prev,</c>; rel="next", </d>; rel=next'], "/c"),
        (['</a>; rel="first"', '</b,c>; rel="next"'], "/b,c"),
        (['</a>; title="\\"; rel=next"; rel=first'], None),
        (['</a>; rel="nextish"'], None),
        (["</a>"], None),
        (["</a; rel=next"], None),
        (["rel=next", "", "<", ">", "<>;;;=", "\x00"], None),
        ([], None),
    ],
)
def test_next_link(values: list[str], reference: str | None) -> None:
    """The first link with the relation `next`, quoted or not, among several links and headers; else none."""
    assert next_link(values) == reference


@pytest.mark.parametrize(
    ("reference", "page"),
    [
        ("/v2/team/app/tags/list?last=b&n=2", "/v2/team/app/tags/list?last=b&n=2"),
        ("?last=b%2Fc", "/v2/team/app/tags/list?last=b%2Fc"),
        ("list?last=b", "/v2/team/app/tags/list?last=b"),
        ("http://inner:5000/v2/team/app/tags/list?last=b", "/v2/team/app/tags/list?last=b"),
        ("/v2/team/other/tags/list?last=b", None),
        ("https://evil.example/steal?last=b", None),
        ("//evil.example/?last=b", None),
        ("/v2/team/app/tags/list", None),
        ("/v2/team/app/tags/../../secret/list?a=b", None),
        ("ftp://h/v2/team/app/tags/list?a=b", None),
        ("http://[::1/v2/team/app/tags/list?a=b", None),
        ("?last=a b", None),
        ("?last=a\r\nX: 1", None),
        ("", TAGS),
    ],
)
def test_page_target(reference: str, page: str | None) -> None:
    """A page is the same list with another query, always at the registry that was asked; anything else is none."""
    assert page_target(reference, TAGS) == page


TOKEN = st.text("abcdefghijklmnopqrstuvwxyzABC0123456789-", min_size=1)
QUERY = st.dictionaries(TOKEN, TOKEN, min_size=1).map(lambda pairs: "&".join(f"{k}={v}" for k, v in pairs.items()))


@given(
    query=QUERY, others=st.lists(st.tuples(TOKEN, st.sampled_from(["prev", "first", "x-next"]))), quoted=st.booleans()
)
def test_round_trip(query: str, others: list[tuple[str, str]], quoted: bool) -> None:
    """A next page that was written is found again, wherever it stands."""
    links = [f"</{target}>; rel={rel}" for target, rel in others]
    links.append(f'<?{query}>; rel={chr(34) * quoted}next{chr(34) * quoted}; title="a,b"')
    reference = next_link([", ".join(links)])
    assert reference == f"?{query}"
    assert page_target(reference, TAGS) == f"/v2/team/app/tags/list?{query}"


@given(values=st.lists(st.text() | st.text('<>;,="\\ relnxt/?a')), target=st.text())
def test_whatever_the_peer_makes_of_it(values: list[str], target: str) -> None:
    """No header and no reference raises, and a page never leaves the list."""
    next_link(values)
    page = page_target(target, TAGS)
    assert page is None or page.startswith("/v2/team/app/tags/list?")


@pytest.mark.parametrize(
    "value", ["<>;a" + " " * 8_000, "<" * 8_000, "<>;" * 3_000, '<>;a="' + "\\" * 8_000, "<a" * 4_000]
)
def test_costly_header(value: str) -> None:
    """A header made to be read slowly is read quickly."""
    before = time.process_time()
    next_link([value])
    assert time.process_time() - before < 5
