"""The images that a build of a Dockerfile starts from.

A build without a client session cannot log in to a registry by itself, so every base is pulled beforehand: FROM after
ARG expansion, `COPY --from=` and `RUN --mount=from=`, less stages and `scratch`. Bases that the ONBUILD triggers of
an image elsewhere name cannot be seen here.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from imagejobd.model.dockerfile.instruction import Dockerfile, Instruction
from imagejobd.model.dockerfile.source import at_line
from imagejobd.model.dockerfile.stages import Stage, stages
from imagejobd.model.errors import Permanent, invalid
from imagejobd.model.reference import ImageReference

SCRATCH = "scratch"


class Base(msgspec.Struct, frozen=True):
    """An image that a build needs. `platform` is what FROM asks for, None for the build's own; `line` its first use."""

    reference: ImageReference
    platform: str | None
    line: int


def bases(
    dockerfile: Dockerfile,
    build_args: Mapping[str, str],
    automatic_args: Mapping[str, str],
    *,
    target: str = "",
    skip_unused: bool = True,
) -> tuple[Base, ...]:
    """The images to pull before a build up to `target` ("" is the last stage), each once, in order of first use.

    `skip_unused` leaves out the stages that the target does not need, as BuildKit does; the classic builder runs every
    stage up to the target. Raises `Permanent(invalid)` for an unknown target, a FROM that expands to nothing or to no
    image name, and a `--from` with a variable, which engines do not expand.
    """
    graph = _Graph(stages(dockerfile, build_args, automatic_args))
    last = graph.target(target)
    found: dict[tuple[str, str | None], Base] = {}
    for index in graph.needed_by(last) if skip_unused else range(last + 1):
        for base in graph.bases_of(index):
            found.setdefault((str(base.reference), base.platform), base)
    return tuple(found.values())


def mounts(instruction: Instruction) -> list[dict[str, str]]:
    """The `--mount=` flags of a RUN as keys (lower case) and values; a key without value has "".

    Raises `Permanent(invalid)` where the CSV form is broken.
    """
    found: list[dict[str, str]] = []
    for value in instruction.flag_values("mount"):
        try:
            fields = next(csv.reader([value], strict=True), [])
        except csv.Error as error:
            raise at_line(instruction.first_line, f"--mount: {error}") from None
        pairs = (field.partition("=") for field in fields)
        found.append({key.strip().lower(): content for key, _, content in pairs})
    return found


class _Graph:
    """The stages and what each is made from."""

    def __init__(self, every: Sequence[Stage]) -> None:
        self._stages = every
        self._names = {stage.name: stage.index for stage in every if stage.name}
        self._from: dict[int, dict[str, int]] = {}

    def target(self, name: str) -> int:
        """The index of the stage to build."""
        if not name:
            return len(self._stages) - 1
        index = self._names.get(name.lower())
        if index is None:
            known = ", ".join(self._names) or "none has a name"
            raise invalid(f"target {name[:64]!r} is not a stage of the Dockerfile; its stages: {known[:512]}")
        return index

    def needed_by(self, last: int) -> list[int]:
        """Indexes, ascending, of the stages that stage `last` is made from, itself included."""
        seen = {last}
        pending = [last]
        while pending:
            index = pending.pop()
            named = [self._resolve(index, name) for name in self._sources(index)]
            for below in (self._stages[index].base, *named):
                if below is not None and below not in seen:
                    seen.add(below)
                    pending.append(below)
        return sorted(seen)

    def bases_of(self, index: int) -> Iterator[Base]:
        stage = self._stages[index]
        if stage.base is None and stage.image != SCRATCH:
            yield Base(_reference(stage.line, stage.image), stage.platform, stage.line)
        for name, line in self._sources(index).items():
            if name != SCRATCH and self._resolve(index, name) is None:
                yield Base(_reference(line, name), None, line)

    def _resolve(self, index: int, name: str) -> int | None:
        """The stage that `--from=name` means inside stage `index`: an earlier one's number, or any one's name."""
        return int(name) if _is_number(name) else self._names.get(name.lower())

    def _sources(self, index: int) -> dict[str, int]:
        """Each `--from` of a stage with its first line, those of the ONBUILD triggers of the stage below included."""
        if index not in self._from:
            stage = self._stages[index]
            below = () if stage.base is None else self._stages[stage.base].instructions
            triggers = [one.trigger for one in below if one.trigger]
            found: dict[str, int] = {}
            for instruction in (*triggers, *stage.instructions):
                for name in _froms(instruction):
                    _check_number(instruction, name, index)
                    found.setdefault(name, instruction.first_line)
            self._from[index] = found
        return self._from[index]


def _froms(instruction: Instruction) -> Iterator[str]:
    names: list[str] = []
    if instruction.name == "COPY":
        names = list(instruction.flag_values("from"))
    elif instruction.name == "RUN":
        names = [mount.get("from", "") for mount in mounts(instruction)]
    for name in filter(None, names):
        if "$" in name:
            hint = f"name a stage with FROM {name[:64]} AS …, and use that name"
            raise at_line(instruction.first_line, f"from={name[:64]}: variables are not expanded here; {hint}")
        yield name


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit()


def _check_number(instruction: Instruction, name: str, index: int) -> None:
    """Only COPY counts stages, and only those before its own; a mount would look for an image of that name."""
    if not _is_number(name):
        return
    if instruction.name != "COPY":
        raise at_line(instruction.first_line, f"from={name[:64]}: a mount takes the name of a stage, not its number")
    if len(name) > len(str(index)) or int(name) >= index:
        raise at_line(instruction.first_line, f"--from={name[:64]}: there is no stage of that number before this one")


def _reference(line: int, image: str) -> ImageReference:
    try:
        return ImageReference.parse(image)
    except Permanent as fault:
        raise at_line(line, fault.message) from None
