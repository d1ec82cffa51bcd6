"""Stages of a Dockerfile: each FROM, expanded, with the instructions that follow it.

FROM sees the ARGs before the first FROM and nothing else; a build arg overrides only what such an ARG declares.
"""

import re
from collections.abc import Mapping, Sequence

import msgspec

from imagejobd.model.dockerfile.instruction import Dockerfile, Instruction
from imagejobd.model.dockerfile.source import at_line
from imagejobd.model.dockerfile.words import SEPARATORS, SPACES, BadWord, expand

STAGES_MAX = 256
GLOBAL_ARGS_MAX = 256
PLATFORM_MAX_CHARS = 128

_STAGE_NAME = re.compile(r"[a-z][a-z0-9_.-]*")
_SEPARATOR_RUN = re.compile(f"[{SEPARATORS}]+")


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """One FROM and what follows it, with `image` and `platform` expanded.

    `name` is lower case, "" for none; `base` is the index of the earlier stage that `image` names, None for an image.
    """

    index: int
    name: str
    image: str
    platform: str | None
    line: int
    base: int | None
    instructions: tuple[Instruction, ...]


def platform_args(target: str, build: str) -> dict[str, str]:
    """The automatic ARGs (`TARGETPLATFORM`, `TARGETOS`, … `BUILDVARIANT`) for platforms such as `linux/arm/v7`."""
    args: dict[str, str] = {}
    for side, platform in (("TARGET", target), ("BUILD", build)):
        os, _, rest = platform.partition("/")
        arch, _, variant = rest.partition("/")
        args |= {f"{side}PLATFORM": platform, f"{side}OS": os, f"{side}ARCH": arch, f"{side}VARIANT": variant}
    return args


def stages(
    dockerfile: Dockerfile, build_args: Mapping[str, str], automatic_args: Mapping[str, str]
) -> tuple[Stage, ...]:
    """The stages in order. `automatic_args` are those of `platform_args`. Raises `Permanent(invalid)` with the line."""
    starts = [at for at, one in enumerate(dockerfile.instructions) if one.name == "FROM"]
    if len(starts) > STAGES_MAX:
        raise at_line(dockerfile.instructions[starts[-1]].first_line, f"there are more than {STAGES_MAX} stages")
    variables = _global_args(dockerfile, starts[0], build_args, automatic_args)
    found: list[Stage] = []
    for start, end in zip(starts, [*starts[1:], None], strict=True):
        body = dockerfile.instructions[start + 1 : end]
        found.append(_stage(dockerfile.instructions[start], body, found, variables, dockerfile.escape))
    return tuple(found)


def _global_args(
    dockerfile: Dockerfile, end: int, build_args: Mapping[str, str], automatic_args: Mapping[str, str]
) -> dict[str, str]:
    """The ARGs before the first FROM, each expanded by those before it."""
    variables = {name: build_args.get(name, value) for name, value in automatic_args.items()}
    count_max = len(variables) + GLOBAL_ARGS_MAX
    for instruction in dockerfile.instructions[:end]:
        for word in _words(instruction.arguments, dockerfile.escape):
            name, equals, default = word.partition("=")
            if not name:
                raise at_line(instruction.first_line, "ARG needs a name before '='")
            if name in build_args:
                variables[name] = build_args[name]
            elif equals:
                variables[name] = _expand(instruction, default, variables, dockerfile.escape)
            if len(variables) > count_max:
                raise at_line(instruction.first_line, f"there are more than {GLOBAL_ARGS_MAX} ARGs before FROM")
    return variables


def _words(text: str, escape: str) -> list[str]:
    """Split at spaces outside quotes, keeping quotes and escapes (BuildKit's `parseWords`)."""
    e = re.escape(escape)
    word = rf"(?:'[^']*'?|\"(?:{e}.|[^\"{e}])*\"?|{e}.|[^{SPACES}'\"{e}])+"
    return re.findall(word, text, re.DOTALL)


def _stage(
    start: Instruction, body: Sequence[Instruction], earlier: Sequence[Stage], variables: dict[str, str], escape: str
) -> Stage:
    words = _SEPARATOR_RUN.split(start.arguments)
    if len(words) != 1 and not (len(words) == 3 and words[1].lower() == "as"):
        raise at_line(start.first_line, "FROM takes an image, or an image, AS and a stage name")
    name = words[2].lower() if len(words) == 3 else ""
    if name and not _STAGE_NAME.fullmatch(name):
        raise at_line(start.first_line, f"stage name {name[:64]!r} must begin with a letter; then letters, digits, -_.")
    image = _expand(start, words[0], variables, escape)
    if not image:
        hint = "give its ARG a default before the first FROM, or pass a build arg"
        raise at_line(start.first_line, f"FROM {words[0][:64]} is empty after expansion: {hint}")
    return Stage(
        index=len(earlier),
        name=name,
        image=image,
        platform=_platform(start, variables, escape),
        line=start.first_line,
        base=next((stage.index for stage in reversed(earlier) if stage.name and stage.name == image.lower()), None),
        instructions=tuple(body),
    )


def _platform(start: Instruction, variables: Mapping[str, str], escape: str) -> str | None:
    platform = next((_expand(start, value, variables, escape) for value in start.flag_values("platform")), "")
    if len(platform) > PLATFORM_MAX_CHARS:
        raise at_line(start.first_line, f"the platform is longer than {PLATFORM_MAX_CHARS} characters")
    return platform or None


def _expand(instruction: Instruction, word: str, variables: Mapping[str, str], escape: str) -> str:
    try:
        return expand(word, variables, escape)
    except BadWord as error:
        raise at_line(instruction.first_line, f"{instruction.name} {word[:64]}: {error}") from None
