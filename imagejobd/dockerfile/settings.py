"""The operator's `[policy]`: lists of globs, of which the last one that matches decides.

`*` stands for any run of characters, `?` for any one; `!` in front forbids. What no glob matches is forbidden. A glob
that can match nothing is a mistake, and reported at start.
"""

import re
from collections.abc import Iterable
from fnmatch import translate
from itertools import takewhile

import msgspec

from imagejobd.dockerfile.parser import FLAGS, MOUNT_TYPES, NAMES
from imagejobd.model.errors import invalid

GLOB_MAX_CHARS = 512
WILDCARDS = "*?"


class PolicySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[policy]`.

    `instructions`: names of instructions. `images`: bases as `host/path:tag` or, where a digest is given, which then
    decides alone, `host/path@sha256:…`; the Hub's as `docker.io/library/debian:12`. `require_digest`: bases must name a
    digest. `flags`: flags with their instruction, such as `RUN --mount=*`. `mounts`: types of `RUN --mount`.
    `frontends`: images that `# syntax=` may name, written like `images`. `add_urls`: remote sources of ADD.
    `build_args`: names that a request may set.
    """

    instructions: tuple[str, ...] = ("*",)
    images: tuple[str, ...] = ("*",)
    require_digest: bool = False
    flags: tuple[str, ...] = ("*", "!RUN --security=*", "!RUN --network=host")
    mounts: tuple[str, ...] = ("*",)
    frontends: tuple[str, ...] = ()
    add_urls: tuple[str, ...] = ("*",)
    build_args: tuple[str, ...] = ("*",)


class AllowList:
    """One list. `allows_all`: nothing at all is forbidden."""

    def __init__(self, globs: Iterable[str]) -> None:
        self._globs = [_Glob(text) for text in reversed(tuple(globs))]
        self.allows_all = any(one.text == "*" for one in takewhile(lambda one: one.is_allowing, self._globs))

    def allows(self, text: str) -> bool:
        """Whether the last glob that matches `text` allows it."""
        return self.allows_all or next((one.is_allowing for one in self._globs if one.matches(text)), False)

    def allows_whatever_follows(self, prefix: str) -> bool:
        """Whether every text that begins with `prefix` is allowed; for what only a build can know the end of."""
        if self.allows_all:
            return True
        for one in self._globs:
            if one.covers(prefix):
                return one.is_allowing
            if not one.is_allowing and one.may_match(prefix):
                return False
        return False


def check(settings: PolicySettings) -> None:
    """Raise `Permanent(invalid)` for a glob that cannot be meant, naming its key."""
    for key in ("instructions", "images", "flags", "mounts", "frontends", "add_urls", "build_args"):
        for glob in getattr(settings, key):
            if reason := _mistake(key, glob.removeprefix("!")):
                raise invalid(f"policy.{key}: {glob[:128]!r} {reason}")


def with_value(glob: str) -> str:
    """A glob of a flag without a value, which stands for each of its values: `RUN --mount` is `RUN --mount=*`."""
    return glob if "=" in glob or glob.endswith("*") else f"{glob}=*"


class _Glob:
    def __init__(self, text: str) -> None:
        self.is_allowing = not text.startswith("!")
        self.text = text.removeprefix("!")
        self._head = "".join(takewhile(lambda char: char not in WILDCARDS, self.text))
        # Python's groups of a translated glob are atomic, so that no text makes the match go back again and again.
        self._match = re.compile(translate(self.text.replace("[", "[[]"))).match

    def matches(self, text: str) -> bool:
        return self._match(text) is not None

    def covers(self, prefix: str) -> bool:
        """Whether whatever begins with `prefix` matches."""
        return self.text.endswith("*") and self.matches(prefix)

    def may_match(self, prefix: str) -> bool:
        """Whether something that begins with `prefix` could match; true where that is hard to say."""
        return prefix.startswith(self._head) or self._head.startswith(prefix)


def _mistake(key: str, glob: str) -> str:
    if not glob or glob.startswith("!"):
        return "names nothing"
    if glob != glob.strip() or len(glob) > GLOB_MAX_CHARS:
        return f"has spaces around it, or more than {GLOB_MAX_CHARS} characters"
    matches = AllowList([glob]).allows
    match key:
        case "instructions" if not any(map(matches, NAMES)):
            return f"is no instruction; there are {', '.join(sorted(NAMES))}"
        case "mounts" if not any(map(matches, MOUNT_TYPES)):
            return f"is no type of mount; there are {', '.join(sorted(MOUNT_TYPES))}"
        case "flags" if not _is_of_flags(glob):
            return "is no flag of an instruction; write it like 'COPY --from=*'"
        case "images" | "frontends" if not _has_host(glob):
            return "has no registry host in front; write it like 'docker.io/library/debian:12'"
    return ""


def _is_of_flags(glob: str) -> bool:
    head, equals, _ = with_value(glob).partition("=")
    matches = AllowList([head + equals]).allows
    return any(matches(f"{name} --{flag}=") for name, flags in FLAGS.items() for flag in flags)


def _has_host(glob: str) -> bool:
    host, slash, _ = glob.partition("/")
    if not slash:
        return host[0] in WILDCARDS
    return host == "localhost" or any(char in host for char in ".:" + WILDCARDS)
