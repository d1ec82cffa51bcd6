"""Wall time as the project counts it."""

import time


def now_ms() -> int:
    """Milliseconds since the epoch, UTC. Passed in wherever a test wants its own time."""
    return time.time_ns() // 1_000_000
