"""Challenges are read as RFC 9110 writes them and as registries do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagejobd.registry.auth import HEADER_MAX_CHARS, Challenge, parse_challenges

HUB = 'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull"'
NAMES = st.text("abcdefghijklmnopqrstuvwxyz_-", min_size=1, max_size=12)
VALUES = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=30)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (
            [HUB],
            [
                Challenge(
                    "bearer",
                    {
                        "realm": "https://auth.docker.io/token",
                        "service": "registry.docker.io",
                        "scope": "repository:a/b:pull",
                    },
                )
            ],
        ),
        (['Basic realm="x"'], [Challenge("basic", {"realm": "x"})]),
        (["BASIC Realm=x"], [Challenge("basic", {"realm": "x"})]),
        (
            ['Bearer realm="a,b" , service = s, Basic realm="c"'],
            [Challenge("bearer", {"realm": "a,b", "service": "s"}), Challenge("basic", {"realm": "c"})],
        ),
        (["Negotiate", "Basic realm=x"], [Challenge("negotiate", {}), Challenge("basic", {"realm": "x"})]),
        (["Negotiate a87421000492aa==, Basic"], [Challenge("negotiate", {}), Challenge("basic", {})]),
        ([r'Basic realm="a \"quoted\" \\ name"'], [Challenge("basic", {"realm": r'a "quoted" \ name'})]),
        (['Bearer realm="first",realm="second"'], [Challenge("bearer", {"realm": "first"})]),
        (['Basic realm="no end'], [Challenge("basic", {})]),
        (["realm=x"], []),
        ([""], []),
        ([], []),
    ],
)
def test_known_forms(headers: list[str], expected: list[Challenge]) -> None:
    """Quotes, several challenges in one or many headers, token68, and broken ones."""
    assert parse_challenges(headers) == expected


@given(st.lists(st.tuples(NAMES, st.dictionaries(NAMES, VALUES, min_size=1, max_size=4)), min_size=1, max_size=4))
def test_reads_back_what_a_correct_server_writes(written: list[tuple[str, dict[str, str]]]) -> None:
    """Whatever stands between quotes arrives as it was, in any number of challenges."""

    def quoted(value: str) -> str:
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'

    header = ", ".join(
        f"{scheme} " + ", ".join(f"{name}={quoted(value)}" for name, value in parameters.items())
        for scheme, parameters in written
    )
    assert parse_challenges([header]) == [Challenge(scheme, parameters) for scheme, parameters in written]


@given(st.lists(st.text(st.sampled_from('aB="\\, \t/+;é'), max_size=200), max_size=3))
def test_never_raises(headers: list[str]) -> None:
    """Anything may stand in the header."""
    parse_challenges(headers)


@pytest.mark.parametrize("noise", ['"', "a=", "a ", ",", 'a="', "a=b ", '\\"'])
def test_hostile_headers_cost_little(noise: str) -> None:
    """A header is read up to a bound, so that a hostile one is no work."""
    assert len(parse_challenges([noise * HEADER_MAX_CHARS * 4])) <= HEADER_MAX_CHARS


def test_bytes_that_are_no_text_can_be_sent_on() -> None:
    """What the HTTP library could not decode is Latin-1, which a token server can be asked with."""
    header = b'Bearer realm="https://t.example/",service="\xff\x80"'.decode(errors="surrogateescape")
    (challenge,) = parse_challenges([header])
    assert challenge.parameters["service"] == "\xff\x80"
    assert parse_challenges(['Basic realm="\u00e9"'])[0].parameters["realm"] == "\u00e9"
