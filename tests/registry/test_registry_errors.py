"""What registries answer becomes the one error vocabulary."""

import msgspec
import pytest

from imagejobd.model.errors import ErrorCode, NotFound, Permanent, Temporary
from imagejobd.model.secrets import Redactor, Secret
from imagejobd.registry.errors import DETAIL_MAX_CHARS, detail, is_busy, is_missing_content, refusal, translated


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (400, Permanent, ErrorCode.REGISTRY_UNAVAILABLE),
        (401, Permanent, ErrorCode.DENIED),
        (403, Permanent, ErrorCode.DENIED),
        (404, NotFound, ErrorCode.NOT_FOUND),
        (408, Temporary, ErrorCode.REGISTRY_UNAVAILABLE),
        (429, Temporary, ErrorCode.REGISTRY_UNAVAILABLE),
        (500, Temporary, ErrorCode.REGISTRY_UNAVAILABLE),
        (503, Temporary, ErrorCode.REGISTRY_UNAVAILABLE),
    ],
)
def test_statuses(status: int, kind: type, code: ErrorCode) -> None:
    """Denied is for good; overload and breakage are not."""
    fault = refusal("r.example", status, what="manifest of app:1")
    assert type(fault) is kind
    assert fault.code is code
    assert "r.example" in fault.message
    assert str(status) in fault.message


def test_detail_is_one_bounded_line() -> None:
    """The peer's own words are shown in part, and only in the spec's form."""
    assert detail(b'{"errors":[{"code":"DENIED","message":"no\\naccess","detail":{}}]}') == "DENIED: no access"
    assert len(detail(b'{"errors":[{"code":"' + b"x" * 1000 + b'"}]}')) == DETAIL_MAX_CHARS
    assert detail(b"<html>") == ""
    assert detail(b"\xff") == ""
    assert detail(b'{"errors":"no"}') == ""


@pytest.mark.parametrize("lead", range(DETAIL_MAX_CHARS - 20, DETAIL_MAX_CHARS + 1))
def test_detail_is_redacted_and_then_cut(lead: int) -> None:
    """A secret that the cut goes through is no secret that can be recognised."""
    word = "correct-horse-battery"
    body = msgspec.json.encode({"errors": [{"code": "X", "message": "y" * lead + word}]})
    assert "corr" not in detail(body, Redactor([Secret(word)]))


def test_what_the_codecs_refuse_is_a_fault() -> None:
    """A name or header that cannot be encoded is the peer's, and shows nothing of itself."""
    with pytest.raises(Permanent, match="cannot be asked for") as refused, translated("r.example"):
        "a..hidden".encode("idna")
    assert "hidden" not in refused.value.message


def test_detail_steers_no_terminal() -> None:
    """What cannot be printed is replaced, also what turns the direction of writing."""
    told = detail(b'{"errors":[{"code":"\\u001b[31m","message":"a\\u0000b\\u202ec"}]}')
    assert told.isprintable()
    assert "a" in told


@pytest.mark.parametrize(
    ("status", "expected"),
    [(200, False), (404, False), (408, True), (425, True), (429, True), (500, True), (501, False), (503, True)],
)
def test_what_a_moment_may_change(status: int, expected: bool) -> None:
    """Overload and breakage pass; what a server cannot do it cannot do a moment later."""
    assert is_busy(status) is expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"errors":[{"code":"UNKNOWN"},{"code":"MANIFEST_BLOB_UNKNOWN"}]}', True),
        (b'{"errors":[{"code":"BLOB_UNKNOWN","message":null,"detail":[]}]}', True),
        (b'{"errors":[{"code":"UNKNOWN","message":"BLOB_UNKNOWN"}]}', False),
        (b"BLOB_UNKNOWN", False),
        (b"[" * 100_000, False),
    ],
)
def test_missing_content_is_told_by_its_code(body: bytes, expected: bool) -> None:
    """Only the spec's error codes say that content is missing."""
    assert is_missing_content(body) is expected
