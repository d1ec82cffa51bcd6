"""What a build may not ask of the builder: another frontend, and what only a client session could give.

`# syntax=image` makes BuildKit pull an image and let it translate the file, so nothing that was checked here would be
what is built. Engines differ in which forms they see; every form that one of them sees is refused. Secret and ssh
mounts are served by the client of a build session, and this service opens none.
"""

import re
from collections.abc import Iterable

from imagejobd.model.dockerfile.bases import mounts
from imagejobd.model.dockerfile.instruction import Dockerfile
from imagejobd.model.dockerfile.source import BOM, at_line
from imagejobd.model.dockerfile.words import SPACES
from imagejobd.model.errors import ErrorCode, Permanent

SESSION_MOUNTS = frozenset({"secret", "ssh"})
RESERVED_ARG_PREFIX = "BUILDKIT_"

_DIRECTIVE = re.compile(r"(?:#|//)\s*([a-zA-Z][a-zA-Z0-9]*)\s*=\s*\S")


def check_frontend(text: str) -> None:
    """Raise `Permanent(policy)` when `text` chooses its own frontend.

    Covers `# syntax=` and `// syntax=` among the leading directives, also after a byte order mark or a shebang, and
    a JSON document. A `# syntax=` further down is a comment to every engine and stays one here.
    """
    lines = text.removeprefix(BOM).split("\n")
    start = 1 if lines[0].startswith("#!") else 0
    if "\n".join(lines[start:]).lstrip(SPACES + BOM).startswith("{"):
        raise _swap(start + 1, "a JSON document")
    for number, line in enumerate(lines[start:], start + 1):
        match = _DIRECTIVE.match(line.lstrip(SPACES + BOM))
        if not match:
            return
        if match.group(1).lower() == "syntax":
            raise _swap(number, f"{line.strip(SPACES)[:128]!r}")


def check_build_args(names: Iterable[str]) -> None:
    """Raise `Permanent(policy)` for a build arg that steers the builder itself, such as `BUILDKIT_SYNTAX`."""
    for name in names:
        if name.startswith(RESERVED_ARG_PREFIX):
            raise Permanent(
                ErrorCode.POLICY,
                f"build arg {name[:64]!r} is not allowed: names with {RESERVED_ARG_PREFIX} in front steer the builder",
            )


def check_mounts(dockerfile: Dockerfile) -> None:
    """Raise `Permanent(policy)` for `RUN --mount=type=secret` and `type=ssh`, ONBUILD included."""
    for instruction in dockerfile.instructions:
        run = instruction.trigger or instruction
        kinds = {mount.get("type", "") for mount in mounts(run)} if run.name == "RUN" else set()
        for kind in sorted(kinds & SESSION_MOUNTS):
            why = "needs a build session, which this service does not offer; pass what may be seen as a build arg"
            raise Permanent(ErrorCode.POLICY, at_line(instruction.first_line, f"--mount=type={kind} {why}").message)


def _swap(line: int, what: str) -> Permanent:
    why = "would have another frontend read this file, which is not allowed; remove it, the engine's own one is used"
    return Permanent(ErrorCode.POLICY, at_line(line, f"{what} {why}").message)
