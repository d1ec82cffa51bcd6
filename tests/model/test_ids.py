"""Promises of identifiers: UUIDs of version 7 that sort by time."""

import time
import uuid

import pytest

from imagejobd.model.job import is_uuid, uuid7


def test_uuid7_has_version_variant_and_time():
    """RFC 9562 §5.7: 48 bits of milliseconds, version 7, variant 10."""
    value = uuid.UUID(uuid7(1_700_000_000_123))
    assert (value.version, value.variant) == (7, uuid.RFC_4122)
    assert value.int >> 80 == 1_700_000_000_123


def test_uuid7_is_now_by_default_and_never_twice():
    """Without a time it is the present one, and thousands in one millisecond differ."""
    made = {uuid7() for _ in range(5000)}
    assert len(made) == 5000
    assert abs((uuid.UUID(uuid7()).int >> 80) - time.time() * 1000) < 5000


def test_uuid7_sorts_by_creation():
    """A later millisecond sorts after an earlier one, as text too."""
    made = [uuid7(1_700_000_000_000 + ms) for ms in range(100)]
    assert made == sorted(made)


def test_uuid7_of_times_that_do_not_fit():
    """A clock beyond 48 bits of milliseconds wraps and still makes a UUID."""
    assert is_uuid(uuid7((1 << 48) + 5))


@pytest.mark.parametrize("text", ["018c0000-0000-7000-8000-000000000000", "018C0000-0000-7000-8000-00000000ABCD"])
def test_canonical_uuids_are_recognised(text):
    """The hyphenated form counts in either case."""
    assert is_uuid(text)


@pytest.mark.parametrize(
    "text", ["", "status", "018c0000000070008000000000000000", "{018c0000-0000-7000-8000-000000000000}", "1"]
)
def test_other_forms_are_not_uuids(text):
    """What Python would also read as a UUID is not one in a URL."""
    assert not is_uuid(text)
