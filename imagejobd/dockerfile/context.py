"""What a Dockerfile takes from its build context, so that one which comes alone is refused when it is submitted, not
when its build fails.

Whatever may come from elsewhere counts as coming from there: a URL, a heredoc, another stage or image, a source of ADD
with a variable that only the base image knows.
"""

import re
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping
from typing import cast

import msgspec

from imagejobd.dockerfile.expand import Steps, expand, split_words
from imagejobd.dockerfile.parser import Instruction, separated
from imagejobd.dockerfile.remotes import UNPLAIN, may_be_remote
from imagejobd.dockerfile.stages import Bases

_HEREDOC_MARK = "<<"
_VARIABLE = re.compile(r"\$\{?(\w+)")


# Names with their values, None where these are not known; a stage has those of the one below it, which are not copied.
Variables = ChainMap[str, str | None]


class ContextUse(msgspec.Struct, frozen=True):
    """An instruction that needs a context; `source` is what it takes from there, as it is written."""

    line: int
    instruction: str
    source: str


def context_uses(
    bases: Bases, indexes: Iterable[int], build_args: Mapping[str, str], escape: str
) -> Iterator[ContextUse]:
    """What the stages at `indexes` take from the context, with the triggers of the stages that they begin from.

    `indexes` are ascending, each with the stages that it needs. A variable that an ARG or ENV of the file sets has that
    value, though the base image may have an ENV of the same name.
    """
    steps = Steps()
    scopes: dict[int, _Scope] = {}
    for index in indexes:
        stage = bases.stages[index]
        below = None if stage.base is None else bases.stages[stage.base]
        variables = scopes[below.index].variables if below else Variables()
        scope = scopes[index] = _Scope(variables.new_child(), bases.arguments, build_args, escape, steps)
        triggers = [one.trigger for one in below.instructions if one.trigger] if below else []
        for one in (*triggers, *stage.instructions):
            if (source := next(scope.sources(one), None)) is not None:
                yield ContextUse(one.first_line, one.name, source)


class _Scope:
    """The `variables` of one stage as it is read from the top."""

    def __init__(
        self,
        variables: Variables,
        arguments: Mapping[str, str],
        build_args: Mapping[str, str],
        escape: str,
        steps: Steps,
    ) -> None:
        self.variables = variables
        self._arguments = arguments
        self._build_args = build_args
        self._escape = escape
        self._steps = steps

    def sources(self, one: Instruction) -> Iterator[str]:
        """What `one` takes from the context for sure; takes note of an ARG or ENV."""
        match one.name:
            case "ARG":
                for word in split_words(one.arguments, self._escape):
                    name, equals, default = word.partition("=")
                    value = self._value(default) if equals else self._arguments.get(name)
                    self.variables[name] = self._build_args.get(name, value)
            case "ENV":
                for name, value in self._pairs(one.arguments):
                    self.variables[name] = self._value(value)
            case "COPY" if not any(one.flag_values("from")):
                yield from _sources(one)
            case "ADD":
                yield from filter(self._is_local, _sources(one))
            case "RUN":
                for mount in one.mounts:
                    if mount.type == "bind" and not mount.origin:
                        yield f"--mount={mount.printed()}"

    def _pairs(self, arguments: str) -> Iterator[tuple[str, str]]:
        """The names and values of ENV; in its older form all that follows the name is one value."""
        words = split_words(arguments, self._escape)
        if "=" not in words[0]:
            yield words[0], " ".join(words[1:])
            return
        for word in words:
            name, _, value = word.partition("=")
            yield name, value

    def _value(self, word: str) -> str | None:
        """What `word` becomes; None where that is not known, or is beyond the bounds of `expand`."""
        if not UNPLAIN.search(word):
            return word
        try:
            self._steps.spend(len(word))
            if any(self.variables.get(name) is None for name in _VARIABLE.findall(word)):
                return None
            return expand(word, cast(Mapping[str, str], self.variables), self._escape, self._steps)
        except ValueError:
            return None

    def _is_local(self, word: str) -> bool:
        value = self._value(word)
        return value is not None and not may_be_remote(value)


def _sources(one: Instruction) -> Iterator[str]:
    """The words of COPY or ADD but the last, without heredocs."""
    words = separated(one.arguments) if one.values is None else one.values
    return (word for word in words[:-1] if not (one.heredocs and word.startswith(_HEREDOC_MARK)))
