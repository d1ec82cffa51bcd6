"""Targets that are down: one that failed for two images in a row is not asked about the others in this attempt.

Every knock at a dead registry lasts for some connect time-outs, and would keep the images behind it waiting.
"""

from imagejobd.model.errors import ErrorCode, Fault, Temporary

IN_A_ROW_MAX = 2


class Outages:
    """What the images of one attempt found out about its targets."""

    def __init__(self) -> None:
        self._in_a_row: dict[int, int] = {}
        self._errors: dict[int, str] = {}

    def note(self, target: int, fault: Fault | None, error: str | None) -> str | None:
        """A copy that was tried has ended; `error` is what is told of its `fault`. Returns it where that is news: the
        target is found to be down by this one, for the first time."""
        if error is None or not _is_outage(fault):
            self._in_a_row.pop(target, None)
            return None
        self._in_a_row[target] = self._in_a_row.get(target, 0) + 1
        if self._in_a_row[target] < IN_A_ROW_MAX:
            return None
        was_known = target in self._errors
        self._errors[target] = error
        return None if was_known else error

    def error(self, target: int) -> str | None:
        """Why the target is not worth another try now; None where it is."""
        return self._errors[target] if self._in_a_row.get(target, 0) >= IN_A_ROW_MAX else None


def _is_outage(fault: Fault | None) -> bool:
    return isinstance(fault, Temporary) and fault.code is ErrorCode.REGISTRY_UNAVAILABLE
