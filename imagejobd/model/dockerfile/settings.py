"""The operator's `[policy]` and its validation: a glob that can match nothing is a mistake, and told at start."""

import msgspec

from imagejobd.model.dockerfile.allow import WILDCARDS, AllowList
from imagejobd.model.dockerfile.flags import FLAGS
from imagejobd.model.dockerfile.instruction import NAMES
from imagejobd.model.dockerfile.mounts import TYPES
from imagejobd.model.errors import invalid

GLOB_MAX_CHARS = 512


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


def check(settings: PolicySettings) -> None:
    """Raise `Permanent(invalid)` for a glob that cannot be meant, naming its key."""
    for key in ("instructions", "images", "flags", "mounts", "frontends", "add_urls", "build_args"):
        for glob in getattr(settings, key):
            if reason := _mistake(key, glob.removeprefix("!")):
                raise invalid(f"policy.{key}: {glob[:128]!r} {reason}")


def with_value(glob: str) -> str:
    """A glob of a flag without a value, which stands for each of its values: `RUN --mount` is `RUN --mount=*`."""
    return glob if "=" in glob or glob.endswith("*") else f"{glob}=*"


def _mistake(key: str, glob: str) -> str:
    if not glob or glob.startswith("!"):
        return "names nothing"
    if glob != glob.strip() or len(glob) > GLOB_MAX_CHARS:
        return f"has spaces around it, or more than {GLOB_MAX_CHARS} characters"
    matches = AllowList([glob]).allows
    match key:
        case "instructions" if not any(map(matches, NAMES)):
            return f"is no instruction; there are {', '.join(sorted(NAMES))}"
        case "mounts" if not any(map(matches, TYPES)):
            return f"is no type of mount; there are {', '.join(sorted(TYPES))}"
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
