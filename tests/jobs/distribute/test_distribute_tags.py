"""Which tags of a repository a filter means."""

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagejobd.jobs.distribute.fields import FieldFault
from imagejobd.jobs.distribute.tags import RANGE_MAX_CHARS, TagFilter, check_filter, select

TAGS = ["latest", "1.0.0", "v1.2.0", "1.10.0", "1.2.1-rc.1", "2.0.0-beta", "2.0", "nightly-9", "nightly-10", "01.0.0"]


@pytest.mark.parametrize(
    ("tag_filter", "expected"),
    [
        (TagFilter(regex=".*"), TAGS),
        (TagFilter(regex="nightly-\\d+"), ["nightly-9", "nightly-10"]),
        (TagFilter(regex="1.0"), []),
        (TagFilter(regex="1|latest"), ["latest"]),
        (TagFilter(semver="*"), ["1.0.0", "v1.2.0", "1.10.0", "2.0"]),
        (TagFilter(semver="^1.1"), ["v1.2.0", "1.10.0"]),
        (TagFilter(semver=">=1.0.0 <1.3 || 2.x"), ["1.0.0", "v1.2.0", "2.0"]),
        (TagFilter(semver=">=1.2.1-rc.0 <2"), ["1.10.0", "1.2.1-rc.1"]),
        (TagFilter(semver=">=2.0.0-alpha"), ["2.0.0-beta", "2.0"]),
        (TagFilter(regex="v.*", semver="1.x"), ["v1.2.0"]),
        (TagFilter(semver="1.x", newest=2), ["1.10.0", "v1.2.0"]),
        (TagFilter(newest=7), ["2.0", "2.0.0-beta", "1.10.0", "1.2.1-rc.1", "v1.2.0", "1.0.0", "nightly-10"]),
        (TagFilter(regex="nightly-.*", newest=1), ["nightly-10"]),
    ],
    ids=str,
)
def test_select(tag_filter: TagFilter, expected: list[str]) -> None:
    """Patterns match whole tags; ranges are npm's; versions come before what is none, and 10 after 9."""
    assert select(TAGS, tag_filter) == expected


def test_pre_releases_need_to_be_named() -> None:
    """A range without a pre-release of the same three numbers lets none through."""
    assert select(["2.0.0-rc.1", "2.1.0-rc.1", "2.0.0"], TagFilter(semver=">=1")) == ["2.0.0"]
    assert select(["2.0.0-rc.1", "2.1.0-rc.1"], TagFilter(semver=">=2.0.0-rc.0")) == ["2.0.0-rc.1"]


def test_a_pattern_that_backtracks_elsewhere_is_quick() -> None:
    """Time is linear: what takes Python's own engine for ever takes no time here."""
    started = time.thread_time()
    assert select(["a" * 128], TagFilter(regex="(a|aa)+(a|aa)+$b")) == []
    assert time.thread_time() - started < 1.0


VERSIONS = st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(0, 20)).map(lambda v: "{}.{}.{}".format(*v))
ANY_TAG = VERSIONS | VERSIONS.map("v{}".format) | st.from_regex(r"\w[\w.-]{0,20}", fullmatch=True).filter(str.isascii)


@given(st.lists(ANY_TAG, max_size=30), st.integers(1, 40), st.randoms())
def test_newest_does_not_depend_on_the_registrys_order(tags: list[str], newest: int, rng: random.Random) -> None:
    """The newest N are N of the tags, each once, and the same in whatever order they are listed."""
    chosen = select(tags, TagFilter(newest=newest))
    assert len(chosen) == min(newest, len(set(tags)))
    assert set(chosen) <= set(tags)
    rng.shuffle(tags)
    assert select(tags, TagFilter(newest=newest)) == chosen
    assert select(tags, TagFilter(newest=newest + 1))[:newest] == chosen


@given(st.lists(VERSIONS, unique=True, max_size=30))
def test_versions_are_ordered_by_their_numbers(versions: list[str]) -> None:
    """Of plain versions the newest are those with the highest numbers."""
    chosen = select(versions, TagFilter(newest=100))
    assert chosen == sorted(versions, key=lambda version: [int(part) for part in version.split(".")], reverse=True)


@given(st.text(max_size=RANGE_MAX_CHARS + 10), st.lists(ANY_TAG, max_size=5))
def test_any_range_is_refused_or_works(text: str, tags: list[str]) -> None:
    """What is taken as a range at submission never fails later."""
    tag_filter = TagFilter(semver=text)
    try:
        check_filter(tag_filter, "source.tags", newest_max=10)
    except FieldFault:
        return
    assert set(select(tags, tag_filter)) <= set(tags)


@given(st.text(alphabet="ab.*+?()[]{}|^$\\dwpN<>=!:-,1", max_size=30), st.lists(ANY_TAG, max_size=5))
def test_any_pattern_is_refused_or_works(text: str, tags: list[str]) -> None:
    """What is taken as a pattern at submission never fails later."""
    tag_filter = TagFilter(regex=text)
    try:
        check_filter(tag_filter, "source.tags", newest_max=10)
    except FieldFault:
        return
    assert set(select(tags, tag_filter)) <= set(tags)
