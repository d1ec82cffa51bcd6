"""Stages of a Dockerfile: each FROM, expanded, with the instructions that follow it.

FROM sees the ARGs before the first FROM and nothing else; a build arg overrides only what such an ARG declares.
"""

import re
from collections.abc import Mapping, Sequence

import msgspec

from imagejobd.model.dockerfile.grammar import separated
from imagejobd.model.dockerfile.instruction import Dockerfile, Instruction
from imagejobd.model.dockerfile.source import SyntaxFault
from imagejobd.model.dockerfile.steps import Steps
from imagejobd.model.dockerfile.words import BadWord, expand, split_words
from imagejobd.model.platform import normalize

STAGES_MAX = 256
GLOBAL_ARGS_MAX = 256

# The stage that is built where none is named, as BuildKit's `TARGETSTAGE` has it.
DEFAULT_TARGET = "default"

_PLATFORM = re.compile(r"[A-Za-z0-9._-]{1,32}(?:/[A-Za-z0-9._-]{1,32}){0,2}")
_STAGE_NAME = re.compile(r"[a-z][a-z0-9_.-]*")


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """One FROM and what follows it, with `image` and `platform` expanded, the latter in its one spelling.

    `name` is lower case, "" for none; `base` is the index of the earlier stage that `image` names, None for an image.
    """

    index: int
    name: str
    image: str
    platform: str | None
    line: int
    base: int | None
    instructions: tuple[Instruction, ...]


def automatic_args(target: str, build: str, stage: str = "") -> dict[str, str]:
    """The automatic ARGs (`TARGETPLATFORM`, `TARGETOS`, … `BUILDVARIANT`, `TARGETSTAGE`) for normalized platforms such
    as `linux/arm/v7`, and for the stage that is asked for."""
    args = {"TARGETSTAGE": stage or DEFAULT_TARGET, "TARGETOSVERSION": "", "BUILDOSVERSION": ""}
    for side, platform in (("TARGET", target), ("BUILD", build)):
        os, _, rest = platform.partition("/")
        arch, _, variant = rest.partition("/")
        args |= {f"{side}PLATFORM": platform, f"{side}OS": os, f"{side}ARCH": arch, f"{side}VARIANT": variant}
    return args


def stages(dockerfile: Dockerfile, build_args: Mapping[str, str], automatic: Mapping[str, str]) -> tuple[Stage, ...]:
    """The stages in order. `automatic` are the `automatic_args`. Raises `SyntaxFault`."""
    starts = [at for at, one in enumerate(dockerfile.instructions) if one.name == "FROM"]
    if len(starts) > STAGES_MAX:
        raise SyntaxFault(
            dockerfile.instructions[starts[-1]].first_line, f"FROM: there are more than {STAGES_MAX} stages"
        )
    scope = _Scope(dockerfile.escape, automatic.get("BUILDPLATFORM", ""))
    _declare(scope, dockerfile.instructions[: starts[0]], build_args, automatic)
    found: list[Stage] = []
    for start, end in zip(starts, [*starts[1:], None], strict=True):
        body = dockerfile.instructions[start + 1 : end]
        found.append(_stage(dockerfile.instructions[start], body, found, scope))
    return tuple(found)


class _Scope:
    """The variables that FROM sees, and what its words become; all of a Dockerfile share their steps."""

    def __init__(self, escape: str, host_platform: str) -> None:
        self.variables: dict[str, str] = {}
        self.escape = escape
        self.host_platform = host_platform
        self._steps = Steps()

    def expand(self, instruction: Instruction, word: str) -> str:
        try:
            return expand(word, self.variables, self.escape, self._steps)
        except BadWord as error:
            raise SyntaxFault(instruction.first_line, f"{instruction.name} {word[:64]}: {error}") from None


def _declare(
    scope: _Scope, heads: Sequence[Instruction], build_args: Mapping[str, str], automatic: Mapping[str, str]
) -> None:
    """Take in `heads`, the ARGs before the first FROM, each expanded by those before it."""
    scope.variables |= {name: build_args.get(name, value) for name, value in automatic.items()}
    words = [(one, word) for one in heads for word in split_words(one.arguments, scope.escape)]
    if len(words) > GLOBAL_ARGS_MAX:
        raise SyntaxFault(
            words[GLOBAL_ARGS_MAX][0].first_line, f"ARG: there are more than {GLOBAL_ARGS_MAX} ARGs before FROM"
        )
    for instruction, word in words:
        name, equals, default = word.partition("=")
        if not name:
            raise SyntaxFault(instruction.first_line, "ARG: it needs a name before '='")
        if name in build_args:
            scope.variables[name] = build_args[name]
        elif equals:
            scope.variables[name] = scope.expand(instruction, default)


def _stage(start: Instruction, body: Sequence[Instruction], earlier: Sequence[Stage], scope: _Scope) -> Stage:
    words = separated(start.arguments)
    if len(words) != 1 and not (len(words) == 3 and words[1].lower() == "as"):
        raise SyntaxFault(start.first_line, "FROM: it takes an image, or an image, AS and a stage name")
    name = words[2].lower() if len(words) == 3 else ""
    if name and not _STAGE_NAME.fullmatch(name):
        raise SyntaxFault(
            start.first_line, f"FROM: stage name {name[:64]!r} must begin with a letter; then letters, digits, -_."
        )
    if name and any(name == stage.name for stage in earlier):
        raise SyntaxFault(start.first_line, f"FROM: the stage name {name[:64]!r} is taken by an earlier stage")
    image = scope.expand(start, words[0])
    if not image:
        hint = "give its ARG a default before the first FROM, or pass a build arg"
        raise SyntaxFault(start.first_line, f"FROM {words[0][:64]} is empty after expansion: {hint}")
    return Stage(
        index=len(earlier),
        name=name,
        image=image,
        platform=_platform(start, scope),
        line=start.first_line,
        base=next((stage.index for stage in reversed(earlier) if stage.name and stage.name == image.lower()), None),
        instructions=tuple(body),
    )


def _platform(start: Instruction, scope: _Scope) -> str | None:
    platform = next((scope.expand(start, value) for value in start.flag_values("platform")), "")
    if platform and not _PLATFORM.fullmatch(platform):
        raise SyntaxFault(start.first_line, f"FROM: {platform[:64]!r} is not a platform, such as linux/amd64")
    return normalize(platform, scope.host_platform) if platform else None
