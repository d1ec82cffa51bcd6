"""Stages of a Dockerfile: each FROM, expanded, with the instructions that follow it, and the images it starts from.

FROM sees the ARGs before the first FROM and nothing else; a build arg overrides only what such an ARG declares.

A build without a client session cannot log in to a registry by itself, so every base is pulled beforehand: FROM after
ARG expansion, `COPY --from=` and `RUN --mount=from=`, less stages and `scratch`. Images that the ONBUILD triggers of
a base name cannot be seen here: the policy refuses them.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain

import msgspec

from imagejobd.dockerfile.expand import BadWord, Steps, expand, split_words
from imagejobd.dockerfile.parser import Dockerfile, Instruction, separated
from imagejobd.dockerfile.source import SyntaxFault
from imagejobd.model.errors import Permanent, invalid
from imagejobd.model.reference import ImageReference, normalize

STAGES_MAX = 256
GLOBAL_ARGS_MAX = 256
# Of all stages together. A trigger counts in each stage that begins from its own, so their number could be a million.
ORIGINS_MAX = 10_000

SCRATCH = "scratch"
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


class Base(msgspec.Struct, frozen=True):
    """An image that a build needs.

    `platform` is what FROM asks for, None for the build's own. `line` and `instruction` are its first use, as FROM if
    there is one: only those bring their ONBUILD triggers along.
    """

    reference: ImageReference
    platform: str | None
    line: int
    instruction: str

    @property
    def key(self) -> tuple[str, str | None]:
        return str(self.reference), self.platform


def automatic_args(target: str, build: str, stage: str = "") -> dict[str, str]:
    """The automatic ARGs (`TARGETPLATFORM`, `TARGETOS`, … `BUILDVARIANT`, `TARGETSTAGE`) for normalized platforms such
    as `linux/arm/v7`, and for the stage that is asked for."""
    args = {"TARGETSTAGE": stage or DEFAULT_TARGET, "TARGETOSVERSION": "", "BUILDOSVERSION": ""}
    for side, platform in (("TARGET", target), ("BUILD", build)):
        os, _, rest = platform.partition("/")
        arch, _, variant = rest.partition("/")
        args |= {f"{side}PLATFORM": platform, f"{side}OS": os, f"{side}ARCH": arch, f"{side}VARIANT": variant}
    return args


def stages(
    dockerfile: Dockerfile, build_args: Mapping[str, str], automatic: Mapping[str, str]
) -> tuple[tuple[Stage, ...], Mapping[str, str]]:
    """The stages in order, and the values of the ARGs before them, with the automatic ones. `automatic` are the
    `automatic_args`. Raises `SyntaxFault`."""
    starts = [at for at, one in enumerate(dockerfile.instructions) if one.name == "FROM"]
    if len(starts) > STAGES_MAX:
        line = dockerfile.instructions[starts[-1]].first_line
        raise SyntaxFault(line, f"FROM: there are more than {STAGES_MAX} stages")
    scope = _Scope(dockerfile.escape, automatic.get("BUILDPLATFORM", ""))
    scope.declare(dockerfile.instructions[: starts[0]], build_args, automatic)
    result: list[Stage] = []
    for start, end in zip(starts, [*starts[1:], None], strict=True):
        body = dockerfile.instructions[start + 1 : end]
        result.append(_stage(dockerfile.instructions[start], body, result, scope))
    return tuple(result), scope.variables


def base_key(image: str, platform: str | None) -> tuple[str, str | None]:
    """The `key` of the base that FROM or `from=` means by `image`."""
    return str(ImageReference.parse(image)), platform


def origins(instruction: Instruction) -> Iterator[str]:
    """The stages and images that `COPY --from=` and `RUN --mount=from=` name, as written. Raises `SyntaxFault`."""
    names: list[str] = []
    if instruction.name == "COPY":
        names = list(instruction.flag_values("from"))
    elif instruction.name == "RUN":
        names = [mount.origin for mount in instruction.mounts]
    for name in filter(None, names):
        if "$" in name:
            hint = f"name a stage with FROM {name[:64]} AS …, and use that name"
            raise _fault(instruction, f"from={name[:64]}: variables are not expanded here; {hint}")
        yield name


def is_number(name: str) -> bool:
    """Whether `from=name` means a stage by its number, which only COPY knows."""
    return name.isascii() and name.isdigit()


class Bases:
    """The stages of a Dockerfile and the images each is made from; `arguments` are the values that FROM sees.

    `is_classic`: the classic builder runs every stage up to the target, and takes the name of a later stage for an
    image; BuildKit leaves out what the target does not need. Raises `SyntaxFault` for a FROM that expands to nothing or
    to no image name, and a `--from` with a variable, which engines do not expand.
    """

    def __init__(
        self,
        dockerfile: Dockerfile,
        build_args: Mapping[str, str],
        automatic: Mapping[str, str],
        *,
        is_classic: bool = False,
    ) -> None:
        self.stages, self.arguments = stages(dockerfile, build_args, automatic)
        self._is_classic = is_classic
        self._numbers = {stage.name: stage.index for stage in self.stages if stage.name}
        self._from: dict[int, dict[str, Instruction]] = {}
        self._from_triggers: dict[int, list[tuple[str, Instruction]]] = {}
        self._origin_count = 0

    def needed_stages(self, target: str = "") -> list[int]:
        """The stages that a build up to `target` ("" is the last one) goes through, ascending.

        Raises `Permanent(invalid)` for an unknown target.
        """
        last = self._numbers.get(target.lower()) if target else len(self.stages) - 1
        if last is None:
            known = ", ".join(self._numbers) or "none has a name"
            raise invalid(f"target {target[:64]!r} is not a stage of the Dockerfile; its stages: {known[:512]}")
        return list(range(last + 1)) if self._is_classic else self.needed_by([last])

    def of(self, indexes: Iterable[int]) -> tuple[Base, ...]:
        """The images of these stages, each once, in order of first use."""
        bases: dict[tuple[str, str | None], Base] = {}
        for base in chain.from_iterable(map(self._bases_of, indexes)):
            key = base.key
            if key not in bases or (base.instruction == "FROM" and bases[key].instruction != "FROM"):
                bases[key] = base
        return tuple(bases.values())

    def needed_by(self, indexes: Iterable[int]) -> list[int]:
        """Indexes, ascending, of the stages that these are made from, themselves included."""
        pending = list(indexes)
        seen = set(pending)
        while pending:
            index = pending.pop()
            named = [self.resolve(index, name) for name in self._sources(index)]
            for below in (self.stages[index].base, *named):
                if below is not None and below not in seen:
                    seen.add(below)
                    pending.append(below)
        return sorted(seen)

    def resolve(self, index: int, name: str) -> int | None:
        """The stage that `from=name` means inside stage `index`: an earlier one's number, or one's name.

        The classic builder knows only the names of those before.
        """
        if is_number(name):
            return int(name)
        number = self._numbers.get(name.lower())
        return number if number is not None and (number < index or not self._is_classic) else None

    def _bases_of(self, index: int) -> Iterator[Base]:
        stage = self.stages[index]
        if stage.base is None and stage.image != SCRATCH:
            yield Base(_reference(stage.line, "FROM", stage.image), stage.platform, stage.line, "FROM")
        for name, user in self._sources(index).items():
            if name != SCRATCH and self.resolve(index, name) is None:
                yield Base(_reference(user.first_line, user.name, name), None, user.first_line, user.name)

    def _sources(self, index: int) -> dict[str, Instruction]:
        """Each `from` of a stage with the first instruction that has it, triggers of the stage below included."""
        if index not in self._from:
            stage = self.stages[index]
            triggered = [] if stage.base is None else self._triggered(stage.base)
            for name, instruction in triggered:
                # A number is looked at below: it may have too many digits to be read here.
                if name != SCRATCH and not is_number(name) and self.resolve(index, name) is None:
                    hint = f"name a stage with FROM {name[:64]} AS …, and use that name"
                    raise _fault(instruction, f"from={name[:64]}: the trigger acts in this file, on an image; {hint}")
            named = [*triggered, *_named(stage.instructions)]
            self._origin_count += len(named)
            if self._origin_count > ORIGINS_MAX:
                raise SyntaxFault(stage.line, f"FROM: its stage and those before it have more than {ORIGINS_MAX} from=")
            sources: dict[str, Instruction] = {}
            for name, instruction in named:
                _check_number(instruction, name, index)
                sources.setdefault(name, instruction)
            self._from[index] = sources
        return self._from[index]

    def _triggered(self, index: int) -> list[tuple[str, Instruction]]:
        """What a stage that begins from stage `index` gets by ONBUILD."""
        if index not in self._from_triggers:
            triggers = (one.trigger for one in self.stages[index].instructions if one.trigger)
            self._from_triggers[index] = _named(triggers)
        return self._from_triggers[index]


class _Scope:
    """The variables that FROM sees, and what its words become; all of a Dockerfile share their steps."""

    def __init__(self, escape: str, host_platform: str) -> None:
        self.host_platform = host_platform
        self.variables: dict[str, str] = {}
        self._escape = escape
        self._steps = Steps()

    def expand(self, instruction: Instruction, word: str) -> str:
        try:
            return expand(word, self.variables, self._escape, self._steps)
        except BadWord as error:
            raise SyntaxFault(instruction.first_line, f"{instruction.name} {word[:64]}: {error}") from None

    def declare(
        self, heads: Sequence[Instruction], build_args: Mapping[str, str], automatic: Mapping[str, str]
    ) -> None:
        """`heads` are the ARGs before the first FROM, each expanded by those before it."""
        self.variables |= {name: build_args.get(name, value) for name, value in automatic.items()}
        words = [(one, word) for one in heads for word in split_words(one.arguments, self._escape)]
        if len(words) > GLOBAL_ARGS_MAX:
            line = words[GLOBAL_ARGS_MAX][0].first_line
            raise SyntaxFault(line, f"ARG: there are more than {GLOBAL_ARGS_MAX} ARGs before FROM")
        for instruction, word in words:
            name, equals, default = word.partition("=")
            if not name:
                raise SyntaxFault(instruction.first_line, "ARG: it needs a name before '='")
            if name in build_args:
                self.variables[name] = build_args[name]
            elif equals:
                self.variables[name] = self.expand(instruction, default)


def _stage(start: Instruction, body: Sequence[Instruction], earlier: Sequence[Stage], scope: _Scope) -> Stage:
    words = separated(start.arguments)
    if len(words) != 1 and not (len(words) == 3 and words[1].lower() == "as"):
        raise _fault(start, "it takes an image, or an image, AS and a stage name")
    name = words[2].lower() if len(words) == 3 else ""
    if name and not _STAGE_NAME.fullmatch(name):
        raise _fault(start, f"stage name {name[:64]!r} must begin with a letter; then letters, digits, -_.")
    if name and any(name == stage.name for stage in earlier):
        raise _fault(start, f"the stage name {name[:64]!r} is taken by an earlier stage")
    image = scope.expand(start, words[0])
    if not image:
        hint = "give its ARG a default before the first FROM, or pass a build arg"
        raise SyntaxFault(start.first_line, f"FROM {words[0][:64]} is empty after expansion: {hint}")
    platform = next((scope.expand(start, value) for value in start.flag_values("platform")), "")
    if platform and not _PLATFORM.fullmatch(platform):
        raise _fault(start, f"{platform[:64]!r} is not a platform, such as linux/amd64")
    return Stage(
        index=len(earlier),
        name=name,
        image=image,
        platform=normalize(platform, scope.host_platform) if platform else None,
        line=start.first_line,
        base=next((stage.index for stage in reversed(earlier) if stage.name and stage.name == image.lower()), None),
        instructions=tuple(body),
    )


def _named(instructions: Iterable[Instruction]) -> list[tuple[str, Instruction]]:
    """Each `from` with the first instruction of a name that has it."""
    first: dict[tuple[str, str], Instruction] = {}
    for instruction in instructions:
        for name in origins(instruction):
            first.setdefault((name, instruction.name), instruction)
    return [(name, instruction) for (name, _), instruction in first.items()]


def _check_number(instruction: Instruction, name: str, index: int) -> None:
    """Only COPY counts stages, and only those before its own; a mount would look for an image of that name."""
    if not is_number(name):
        return
    if instruction.name != "COPY":
        raise _fault(instruction, f"from={name[:64]}: a mount takes the name of a stage, not its number")
    if len(name) > len(str(index)) or int(name) >= index:
        raise _fault(instruction, f"--from={name[:64]}: there is no stage of that number before this one")


def _reference(line: int, instruction: str, image: str) -> ImageReference:
    try:
        return ImageReference.parse(image)
    except Permanent as fault:
        raise SyntaxFault(line, f"{instruction}: {fault.message}") from None


def _fault(instruction: Instruction, reason: str) -> SyntaxFault:
    return SyntaxFault(instruction.first_line, f"{instruction.name}: {reason}")
