"""What a build, pull or push tells while it goes on, the same for both builders. How it looks is the reader's own."""

from typing import Literal

import msgspec

StepState = Literal["started", "done", "cached", "failed", "cancelled"]
OutputStream = Literal["out", "err"]


class Step(msgspec.Struct, frozen=True):
    """A step began or ended. Each step has one `started` and at most one other state after it.

    `number` counts from 1 in the order in which steps begin, as `docker build --progress=plain` shows them. `seconds`
    is how long it took, where that is known. `cancelled` steps were stopped because another one failed.
    """

    number: int
    name: str
    state: StepState
    seconds: float | None = None
    error: str | None = None


class Output(msgspec.Struct, frozen=True, gc=False):
    """Text that a step printed: any number of lines, the last of which may be unfinished."""

    step: int
    stream: OutputStream
    text: str


class Transfer(msgspec.Struct, frozen=True, gc=False):
    """How far a part has come: a context on its way in, a layer on its way out. Bytes; `total` 0 where unknown.

    `step` is the build step it belongs to, 0 in a pull or push.
    """

    step: int
    name: str
    status: str
    current: int
    total: int


class BuildWarning(msgspec.Struct, frozen=True):
    """A remark that does not fail the build. `step` is 0 when it belongs to none."""

    step: int
    text: str


class Built(msgspec.Struct, frozen=True):
    """The build succeeded: `image_id` is `sha256:…`, the id in the engine, no registry digest."""

    image_id: str


BuildEvent = Step | Output | Transfer | BuildWarning | Built
