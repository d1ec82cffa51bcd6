"""Promises of the error vocabulary."""

import copy
import datetime as dt

import pytest

from imagejobd.model import errors
from imagejobd.model.errors import (
    RETRY_AFTER_MAX_S,
    ClaimLost,
    ErrorCode,
    Fault,
    NotFound,
    Permanent,
    StoreFailed,
    Temporary,
    invalid,
    parse_retry_after,
)
from imagejobd.model.job import JobError

NOW = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)


def test_codes_are_what_is_stored():
    """Codes are stored with jobs and are part of every API, so none is ever renamed or dropped."""
    stored = (
        "invalid unauthenticated denied not_found conflict too_large policy egress queue_full draining storage_full "
        "fetch_failed build_failed push_failed copy_failed engine_unavailable registry_unavailable timeout "
        "quarantined secrets_lost internal"
    )
    assert set(stored.split()) <= {code.value for code in ErrorCode}
    assert all(code.name.lower() == code.value for code in ErrorCode)


def test_retry_is_a_type():
    """Whether work is tried again is told by the class, and the two never mix."""
    temporary = Temporary(ErrorCode.FETCH_FAILED, "later", retry_after_s=3.0)
    assert temporary.retry_after_s == 3.0
    assert Temporary(ErrorCode.TIMEOUT, "later").retry_after_s is None
    assert not isinstance(temporary, Permanent)
    assert not issubclass(Permanent, Temporary)
    assert isinstance(ClaimLost(), Permanent)
    assert (NotFound("no such image").code, isinstance(NotFound(""), Permanent)) == (ErrorCode.NOT_FOUND, True)


def test_faults_show_code_and_message():
    """`str` is the message for people, `repr` has the code too, and a job keeps both."""
    fault = invalid("field x is missing")
    assert (str(fault), fault.code) == ("field x is missing", ErrorCode.INVALID)
    assert repr(fault) == "Permanent('invalid', 'field x is missing')"
    assert JobError.of(fault) == JobError(ErrorCode.INVALID, "field x is missing")


@pytest.mark.parametrize(
    "kind", [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, Fault)]
)
def test_the_tree_in_the_docstring_is_whole(kind: type[Fault]):
    """Every class of the vocabulary stands in the module's drawing."""
    assert kind.__name__ in (errors.__doc__ or "")


def test_a_copy_is_the_same_failure_without_its_traceback() -> None:
    """What is raised in several tasks is an object of each, with all that callers look at."""
    fault = Temporary(ErrorCode.STORAGE_FULL, "full", retry_after_s=3, peer="registry.example")
    fault.__cause__ = cause = OSError("no space")
    try:
        raise fault
    except Temporary:
        twin = copy.copy(fault)
    assert (type(twin), str(twin), twin.__dict__) == (Temporary, "full", fault.__dict__)
    assert (twin.__cause__, twin.__traceback__) == (cause, None)
    assert twin is not fault
    assert copy.copy(StoreFailed("gone")).reason == "gone"


@pytest.mark.parametrize(
    "fault",
    [
        NotFound("no such image"),
        ClaimLost(),
        Temporary(ErrorCode.TIMEOUT, "no answer", retry_after_s=3.0, peer="registry:5000"),
    ],
    ids=["not-found", "claim-lost", "temporary"],
)
def test_other_words_keep_the_fault(fault: Fault) -> None:
    """What catches a type, a code, a peer or a pause finds it still there; the first fault keeps its own words."""
    before = str(fault)
    other = fault.with_message(f"app: {before}")
    assert (type(other), str(other), other.message) == (type(fault), f"app: {before}", f"app: {before}")
    assert {**vars(other), "message": ""} == {**vars(fault), "message": ""}
    assert str(fault) == before


@pytest.mark.parametrize(
    ("value", "expected_s"),
    [
        (None, None),
        ("7", 7.0),
        (" 0 ", 0.0),
        ("Fri, 02 Jan 2026 03:05:05 GMT", 60.0),
        ("Fri, 02 Jan 2026 03:05:05 +0200", 0.0),
        ("Fri, 02 Jan 2026 03:03:05 GMT", 0.0),
        ("999999999999999999999", RETRY_AFTER_MAX_S),
        ("Fri, 02 Jan 2099 03:03:05 GMT", RETRY_AFTER_MAX_S),
        ("soon", None),
        ("-1", None),
        ("٧", None),
        ("", None),
    ],
)
def test_retry_after(value: str | None, expected_s: float | None) -> None:
    """Seconds or a date, never negative, never for ever."""
    assert parse_retry_after(value, NOW) == expected_s
