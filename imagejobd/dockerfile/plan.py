"""The Dockerfile that the engine reads: printed from the judged instructions, never the user's own text.

Two readers of one text differ, so none but ours reads what a user wrote. What is printed has nothing left in it that
engines read in ways of their own: bases and platforms are literal, flags and mounts in one spelling, heredocs written
as one word, each instruction on its own line, which is the first that it had, so that the engine's messages name it.
Whatever does not come back from the parser as it was printed is refused.
"""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import zip_longest

import msgspec

from imagejobd.dockerfile.context import ContextUse, context_uses
from imagejobd.dockerfile.parser import Dockerfile, Instruction, parse, printed_flag
from imagejobd.dockerfile.source import LINE_MAX_BYTES, SyntaxFault
from imagejobd.dockerfile.stages import SCRATCH, Base, Bases, Stage, base_key
from imagejobd.model.errors import Permanent

# A longer line is continued on the next one; in characters of at most four bytes.
LINE_MAX_CHARS = LINE_MAX_BYTES // 4
# BuildKit warns of a platform that is written out, as here all are; `error=true` would make a fault of the warning.
_PLATFORM_CHECK = "FromPlatformFlagConstDisallowed"
# What a parser directive may hold that is printed again.
_CHECK = re.compile(r"[A-Za-z0-9,;=._ -]{1,1024}")

_UNPRINTABLE = "cannot be written in one form that all engines read alike"

# A base, as `base_key` names it, and the literal name under which the engine has it for this build.
Names = Mapping[tuple[str, str | None], str]


class Plan:
    """One judged Dockerfile up to the stage that is built; `stages` are the indexes of those that it needs.

    `platform` is what it is built for in the one spelling, "" for the engine's own. `frontend` is an image that the
    operator lets read the text instead of the engine's own, "" for none.
    """

    def __init__(
        self, dockerfile: Dockerfile, bases: Bases, *, target: str = "", platform: str = "", frontend: str = ""
    ) -> None:
        """Raises `Permanent(invalid)` for an unknown target."""
        self._dockerfile = dockerfile
        self._bases = bases
        self.frontend = frontend
        self.platform = platform
        self.stages = bases.needed_stages(target)

    def images(self) -> tuple[Base, ...]:
        """The images that the build starts from, each once, in order of first use."""
        return self._bases.of(self.stages)

    def context_uses(self, args: Mapping[str, str]) -> Iterator[ContextUse]:
        """What the build, with these args, takes from its context."""
        return context_uses(self._bases, self.stages, args, self._dockerfile.escape)

    def include(self, stages: Collection[int]) -> None:
        """Build these too, and what they need: triggers of a base copy from them, which no Dockerfile shows."""
        known = [index for index in stages if index < len(self._bases.stages)]
        self.stages = sorted({*self.stages, *self._bases.needed_by(known)})

    def printed(self, names: Names) -> str:
        """The text to build, with the literal `names` of its bases. Raises `SyntaxFault` for what has none."""
        first = self._bases.stages[0].line
        literal = [one for one in self._dockerfile.instructions if one.first_line < first]
        for stage in self._bases.stages:
            # Of one that is not needed only its place counts, for the numbers of those behind it.
            is_needed = stage.index in self.stages
            literal.append(self._start(stage, names if is_needed else None))
            literal += (self._literal(stage, one, names) for one in stage.instructions if is_needed)
        text = _text(self._directives(literal), literal, self._dockerfile.escape)
        _check_reads_back(literal, text)
        return text

    def _start(self, stage: Stage, names: Names | None) -> Instruction:
        if names is None:
            image = SCRATCH
        elif stage.base is not None:
            image = self._bases.stages[stage.base].name
        else:
            image = SCRATCH if stage.image == SCRATCH else names[base_key(stage.image, stage.platform)]
        platform = () if names is None or stage.platform is None else (f"--platform={stage.platform}",)
        alias = f" AS {stage.name}" if stage.name else ""
        return Instruction(
            name="FROM", flags=platform, arguments=image + alias, first_line=stage.line, last_line=stage.line
        )

    def _literal(self, stage: Stage, one: Instruction, names: Names) -> Instruction:
        """`one` with the literal name of each stage or image that it copies from or mounts."""
        if one.name == "COPY":
            flags = (
                f"--from={self._origin(stage, flag.removeprefix('--from='), names)}"
                if flag.startswith("--from=")
                else flag
                for flag in one.flags
            )
            return msgspec.structs.replace(one, flags=tuple(flags))
        if not one.mounts:
            return one
        mounts = tuple(
            msgspec.structs.replace(mount, origin=self._origin(stage, mount.origin, names)) for mount in one.mounts
        )
        remaining = iter(mounts)
        flags = (f"--mount={next(remaining).printed()}" if flag.startswith("--mount=") else flag for flag in one.flags)
        return msgspec.structs.replace(one, flags=tuple(flags), mounts=mounts)

    def _origin(self, stage: Stage, name: str, names: Names) -> str:
        if not name or name == SCRATCH:
            return name
        number = self._bases.resolve(stage.index, name)
        if number is None:
            return names[base_key(name, None)]
        return self._bases.stages[number].name or str(number)

    def _directives(self, literal: Iterable[Instruction]) -> list[str]:
        """Those that the engine shall follow. What ends them is the first line that is none, also a comment."""
        written = self._dockerfile.directives
        check = written.get("check", "") if _CHECK.fullmatch(written.get("check", "")) else ""
        directives = {"syntax": self.frontend, "escape": written.get("escape", ""), "check": check}
        has_room = check or sum(map(bool, directives.values())) < self._dockerfile.instructions[0].first_line - 1
        if has_room and any(one.name == "FROM" and one.flags for one in literal):
            directives["check"] = _skipping(check, _PLATFORM_CHECK)
        return [f"# {name}={value}" for name, value in directives.items() if value]


