"""The classic builder's progress made into events. It speaks prose: `Step 2/4 : RUN …`, ` ---> Running in …`.

What a RUN prints goes through the same stream as what the builder says. A step line counts only as the builder sends it
(a message of its own without line end, the next number of the same total), so that a program's output can at worst
mislabel its own lines. No I/O happens here.
"""

import re
import time
from collections.abc import Callable, Iterable, Iterator

from imagejobd.engine.events import BuildEvent, Output, OutputStream, Step, StepState
from imagejobd.engine.messages import Message, built_image, transfer
from imagejobd.engine.tail import Tail

_STEP = re.compile(r"Step (\d{1,6})/(\d{1,6}) : (.*)", re.DOTALL)
_CHATTER = re.compile(r" ---> .*\n|Removing intermediate container [0-9a-f]{12}\n|Successfully (?:built|tagged) \S+\n")
_RUNNING = re.compile(r" ---> Running in ([0-9a-f]{12})\n")
_IMAGE = re.compile(r" ---> ([0-9a-f]{12})\n")
_CACHED = " ---> Using cache\n"
# The engine wraps each piece of a RUN's stderr in red.
_RED, _PLAIN = "\x1b[91m", "\x1b[0m"
_CHATTER_STARTS = (" ---> ", "Removing", "Successfully")


class ClassicProgress:
    """Reads the messages of one build. `container` is the short id of the one that the current step runs in, `stages`
    are those of the newest image of each stage, the base at first.

    The engine gives no times: `clock` (seconds, monotonic) is read as a step's lines arrive.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.container = ""
        self.stages: list[str] = []
        self._image_id = ""
        self._clock = clock
        self._number = 0
        self._total = 0
        self._name = ""
        self._began = 0.0
        self._is_open = False
        self._is_cached = False
        self._ends_header = False
        self._tail = Tail()
        self._pieces: list[str] = []
        self._stream: OutputStream = "out"

    @property
    def image_id(self) -> str:
        """The result's id; empty before the last step. The engine tells an id at the end of every stage."""
        return self._image_id if self._number == self._total else ""

    def read(self, batch: Iterable[Message]) -> Iterator[BuildEvent]:
        for message in batch:
            if message.stream:
                yield from self._read_text(message.stream)
            elif message.aux:
                self._image_id = built_image(message)
            elif message.status:
                yield transfer(message, self._number)
        yield from self._flush()
        if self.image_id:
            yield from self._end("done")

    def last_words(self) -> tuple[str, str] | None:
        """The name and last lines of the step that was going on, when it had printed something."""
        lines = self._tail.lines()
        return (f"step {self._number} ({self._shown_name})", lines) if lines else None

    def fail(self, error: str) -> Iterator[BuildEvent]:
        """End the step that was going on when the build failed."""
        yield from self._end("failed", error)

    def _read_text(self, text: str) -> Iterator[BuildEvent]:
        if self._ends_header:
            # The line end of `Step 1/4 : …` is a message of its own.
            self._ends_header = False
            if text == "\n":
                return
        if text.startswith("Step ") and (match := self._next_step(text)):
            yield from self._flush()
            yield from self._end("done")
            yield self._begin(match)
        elif text == _CACHED:
            self._is_cached = True
        else:
            # The builder names the container before it starts it: what looks the same later is a program's output.
            if not self.container and (running := _RUNNING.fullmatch(text)):
                self.container = running[1]
            elif self.stages and (image := _IMAGE.fullmatch(text)):
                self.stages[-1] = image[1]
            yield from self._print(text)

    def _print(self, text: str) -> Iterator[BuildEvent]:
        stream: OutputStream = "out"
        if text.startswith(_RED):
            stream, text = "err", text.removeprefix(_RED).removesuffix(_PLAIN)
        if stream != self._stream:
            yield from self._flush()
            self._stream = stream
        self._pieces.append(text)
        if not (text.startswith(_CHATTER_STARTS) and _CHATTER.fullmatch(text)):
            self._tail.add(text)

    def _next_step(self, text: str) -> re.Match[str] | None:
        match = _STEP.fullmatch(text)
        if match is None or text.endswith("\n") or int(match[1]) != self._number + 1:
            return None
        return match if self._total in (0, int(match[2])) else None

    def _begin(self, match: re.Match[str]) -> Step:
        self._number, self._total, self._name = int(match[1]), int(match[2]), match[3]
        self._began, self._image_id, self._tail = self._clock(), "", Tail()
        self.container = ""
        if self._name.upper().startswith("FROM "):
            self.stages.append("")
        self._is_open, self._is_cached, self._ends_header = True, False, True
        return Step(self._number, self._shown_name, "started")

    def _end(self, state: StepState, error: str | None = None) -> Iterator[BuildEvent]:
        if not self._is_open:
            return
        self._is_open = False
        if state == "done" and self._is_cached:
            state = "cached"
        yield Step(self._number, self._shown_name, state, max(0.0, self._clock() - self._began), error)

    @property
    def _shown_name(self) -> str:
        return f"[{self._number}/{self._total}] {self._name}"

    def _flush(self) -> Iterator[BuildEvent]:
        if self._pieces:
            yield Output(self._number, self._stream, "".join(self._pieces))
            self._pieces = []
