"""What a Dockerfile may do on this build host: the operator's `[policy]`, judged after ARG expansion.

The same rules hold for every kind of job that builds. Each list holds globs (`*` any run, `?` any character); of those
that match, the last one decides, and `!` in front of it forbids. A list without a leading `*` so denies by default.

Every violation names the line, the instruction and the stable id of its rule: `frontend`, `build-arg`, `instruction`,
`flag`, `mount`, `add-url`, `heredoc`, `image`, `digest` or `reserved`; `syntax` is the parser's, and `context` is about
a Dockerfile that copies from a context which it has not got.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain, islice
from typing import Any

import msgspec

from imagejobd.dockerfile.context import ContextUse
from imagejobd.dockerfile.expand import Steps
from imagejobd.dockerfile.parser import Instruction, parse, parse_trigger
from imagejobd.dockerfile.plan import Plan
from imagejobd.dockerfile.remotes import UNPLAIN, remote_sources
from imagejobd.dockerfile.settings import AllowList, PolicySettings, check, with_value
from imagejobd.dockerfile.source import Frontend, SyntaxFault, frontends
from imagejobd.dockerfile.stages import SCRATCH, STAGES_MAX, Base, Bases, automatic_args, is_number, origins
from imagejobd.model.errors import ErrorCode, Permanent, invalid
from imagejobd.model.ownership import refuse_reserved
from imagejobd.model.reference import DEFAULT_PLATFORM, ImageReference, normalize

__all__ = ["DOCKERFILE_MAX_BYTES", "Policy", "PolicySettings"]

DOCKERFILE_MAX_BYTES = 1 << 20
# Of all ONBUILD triggers of one image.
TRIGGERS_MAX_CHARS = 64 * 1024
VIOLATIONS_MAX = 10
# The same Dockerfile is built again and again, under other tags and with other args; reading it anew took longer than
# all else that accepting a job does. Only small ones are remembered.
REMEMBERED_MAX_COUNT = 256
REMEMBERED_MAX_CHARS = 16 * 1024
# Stands for the literal names that bases have in a build.
ANY_NAME = "imagejobd/any:base"
# The client of a build session would serve these, and this service offers folders only.
SESSION_MOUNTS = frozenset({"secret", "ssh"})
RESERVED_ARG_PREFIX = "BUILDKIT_"
WORD_MAX_CHARS = 128
# Engines take a number that is too large for one of theirs for the name of an image.
_STAGE_NUMBER_MAX_CHARS = len(str(STAGES_MAX))

Args = tuple[tuple[str, str], ...]


class _Violation(msgspec.Struct, frozen=True):
    """`line` is None for what does not stand in the Dockerfile; `subject` is the instruction, or the like."""

    rule: str
    line: int | None
    subject: str
    reason: str

    def __str__(self) -> str:
        where = "" if self.line is None else f"Dockerfile line {self.line}: "
        return f"{where}{self.in_subject}"

    @property
    def in_subject(self) -> str:
        """The text for where the line is known already."""
        return f"{self.subject}: {self.reason} [rule {self.rule}]"


class Policy:
    """The rules in force. Raises `Permanent(invalid)` for a list that cannot be used, naming its key."""

    def __init__(self, settings: PolicySettings | None = None) -> None:
        self._rules = _Rules(settings or PolicySettings())
        self._remembered = lru_cache(maxsize=REMEMBERED_MAX_COUNT)(self._check)

    def check(
        self,
        text: str,
        *,
        build_args: Mapping[str, str] | None = None,
        own_args: Mapping[str, str] | None = None,
        target: str = "",
        platform: str = "",
        has_context: bool = True,
        knows_heredocs: bool = True,
    ) -> None:
        """Judge a Dockerfile that is handed in, for an engine that may not be known yet.

        Raises as `plan` does, and `Permanent(invalid)` for one that copies from a context where it has none.
        """
        check = self._remembered if len(text) <= REMEMBERED_MAX_CHARS else self._check
        check(
            text,
            tuple((build_args or {}).items()),
            tuple((own_args or {}).items()),
            target=target,
            platform=platform,
            has_context=has_context,
            knows_heredocs=knows_heredocs,
        )

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
        readers = list(frontends(text))
        frontend = next((one.image for one in readers if one.image and not one.is_builtin), "")
        violations = list(_first([self._rules.frontends(readers), self._rules.build_args(build_args or ())]))
        try:
            parsed = parse(text)
            steps = Steps()
            violations += _first(
                self._rules.instruction(one, steps, knows_heredocs=knows_heredocs) for one in parsed.instructions
            )
            bases = Bases(parsed, args, automatic, is_classic=all_stages)
            plan = Plan(parsed, bases, target=target, platform=platform, frontend=frontend)
            judged = bases.of(range(len(bases.stages))) if self._rules.restrict_images else plan.images()
            violations += _first(map(self._rules.base, judged))
        except Permanent:
            # What is forbidden weighs more than what cannot be read.
            _refuse(map(str, violations))
            raise
        _refuse(map(str, violations))
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

    def _check(self, text: str, build_args: Args, own_args: Args, *, has_context: bool, **options: Any) -> None:
        plan = self.plan(text, build_args=dict(build_args), own_args=dict(own_args), **options)
        if not has_context:
            _refuse_context_uses(plan.context_uses(dict(build_args) | dict(own_args)))
        plan.printed({base.key: ANY_NAME for base in plan.images()})


class _Rules:
    """The settings, compiled. Raises `Permanent(invalid)` for a list that cannot be meant, naming its key.

    `restrict_images` tells that some image or other is forbidden.
    """

    def __init__(self, settings: PolicySettings) -> None:
        check(settings)
        self._instructions = AllowList(settings.instructions)
        self._images = AllowList(settings.images)
        self._require_digest = settings.require_digest
        self.restrict_images = settings.require_digest or not self._images.allows_all
        self._flags = AllowList(map(with_value, settings.flags))
        self._mounts = AllowList(settings.mounts)
        self._frontends = AllowList(settings.frontends)
        self._add_urls = AllowList(settings.add_urls)
        self._build_args = AllowList(settings.build_args)

    def frontends(self, readers: Iterable[Frontend]) -> Iterator[_Violation]:
        """Judge what would have another frontend read the file."""
        for one in readers:
            if not one.is_builtin and (one.image is None or not self._allows_frontend(one.image)):
                why = "would have another frontend read this file, which is not allowed"
                hint = "write docker/dockerfile:1, which stands for the engine's own, or remove it"
                yield _Violation("frontend", one.line, one.text, f"{why}; {hint}")

    def build_args(self, names: Iterable[str]) -> Iterator[_Violation]:
        """Judge the names of build args; those that steer the builder itself, like `BUILDKIT_SYNTAX`, never pass."""
        for name in names:
            subject = f"build arg {name[:64]!r}"
            if name.startswith(RESERVED_ARG_PREFIX):
                why = f"is not allowed: names with {RESERVED_ARG_PREFIX} in front steer the builder"
                yield _Violation("build-arg", None, subject, why)
            elif not self._build_args.allows(name):
                yield _Violation("build-arg", None, subject, "is not allowed")

    def instruction(self, one: Instruction, steps: Steps, *, knows_heredocs: bool = True) -> Iterator[_Violation]:
        """Judge one instruction, with the one inside an ONBUILD, but for the images it names. To an engine that has no
        heredocs what is a body here are instructions."""
        for rule, reason in self._reasons(one, steps):
            yield _Violation(rule, one.first_line, one.name, reason)
        if one.trigger:
            for rule, reason in self._reasons(one.trigger, steps):
                yield _Violation(rule, one.first_line, f"{one.name} {one.trigger.name}", reason)
        if one.heredocs and not knows_heredocs:
            what = "heredocs (<<EOF) need Docker Engine 23 or newer with BuildKit"
            why = "the engine here would read their lines as instructions"
            yield _Violation("heredoc", one.first_line, one.name, f"{what}; {why}")

    def origins(self, trigger: Instruction, names: Iterable[str]) -> Iterator[_Violation]:
        """Judge the `from=` of a trigger that a base brings in.

        Nobody holds the image that one names: it may be any in the engine, by an id or the beginning of one, also
        those of other jobs and the bases that others' credentials brought in.
        """
        for name in names:
            is_stage = trigger.name == "COPY" and is_number(name) and len(name) <= _STAGE_NUMBER_MAX_CHARS
            if name != SCRATCH and not is_stage:
                why = "could be any image in the engine; a base's trigger may copy from the number of a stage only"
                yield _Violation("image", trigger.first_line, trigger.name, f"from={name[:WORD_MAX_CHARS]} {why}")

    def base(self, base: Base) -> Iterator[_Violation]:
        """Judge an image that a build starts from."""
        reference = base.reference
        name = _canonical(reference)
        if self._require_digest and not reference.digest:
            reason = f"image {name} must be pinned by its digest: image@sha256:…"
            yield _Violation("digest", base.line, base.instruction, reason)
        if not self._images.allows(name):
            yield _Violation("image", base.line, base.instruction, f"image {name} is not allowed")
        try:
            refuse_reserved("base image", reference)
        except Permanent as fault:
            yield _Violation("reserved", base.line, base.instruction, fault.message)

    def _allows_frontend(self, image: str) -> bool:
        try:
            return self._frontends.allows(_canonical(ImageReference.parse(image)))
        except Permanent:
            return False

    def _reasons(self, one: Instruction, steps: Steps) -> Iterator[tuple[str, str]]:
        if not self._instructions.allows(one.name):
            yield "instruction", "is not allowed"
        for flag in one.flags:
            # Engines take `--link` for `--link=true`, and expand variables and remove quotes in most values: of such a
            # value only the beginning is known.
            text = f"{one.name} {flag}" if "=" in flag else f"{one.name} {flag}=true"
            special = UNPLAIN.search(text)
            if special is None and not self._flags.allows(text):
                yield "flag", f"{flag[:WORD_MAX_CHARS]} is not allowed"
            elif special and not self._flags.allows_whatever_follows(text[: special.start()]):
                why = "is not allowed, for what a variable or quote in it may become is not known"
                yield "flag", f"{flag[:WORD_MAX_CHARS]} {why}"
        for kind in sorted({mount.type for mount in one.mounts}):
            if kind in SESSION_MOUNTS:
                why = "needs a build session, which this service does not offer; pass what may be seen as a build arg"
                yield "mount", f"--mount=type={kind} {why}"
            elif not self._mounts.allows(kind):
                yield "mount", f"--mount=type={kind} is not allowed"
        if one.name == "ADD" and not self._add_urls.allows_all:
            yield from self._remote_sources(one, steps)

    def _remote_sources(self, one: Instruction, steps: Steps) -> Iterator[tuple[str, str]]:
        for source in remote_sources(one, steps):
            word = repr(source.word[:WORD_MAX_CHARS])
            if source.is_open and not self._add_urls.allows_whatever_follows(source.text):
                hint = "begin what is in the context with ./"
                yield "add-url", f"source {word} could become a URL that is not allowed; {hint}"
            elif not source.is_open and not self._add_urls.allows(source.text):
                yield "add-url", f"source {word} is not allowed"


def _canonical(reference: ImageReference) -> str:
    """`host/path@digest`, or `host/path:tag`: engines overlook a tag beside a digest."""
    rest = f"@{reference.digest}" if reference.digest else f":{reference.tag}"
    return f"{reference.host}/{reference.path}{rest}"


def _check_size(text: str) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise invalid("the Dockerfile is not valid Unicode [rule syntax]") from None
    if size > DOCKERFILE_MAX_BYTES:
        raise Permanent(ErrorCode.TOO_LARGE, f"the Dockerfile is larger than {DOCKERFILE_MAX_BYTES} bytes, the limit")


def _refuse_context_uses(uses: Iterable[ContextUse]) -> None:
    """Raise `Permanent(invalid)` that names the first of them, if there are any."""
    for use in uses:
        what = f"{use.instruction}: {use.source[:WORD_MAX_CHARS]!r} is in a build context, and this Dockerfile has none"
        hint = "send its folder as a tar with the Dockerfile in it, or write the file with a heredoc (COPY <<EOF /file)"
        raise invalid(f"Dockerfile line {use.line}: {what}; {hint} [rule context]")


def _refuse(faults: Iterable[str]) -> None:
    """Raise `Permanent(policy)` with all `faults` in one line, if there are any."""
    reasons = list(islice(faults, VIOLATIONS_MAX + 1))
    if len(reasons) > VIOLATIONS_MAX:
        reasons[-1] = "and more"
    if reasons:
        raise Permanent(ErrorCode.POLICY, "; ".join(reasons))


def _first(violations: Iterable[Iterable[_Violation]]) -> Iterator[_Violation]:
    """As many as one message names, and one more."""
    return islice(chain.from_iterable(violations), VIOLATIONS_MAX + 1)
