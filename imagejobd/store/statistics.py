"""What monitoring is told of the store: how the queue stands, what has happened, and how commits do."""

from collections.abc import Mapping

import msgspec

from imagejobd.model.histogram import Histogram

# Ranges of the histograms of commits.
COMMIT_REQUESTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
COMMIT_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Stats(msgspec.Struct, frozen=True):
    """Counts now, by kind; `wal_bytes` grows when a reader holds the log back."""

    queued: Mapping[str, int]
    running: Mapping[str, int]
    wal_bytes: int


class KindStats(msgspec.Struct, frozen=True):
    """The jobs of one kind that have not ended. `delayed` ones wait for their time or for a peer; `suspects` are those
    of the queue that have to run alone. The ready job that waits longest could have started at `oldest_due_ms`."""

    ready: int = 0
    delayed: int = 0
    running: int = 0
    suspects: int = 0
    oldest_due_ms: int | None = None
    is_paused: bool = False


class Activity(msgspec.Struct, frozen=True):
    """Things of one sort that happened to jobs of one kind: `count` of them, each lasting `duration_ms`.

    `event` is a `Transition`, `enqueue` or `leave_phase`. The first claim of a job lasted from when that was due, its
    end from that claim, a phase from its start; all else has no duration. With `is_crash` the daemon had died before.
    """

    kind: str
    event: str
    phase: str | None
    code: str | None
    is_crash: bool
    duration_ms: int | None
    count: int


class Commits:
    """Of each commit since the start: how many requests it took, and its seconds from BEGIN to the end of COMMIT."""

    def __init__(self) -> None:
        self.requests = Histogram(COMMIT_REQUESTS)
        self.seconds = Histogram(COMMIT_SECONDS)

    def add(self, requests: int, seconds: float) -> None:
        self.requests.add(requests)
        self.seconds.add(seconds)
