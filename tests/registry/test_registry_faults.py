"""What registries answer becomes the one error vocabulary."""

import pytest

from imagejobd.model.errors import ErrorCode, Permanent, Temporary
from imagejobd.registry.faults import DETAIL_MAX_CHARS, detail, refusal


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (400, Permanent, ErrorCode.REGISTRY_UNAVAILABLE),
        (401, Permanent, ErrorCode.DENIED),
        (403, Permanent, ErrorCode.DENIED),
        (404, Permanent, ErrorCode.NOT_FOUND),
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
