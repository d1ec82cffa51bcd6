"""A build's progress as text, in the manner of the docker CLI's plain output: `#5 [2/3] RUN make`, `#5 gcc -c …`.

Steps may run side by side, so each line carries its step's number; a line that arrives in pieces is put together, but
not beyond `LINE_MAX_CHARS`. Of a line that a program overwrites (`10%\r20%\r…`) a log shows what stood there last.
"""

from imagejobd.engine.stream import BuildEvent, BuildWarning, Output, Step

# A longer line without an end is shown in parts as they come.
LINE_MAX_CHARS = 16 * 1024


class Console:
    """Turns build events into text, a whole number of lines at a time."""

    def __init__(self) -> None:
        self._partial: dict[int, str] = {}

    def render(self, event: BuildEvent) -> str:
        """The text that an event adds to the log; empty for what a log does not show."""
        match event:
            case Output():
                return self._output(event)
            case Step():
                rest = self._partial.pop(event.number, "")
                return (_prefixed(event.number, rest) if rest else "") + _step(event)
            case BuildWarning():
                return f"WARNING: {event.text}\n"
            case _:
                return ""

    def _output(self, event: Output) -> str:
        text = self._partial.pop(event.step, "") + event.text
        whole, newline, rest = text.rpartition("\n")
        rest = _without_overwritten(rest)
        if len(rest) > LINE_MAX_CHARS:
            whole, newline, rest = f"{whole}{newline}{rest}", "\n", ""
        if rest:
            self._partial[event.step] = rest
        return _prefixed(event.step, whole) if newline else ""


def _without_overwritten(line: str) -> str:
    """What a terminal would show of the line; a `\\r` at its end stays, because it may belong to `\\r\\n`."""
    return line[line.rstrip("\r").rfind("\r") + 1 :]


def _prefixed(step: int, lines: str) -> str:
    if "\r" in lines:
        lines = "\n".join(_without_overwritten(line).rstrip("\r") for line in lines.split("\n"))
    mark = f"#{step} "
    return mark + lines.replace("\n", f"\n{mark}") + "\n"


def _step(step: Step) -> str:
    took = f" {step.seconds:.1f}s" if step.seconds is not None else ""
    match step.state:
        case "started":
            return f"#{step.number} {step.name}\n"
        case "done":
            return f"#{step.number} DONE{took}\n"
        case "failed":
            return f"#{step.number} ERROR: {step.error}\n"
        case other:
            return f"#{step.number} {other.upper()}\n"
