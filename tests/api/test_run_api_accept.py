"""Which form a client gets by its Accept header."""

import pytest

from imagejobd.api.wire import ACCEPT_MAX_CHARS, prefers_json


@pytest.mark.parametrize(
    "accept",
    [
        "application/json",
        "Application/JSON",
        "application/json; charset=utf-8",
        "application/json, text/plain;q=0.9",
        "text/plain;q=0.5,application/json",
        "application/json, */*",
        "application/json, */*;q=0.8",
        "application/*, */*;q=0.1",
        "text/*, application/json",
        "application/json;q=0.2, text/html",
        "text/plain;q=0, */*",
    ],
)
def test_json(accept: str) -> None:
    """JSON for those who want it more than text."""
    assert prefers_json(accept)


@pytest.mark.parametrize(
    "accept",
    [
        "",
        "*/*",
        "text/plain",
        "text/html",
        "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
        "application/json, text/plain, */*",
        "application/json;q=0.5, text/plain",
        "application/json;q=0.5, */*",
        "application/json;q=0",
        "application/json;q=none",
        "application/json;q=-1",
        "application/json;q=nan",
        "application/jsonp",
        "application/problem+json",
        "application/json/x",
        ",;,;q=;==",
        "*",
    ],
)
def test_text(accept: str) -> None:
    """Text for everybody else."""
    assert not prefers_json(accept)


def test_long_headers_are_not_read_to_their_end() -> None:
    """What follows thousands of characters counts for nothing."""
    others = "text/html," * (ACCEPT_MAX_CHARS // 10)
    assert prefers_json("application/json," + others * 100)
    assert not prefers_json(others + "text/html, application/json")
