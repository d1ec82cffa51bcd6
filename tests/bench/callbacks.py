"""`python -m bench.callbacks REPORT COMMAND…`: imagejobd's own command, with every callback of its event loop timed.

The loop is asyncio's own instead of uvloop, whose callbacks cannot be reached from Python: what it calls is the same.
SIGUSR1 writes what was measured since the last one to the file REPORT, as JSON, and begins anew.
"""

import asyncio
import heapq
import json
import os
import signal
import sys
import time
from array import array
from asyncio import events
from pathlib import Path

import uvloop

from imagejobd.cli import main

# Shorter callbacks are not asked how long they waited for a processor.
SHORT_S = 0.001
SLOWEST = 5
SCHEDSTAT_MAX_BYTES = 64


class Callbacks:
    """How long callbacks took, without the time in which their thread was ready to run and had no processor."""

    def __init__(self) -> None:
        self._schedstat = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
        self._run = events.Handle._run
        self._durations_s = array("d")
        self._slowest: list[tuple[float, float, str]] = []

    def run(self, handle: events.Handle) -> None:
        """In the place of `Handle._run`."""
        before, began = os.pread(self._schedstat, SCHEDSTAT_MAX_BYTES, 0), time.perf_counter()
        self._run(handle)
        took_s = time.perf_counter() - began
        if took_s >= SHORT_S:
            cpu_s, waited_s = _difference_s(before, os.pread(self._schedstat, SCHEDSTAT_MAX_BYTES, 0))
            took_s -= waited_s
            self._slowest = heapq.nlargest(SLOWEST, [*self._slowest, (took_s, cpu_s, _name(handle))])
        self._durations_s.append(took_s)

    def report(self) -> dict[str, object]:
        """What was measured since the last report; of the slowest also the part that was spent on a processor."""
        durations_s, self._durations_s = sorted(self._durations_s), array("d")
        slowest, self._slowest = self._slowest, []
        return {
            "count": len(durations_s),
            "p999_ms": durations_s[int(len(durations_s) * 0.999)] * 1000,
            "slowest": [(took_s * 1000, cpu_s * 1000, name) for took_s, cpu_s, name in slowest],
        }


def _difference_s(before: bytes, after: bytes) -> tuple[float, float]:
    """Seconds on a processor and on the run queue, between two readings (Documentation/scheduler/sched-stats.rst)."""
    numbers = zip(before.split(), after.split(), strict=True)
    cpu_s, waited_s, _ = ((int(later) - int(earlier)) / 1e9 for earlier, later in numbers)
    return cpu_s, waited_s


def _name(handle: events.Handle) -> str:
    """What was called; of a task its coroutine, and the one in which it waits now."""
    callback = handle._callback
    task = getattr(callback, "__self__", None)
    if not isinstance(task, asyncio.Task):
        return getattr(callback, "__qualname__", repr(callback))
    outer = inner = task.get_coro()
    while hasattr(awaited := getattr(inner, "cr_await", None), "cr_await"):
        inner = awaited
    return " … ".join(dict.fromkeys([outer.__qualname__, inner.__qualname__]))


def _report_on_signal(callbacks: Callbacks, report_file: Path) -> None:
    def write(*_: object) -> None:
        part = report_file.with_suffix(".part")
        part.write_text(json.dumps(callbacks.report()))
        part.rename(report_file)

    signal.signal(signal.SIGUSR1, write)


if __name__ == "__main__":
    callbacks = Callbacks()
    events.Handle._run = lambda handle: callbacks.run(handle)
    uvloop.new_event_loop = asyncio.new_event_loop
    _report_on_signal(callbacks, Path(sys.argv[1]))
    main(args=sys.argv[2:], prog_name="imagejobd")
