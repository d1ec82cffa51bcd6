"""Which tags of a repository match a filter.

Patterns come from users, so they run on RE2, whose time is linear whatever the pattern; what it lacks for that
(look-around, back-references) is refused with the request.
"""

import functools
import re
from collections.abc import Iterable

import msgspec
import re2
from semantic_version import NpmSpec, Version

from imagejobd.jobs.distribute.fields import wrong

PATTERN_MAX_CHARS = 1_000
RANGE_MAX_CHARS = 200

_DIGITS = re.compile(r"([0-9]+)")
# Many images have no third number (postgres:15.4). One number alone may as well be a date or a build.
_TWO_NUMBERS = re.compile(r"[0-9]+\.[0-9]+", re.ASCII)


class TagFilter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which tags of a repository: those that match all that is said; then only the `newest` highest versions.

    `regex` is RE2 and has to match the whole tag. `semver` is a range in npm's words (`^1.2`, `>=1 <3`, `1.x || 2.x`);
    a tag is a version with or without a leading `v`, `1.2` counts as `1.2.0`, and a pre-release matches only if the
    range names one of the same three numbers. `newest` orders by semantic version; tags that are none come below, in
    natural order.
    """

    regex: str | None = None
    semver: str | None = None
    newest: int | None = None


def check_filter(tag_filter: TagFilter, path: str, *, newest_max: int) -> None:
    """Raises `FieldFault` for a pattern or range that cannot be understood, and for a filter that says nothing."""
    if tag_filter == TagFilter():
        raise wrong(path, "needs at least one of regex, semver, newest; regex '.*' means all tags")
    if tag_filter.regex is not None:
        _check_pattern(tag_filter.regex, f"{path}.regex")
    if tag_filter.semver is not None:
        _check_range(tag_filter.semver, f"{path}.semver")
    if tag_filter.newest is not None and not 1 <= tag_filter.newest <= newest_max:
        raise wrong(f"{path}.newest", f"must lie between 1 and {newest_max}")


def select(tags: Iterable[str], tag_filter: TagFilter) -> list[str]:
    """The tags that match `tag_filter`, which was checked, each once: in the order they came, with `newest` the highest
    first."""
    matches = list(dict.fromkeys(tags))
    if tag_filter.regex is not None:
        pattern = _compiled(tag_filter.regex)
        matches = [tag for tag in matches if pattern.fullmatch(tag)]
    if tag_filter.semver is not None:
        wanted = NpmSpec(tag_filter.semver)
        matches = [tag for tag in matches if (version := _version(tag)) is not None and wanted.match(version)]
    if tag_filter.newest is not None:
        matches = sorted(matches, key=_age_key, reverse=True)[: tag_filter.newest]
    return matches


def _check_pattern(pattern: str, field: str) -> None:
    if len(pattern) > PATTERN_MAX_CHARS:
        raise wrong(field, f"is {len(pattern)} characters long; the limit is {PATTERN_MAX_CHARS}")
    try:
        _compiled(pattern)
    except (re2.error, UnicodeError) as error:
        reason = error.args[0].decode(errors="replace") if isinstance(error, re2.error) else "no Unicode"
        raise wrong(field, f"is no regular expression that RE2 knows: {reason}") from None


def _check_range(semver: str, field: str) -> None:
    if len(semver) > RANGE_MAX_CHARS:
        raise wrong(field, f"is {len(semver)} characters long; the limit is {RANGE_MAX_CHARS}")
    try:
        is_range = bool(semver.strip() and NpmSpec(semver))
    except ValueError:
        is_range = False
    if not is_range:
        raise wrong(field, "is no range of versions, such as ^1.2 or '>=1.0.0 <2.0.0 || 3.x'")


def _compiled(pattern: str) -> "re2._Regexp":
    options = re2.Options()
    options.log_errors = False  # it writes to stderr
    return re2.compile(pattern, options)


@functools.lru_cache(maxsize=4096)
def _version(tag: str) -> Version | None:
    text = tag.removeprefix("v")
    try:
        return Version(f"{text}.0" if _TWO_NUMBERS.fullmatch(text) else text)
    except ValueError:
        return None


def _age_key(tag: str) -> tuple[object, ...]:
    """Versions above what is none; the tag itself last, so that the order never depends on the registry's."""
    version = _version(tag)
    if version is not None:
        return (1, version.precedence_key, tag)
    parts = _DIGITS.split(tag)
    # Text and digits alternate, so that only like is compared with like.
    return (0, [int(part) if index % 2 else part for index, part in enumerate(parts)], tag)
