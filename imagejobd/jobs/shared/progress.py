"""How much of its work a job has done, for people: of a build in steps of its Dockerfile.

Both builders name a step by its stage and its place there: `[2/5] RUN …`, `[tools 1/3] FROM …`. All else that BuildKit
does has no such number. A stage is known with its first step, so the number of all may grow; the percentage does not
fall.
"""

import re
from typing import Any

from imagejobd.engine.stream import Step

# At its start: what a user writes comes behind.
_STEP = re.compile(r"\[(?:([^\[\]]*) )?(\d{1,6})/(\d{1,6})\] ")


class StepCount:
    """The steps of one build so far."""

    def __init__(self) -> None:
        self._totals: dict[str, int] = {}
        self._begun: set[tuple[str, int]] = set()
        self._ended: set[tuple[str, int]] = set()
        self._percent = 0

    def count(self, step: Step) -> dict[str, Any]:
        """What is new of a job's progress: of `steps`, `step` have begun, `step_name` is the one that began last, and
        `percent` says how many have ended."""
        name = {"step_name": step.name} if step.state == "started" else {}
        match = _STEP.match(step.name)
        if match is None:
            return name
        stage, number = match[1] or "", int(match[2])
        self._totals[stage] = int(match[3])
        self._begun.add((stage, number))
        if step.state in ("done", "cached"):
            self._ended.add((stage, number))
        steps = sum(self._totals.values())
        self._percent = max(self._percent, percent(len(self._ended), steps) or 0)
        return name | {"step": len(self._begun), "steps": steps, "percent": self._percent}


def percent(done: float, total: float | None) -> int | None:
    """A whole number from 0 to 100; None where it is not known how much there is."""
    return min(100, int(100 * done / total)) if total else None
