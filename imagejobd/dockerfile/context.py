"""What a Dockerfile takes from its build context, so that one which comes alone is refused when it is submitted, not
when its build fails.

Whatever may come from elsewhere counts as coming from there: a URL, a heredoc, another stage or image, a source of ADD
with a variable that only the base image knows.
"""

import re
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from imagejobd.dockerfile.expand import BadWord, Steps, expand, split_words
from imagejobd.dockerfile.parser import Instruction, separated
from imagejobd.dockerfile.remotes import may_be_remote
from imagejobd.dockerfile.stages import Bases

_HEREDOC_MARK = "<<"
_VARIABLE = re.compile(r"\$\{?(\w+)")


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
        variables = scopes[below.index].variables if below else {}
        scope = scopes[index] = _Scope(variables, bases.arguments, build_args, escape, steps)
        triggers = [one.trigger for one in below.instructions if one.trigger] if below else []
        for one in (*triggers, *stage.instructions):
            if (source := next(scope.sources(one), None)) is not None:
                yield ContextUse(one.first_line, one.name, source)


class _Scope:
    """The `variables` of one stage whose values are known, as it is read from the top."""

    def __init__(
        self,
        inherited: Mapping[str, str],
        arguments: Mapping[str, str],
        build_args: Mapping[str, str],
        escape: str,
        steps: Steps,
    ) -> None:
        self.variables = dict(inherited)
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
                    self._set(name, self._build_args.get(name, value))
            case "ENV":
                for name, value in self._pairs(one.arguments):
                    self._set(name, self._value(value))
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

    def _set(self, name: str, value: str | None) -> None:
        self.variables.pop(name, None)
        if value is not None:
            self.variables[name] = value

    def _value(self, word: str) -> str | None:
        """What `word` becomes; None where that is not known."""
        if not self.variables.keys() >= set(_VARIABLE.findall(word)):
            return None
        try:
            return expand(word, self.variables, self._escape, self._steps)
        except BadWord:
            return None

    def _is_local(self, word: str) -> bool:
        value = self._value(word)
        return value is not None and not may_be_remote(value)


def _sources(one: Instruction) -> Iterator[str]:
    """The words of COPY or ADD but the last, without heredocs."""
    words = separated(one.arguments) if one.values is None else one.values
    return (word for word in words[:-1] if not (one.heredocs and word.startswith(_HEREDOC_MARK)))
