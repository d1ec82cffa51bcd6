"""The rules of a policy: what each looks at, and what it says of what it does not allow.

Every violation names the line, the instruction and the stable id of its rule: `frontend`, `build-arg`, `instruction`,
`flag`, `mount`, `add-url`, `heredoc`, `image`, `digest` or `reserved`; `syntax` is the parser's.
"""

from collections.abc import Iterable, Iterator

import msgspec

from imagejobd.model.dockerfile.allow import AllowList
from imagejobd.model.dockerfile.bases import SCRATCH, Base, is_number
from imagejobd.model.dockerfile.flags import spelled_out
from imagejobd.model.dockerfile.frontend import Frontend
from imagejobd.model.dockerfile.instruction import Instruction
from imagejobd.model.dockerfile.settings import PolicySettings, check, with_value
from imagejobd.model.dockerfile.sources import UNPLAIN, remote_sources
from imagejobd.model.dockerfile.stages import STAGES_MAX
from imagejobd.model.dockerfile.steps import Steps
from imagejobd.model.errors import Permanent
from imagejobd.model.reference import ImageReference
from imagejobd.model.reserved import refuse_reserved

# The client of a build session serves these, and this service opens none.
SESSION_MOUNTS = frozenset({"secret", "ssh"})
RESERVED_ARG_PREFIX = "BUILDKIT_"
SHOWN_MAX_CHARS = 128
# Engines take a number that is too large for one of theirs for the name of an image.
_STAGE_NUMBER_MAX_CHARS = len(str(STAGES_MAX))


class Violation(msgspec.Struct, frozen=True):
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


class Rules:
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

    def frontends(self, found: Iterable[Frontend]) -> Iterator[Violation]:
        """Judge what would have another frontend read the file."""
        for one in found:
            if not one.is_own and (one.image is None or not self._allows_frontend(one.image)):
                why = "would have another frontend read this file, which is not allowed"
                hint = "write docker/dockerfile:1, which stands for the engine's own, or remove it"
                yield Violation("frontend", one.line, one.shown, f"{why}; {hint}")

    def build_args(self, names: Iterable[str]) -> Iterator[Violation]:
        """Judge the names of build args; those that steer the builder itself, like `BUILDKIT_SYNTAX`, never pass."""
        for name in names:
            subject = f"build arg {name[:64]!r}"
            if name.startswith(RESERVED_ARG_PREFIX):
                why = f"is not allowed: names with {RESERVED_ARG_PREFIX} in front steer the builder"
                yield Violation("build-arg", None, subject, why)
            elif not self._build_args.allows(name):
                yield Violation("build-arg", None, subject, "is not allowed")

    def instruction(self, one: Instruction, steps: Steps) -> Iterator[Violation]:
        """Judge one instruction, with the one inside an ONBUILD, but for the images it names."""
        for rule, reason in self._reasons(one, steps):
            yield Violation(rule, one.first_line, one.name, reason)
        if one.trigger:
            for rule, reason in self._reasons(one.trigger, steps):
                yield Violation(rule, one.first_line, f"{one.name} {one.trigger.name}", reason)

    def heredocs(self, one: Instruction) -> Iterator[Violation]:
        """Judge one instruction for an engine that has no heredocs: what is a body here are instructions there."""
        if one.heredocs:
            what = "heredocs (<<EOF) need Docker Engine 23 or newer with BuildKit"
            why = "the engine here would read their lines as instructions"
            yield Violation("heredoc", one.first_line, one.name, f"{what}; {why}")

    def origins(self, trigger: Instruction, names: Iterable[str]) -> Iterator[Violation]:
        """Judge the `from=` of a trigger that a base brings in.

        Nobody holds the image that one names: it may be any in the engine, by an id or the beginning of one, also
        those of other jobs and the bases that others' credentials brought in.
        """
        for name in names:
            is_stage = trigger.name == "COPY" and is_number(name) and len(name) <= _STAGE_NUMBER_MAX_CHARS
            if name != SCRATCH and not is_stage:
                why = "could be any image in the engine; a base's trigger may copy from the number of a stage only"
                yield Violation("image", trigger.first_line, trigger.name, f"from={name[:SHOWN_MAX_CHARS]} {why}")

    def base(self, base: Base) -> Iterator[Violation]:
        """Judge an image that a build starts from."""
        reference = base.reference
        name = _canonical(reference)
        if self._require_digest and not reference.digest:
            reason = f"image {name} must be pinned by its digest: image@sha256:…"
            yield Violation("digest", base.line, base.instruction, reason)
        if not self._images.allows(name):
            yield Violation("image", base.line, base.instruction, f"image {name} is not allowed")
        try:
            refuse_reserved("base image", reference)
        except Permanent as fault:
            yield Violation("reserved", base.line, base.instruction, fault.message)

    def _allows_frontend(self, image: str) -> bool:
        try:
            return self._frontends.allows(_canonical(ImageReference.parse(image)))
        except Permanent:
            return False

    def _reasons(self, one: Instruction, steps: Steps) -> Iterator[tuple[str, str]]:
        if not self._instructions.allows(one.name):
            yield "instruction", "is not allowed"
        for flag in one.flags:
            if not _allows(self._flags, f"{one.name} {spelled_out(flag)}"):
                yield "flag", f"{flag[:SHOWN_MAX_CHARS]} is not allowed{_hint(flag)}"
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
            shown = repr(source.word[:SHOWN_MAX_CHARS])
            if source.is_open and not self._add_urls.allows_whatever_follows(source.text):
                hint = "begin what is in the context with ./"
                yield "add-url", f"source {shown} could become a URL that is not allowed; {hint}"
            elif not source.is_open and not self._add_urls.allows(source.text):
                yield "add-url", f"source {shown} is not allowed"


def _allows(flags: AllowList, text: str) -> bool:
    """Engines expand variables and remove quotes in most values; of such a value only the beginning is known."""
    special = UNPLAIN.search(text)
    return flags.allows_whatever_follows(text[: special.start()]) if special else flags.allows(text)


def _hint(flag: str) -> str:
    return ", for what a variable or quote in it may become is not known" if UNPLAIN.search(flag) else ""


def _canonical(reference: ImageReference) -> str:
    """`host/path@digest`, or `host/path:tag`: engines overlook a tag beside a digest."""
    rest = f"@{reference.digest}" if reference.digest else f":{reference.tag}"
    return f"{reference.host}/{reference.path}{rest}"
