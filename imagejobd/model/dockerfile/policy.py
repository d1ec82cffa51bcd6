"""What a Dockerfile may do on this build host: the operator's `[policy]`, judged after ARG expansion.

The same rules hold for every kind of job that builds. Each list holds globs (`*` any run, `?` any character); of those
that match, the last one decides, and `!` in front of it forbids. A list without a leading `*` so denies by default.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain, islice

from imagejobd.model.dockerfile.bases import SCRATCH, Base, Bases, origins
from imagejobd.model.dockerfile.frontend import Frontend, frontends
from imagejobd.model.dockerfile.instruction import Dockerfile, parse, parse_trigger
from imagejobd.model.dockerfile.plan import Plan
from imagejobd.model.dockerfile.rules import Rules, Violation
from imagejobd.model.dockerfile.settings import PolicySettings
from imagejobd.model.dockerfile.source import SyntaxFault
from imagejobd.model.dockerfile.stages import automatic_args
from imagejobd.model.dockerfile.steps import Steps
from imagejobd.model.errors import ErrorCode, Permanent, invalid
from imagejobd.model.platform import DEFAULT_PLATFORM, normalize

__all__ = ["DOCKERFILE_MAX_BYTES", "Policy", "PolicySettings"]

DOCKERFILE_MAX_BYTES = 1 << 20
# Of all ONBUILD triggers of one image.
TRIGGERS_MAX_CHARS = 64 * 1024
VIOLATIONS_MAX = 10
# The same Dockerfile is built again and again, under other tags and with other args; reading it anew took longer than
# all else at the door. Only small ones are remembered.
REMEMBERED_MAX = 256
REMEMBERED_MAX_CHARS = 16 * 1024
# Stands for the literal names that bases have in a build.
ANY_NAME = "imagejobd/any:base"

Args = tuple[tuple[str, str], ...]


class Policy:
    """The rules in force. Raises `Permanent(invalid)` for a list that cannot be used, naming its key."""

    def __init__(self, settings: PolicySettings | None = None) -> None:
        self._rules = Rules(settings or PolicySettings())
        self._remembered = lru_cache(maxsize=REMEMBERED_MAX)(self._check)

    def check(
        self,
        text: str,
        *,
        build_args: Mapping[str, str] | None = None,
        own_args: Mapping[str, str] | None = None,
        target: str = "",
        platform: str = "",
        knows_heredocs: bool = True,
    ) -> None:
        """Judge a Dockerfile at the door, for an engine that may not be known yet; raises as `plan` does."""
        arguments = (_args(build_args), _args(own_args), target, platform, knows_heredocs)
        check = self._remembered if len(text) <= REMEMBERED_MAX_CHARS else self._check
        check(text, *arguments)

    def plan(
        self,
        text: str,
        *,
        build_args: Mapping[str, str] | None = None,
        own_args: Mapping[str, str] | None = None,
        target: str = "",
        platform: str = "",
        host_platform: str = DEFAULT_PLATFORM,
        all_stages: bool = False,
        knows_heredocs: bool = True,
    ) -> Plan:
        """Judge a Dockerfile; what is to be built of it.

        `build_args` are those of the request; `own_args` the service's, which no rule is about and which win.
        `platform` is what the build is for ("" is the engine's own, `host_platform`); `all_stages` is for the classic
        builder, which skips none. Where the engine does not know heredocs (`knows_heredocs`), none is allowed: it
        would read as instructions what nobody judged. Every stage is judged, also those that the target does not need;
        the images of those only where the policy is about images.

        Raises `Permanent(policy)` that names line, instruction and rule of each thing that is not allowed, up to
        `VIOLATIONS_MAX`; `Permanent(invalid)` for what cannot be read (a fault of syntax, with rule `syntax` and its
        line, or an unknown target); and `Permanent(too_large)`.
        """
        _check_size(text)
        platform = normalize(platform, host_platform) if platform else ""
        automatic = automatic_args(platform or normalize(host_platform), normalize(host_platform), target)
        args = {**(build_args or {}), **(own_args or {})}
        asked = list(frontends(text))
        found = list(_first([self._rules.frontends(asked), self._rules.build_args(build_args or ())]))
        try:
            parsed = parse(text)
            found += _first(self._of_instructions(parsed, knows_heredocs=knows_heredocs))
            bases = Bases(parsed, args, automatic, is_classic=all_stages)
            plan = Plan(parsed, bases, target=target, platform=platform, frontend=_foreign(asked))
            judged = bases.of(range(len(bases.stages))) if self._rules.restrict_images else plan.images()
            found += _first(map(self._rules.base, judged))
        except Permanent:
            # What is forbidden weighs more than what cannot be read.
            if not found:
                raise
            _refuse(map(str, found))
            raise
        _refuse(map(str, found))
        return plan

    def check_build_args(self, names: Iterable[str]) -> None:
        """Judge the build args of a request. Raises `Permanent(policy)`."""
        _refuse(map(str, self._rules.build_args(names)))

    def check_triggers(self, base: Base, triggers: Sequence[str]) -> set[int]:
        """Judge the ONBUILD instructions that the image `base` brings into a build; the stages that they copy from.

        They may name no image at all, and a stage by its number only: which of their names are stages of the Dockerfile
        only the engine knows, and it would take any image that it has. A heredoc hides nothing in them, for engines
        refuse a trigger of more than one instruction.
        Raises `Permanent(policy)` that names the image, the trigger and the rule.
        """
        where = f"of base image {base.reference} (Dockerfile line {base.line})"
        if sum(map(len, triggers)) > TRIGGERS_MAX_CHARS:
            _refuse([f"ONBUILD triggers {where}: they have more than {TRIGGERS_MAX_CHARS} characters [rule syntax]"])
        steps = Steps()
        _refuse(
            f"ONBUILD trigger {number} {where}: {fault}"
            for number, text in enumerate(triggers, 1)
            for fault in self._trigger_faults(text, steps)
        )
        return {int(name) for text in triggers for name in origins(parse_trigger(text)) if name != SCRATCH}

    def _trigger_faults(self, text: str, steps: Steps) -> Iterator[str]:
        try:
            trigger = parse_trigger(text)
            names = list(origins(trigger))
        except SyntaxFault as fault:
            yield f"{text[:64]!r}: {fault.reason} [rule syntax]"
            return
        for violation in chain(self._rules.instruction(trigger, steps), self._rules.origins(trigger, names)):
            yield violation.in_subject

    def _check(
        self, text: str, build_args: Args, own_args: Args, target: str, platform: str, knows_heredocs: bool
    ) -> None:
        plan = self.plan(
            text,
            build_args=dict(build_args),
            own_args=dict(own_args),
            target=target,
            platform=platform,
            knows_heredocs=knows_heredocs,
        )
        plan.printed({base.key: ANY_NAME for base in plan.images()})

    def _of_instructions(self, parsed: Dockerfile, *, knows_heredocs: bool) -> Iterator[Iterator[Violation]]:
        steps = Steps()
        for one in parsed.instructions:
            yield self._rules.instruction(one, steps)
            if not knows_heredocs:
                yield self._rules.heredocs(one)


def _args(given: Mapping[str, str] | None) -> Args:
    return tuple((given or {}).items())


def _foreign(asked: Iterable[Frontend]) -> str:
    """The image that the text chooses for its frontend, as far as it is not the engine's own."""
    return next((one.image for one in asked if one.image and not one.is_own), "")


def _check_size(text: str) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise invalid("the Dockerfile is not valid Unicode [rule syntax]") from None
    if size > DOCKERFILE_MAX_BYTES:
        raise Permanent(ErrorCode.TOO_LARGE, f"the Dockerfile is larger than {DOCKERFILE_MAX_BYTES} bytes, the limit")


def _refuse(faults: Iterable[str]) -> None:
    """Raise `Permanent(policy)` with all `faults` in one line, if there are any."""
    shown = list(islice(faults, VIOLATIONS_MAX + 1))
    if len(shown) > VIOLATIONS_MAX:
        shown[-1] = "and more"
    if shown:
        raise Permanent(ErrorCode.POLICY, "; ".join(shown))


def _first(violations: Iterable[Iterable[Violation]]) -> Iterator[Violation]:
    """As many as are told, and one more."""
    return islice(chain.from_iterable(violations), VIOLATIONS_MAX + 1)
