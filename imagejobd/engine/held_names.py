"""The literal names of a build's bases: told to people as they wrote them, and the only ones that it may resolve.

The Dockerfile that is sent names nothing else, so an image of another name means that the engine has read it in a way
of its own. BuildKit tells each image that it resolves as a step before it uses it.

Where two builds at once start from one and the same image, BuildKit (from 23 on) does that once, and tells both of it
by the name that one of them has given it.
"""

import re
from collections.abc import Mapping

import msgspec

from imagejobd.engine.events import BuildEvent, Step
from imagejobd.model.errors import ErrorCode, Permanent
from imagejobd.model.reserved import HELD_PATTERN

_HUB = "docker.io/"
# No text that was judged can name what some build holds a base under (`bases.py`).
_ANY_HELD = re.compile(rf"{HELD_PATTERN}(?:@sha256:[0-9a-f]{{64}})?")
_OF_ANOTHER_BUILD = "a base of this build"
# `[internal] load metadata for x`, `[stage 1/2] FROM x@sha256:…`, `FROM x` and `resolve image config for x`, which
# fetches a frontend. What a user writes stands behind the bracket and the name of an instruction.
_RESOLVED = re.compile(
    r"\[internal\] load metadata for (?P<metadata>\S+)|\[(?:[^\]]* )?\d+/\d+\] FROM (?P<stage>\S+).*"
    r"|(?:\[[^\]]*\] )?FROM (?P<image>\S+).*|resolve image config for (?P<frontend>\S+)",
    re.DOTALL,
)


class HeldNames:
    """`names` are the literal ones, each with what the user calls it."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names
        literal = "|".join(map(re.escape, names))
        self._pattern = re.compile(rf"(?:docker\.io/)?({literal})(?:@sha256:[0-9a-f]{{64}})?") if names else None

    def check(self, event: BuildEvent) -> None:
        """Raise `Permanent(policy)` for a step that resolves an image which is not held."""
        match = _RESOLVED.fullmatch(event.name) if isinstance(event, Step) else None
        if match is None:
            return
        image = next(filter(None, match.groups()))
        name = image.removeprefix("docker-image://").removeprefix(_HUB).partition("@")[0]
        # What it shares it has resolved for this build, by the name here, in a step before.
        is_shared = (
            match["metadata"] is None and match["frontend"] is None and re.fullmatch(HELD_PATTERN, name) is not None
        )
        if name not in self._names and not is_shared:
            raise Permanent(
                ErrorCode.POLICY, f"the engine resolves image {image[:200]}, which was not checked for this build"
            )

    def readable(self, event: BuildEvent) -> BuildEvent:
        """The event with the user's own names; what a step prints stays as it is."""
        if not isinstance(event, Step):
            return event
        error = event.error and self.replaced(event.error)
        return msgspec.structs.replace(event, name=self.replaced(event.name), error=error)

    def replaced(self, text: str) -> str:
        own = self._pattern.sub(lambda match: self._names[match.group(1)], text) if self._pattern else text
        return _ANY_HELD.sub(_OF_ANOTHER_BUILD, own)