def _skipping(check: str, rule: str) -> str:
    """The value of a check directive that leaves out `rule` too."""
    options = [option.strip() for option in check.split(";") if option.strip()]
    for number, option in enumerate(options):
        key, _, value = option.partition("=")
        if key.strip().lower() == "skip":
            if value.strip().lower() != "all":
                options[number] = f"skip={value.strip()},{rule}"
            return ";".join(options)
    return ";".join([f"skip={rule}", *options])


def _text(directives: list[str], instructions: Iterable[Instruction], escape: str) -> str:
    lines = list(directives)
    for one in instructions:
        lines += [""] * (one.first_line - 1 - len(lines))
        lines += _continued(_line(one), one, escape)
        for heredoc in one.heredocs:
            lines += [*heredoc.body.split("\n")[:-1], heredoc.name]
    return "\n".join(lines) + "\n"


def _line(one: Instruction) -> str:
    if one.trigger is not None:
        return f"{one.name} {_line(one.trigger)}"
    if one.values is not None:
        text = json.dumps(one.values, ensure_ascii=False)
        arguments = f"CMD {text}" if one.name == "HEALTHCHECK" else text
    else:
        # What looks like a flag and is none has to be set apart from those that are.
        arguments = f"-- {one.arguments}" if one.arguments.startswith("--") else one.arguments
    return " ".join(filter(None, (one.name, *map(printed_flag, one.flags), arguments)))


def _continued(line: str, one: Instruction, escape: str) -> list[str]:
    """`line` in pieces that engines take. A piece that began with a space or `#` could pass for a comment."""
    pieces: list[str] = []
    while len(line) > LINE_MAX_CHARS:
        at = LINE_MAX_CHARS - 1
        while at and (line[at - 1] == escape or line[at] == escape or line[at] == "#" or line[at].isspace()):
            at -= 1
        if not at:
            raise SyntaxFault(one.first_line, f"{one.name}: its text cannot be written in lines that engines take")
        pieces.append(line[:at] + escape)
        line = line[at:]
    return [*pieces, line]


def _check_reads_back(literal: Iterable[Instruction], text: str) -> None:
    try:
        read = parse(text).instructions
    except Permanent as fault:
        raise SyntaxFault(1, f"the file {_UNPRINTABLE}: {fault.message}") from None
    for meant, actual in zip_longest(literal, read):
        if not (meant and actual and _content(meant) == _content(actual)):
            where = meant or actual
            raise SyntaxFault(where.first_line, f"{where.name}: it {_UNPRINTABLE}")


def _content(one: Instruction) -> tuple[object, ...]:
    """What of an instruction counts, whatever the form it is written in."""
    if one.trigger is not None:
        return one.name, _content(one.trigger), one.heredocs
    arguments = one.arguments if one.values is None else ""
    return one.name, one.flags, arguments, one.values, one.mounts, one.heredocs
