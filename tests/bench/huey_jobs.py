"""The same number of no-op tasks through huey: `python -m bench.huey_jobs FOLDER N`, with huey's own consumer.

Prints how many seconds passed from the first acceptance until the queue was empty.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# The fastest that huey was found to be on two cores: threads before processes, four before one. Its pauses of up to
# 10 s when it finds the queue empty are cut down to what does not count.
CONSUMER = ("--worker-type=thread", "--workers=4", "--delay=0.005", "--max-delay=0.02", "--quiet", "--no-periodic")
POLL_S = 0.005


def seconds_for(count: int) -> float:
    """Accept `count` tasks while the consumer works them off."""
    from bench.huey_noop import huey, noop  # opens the database that the environment names

    with _consumer():
        began = time.perf_counter()
        for number in range(count):
            noop(number)
        while huey.pending_count():
            time.sleep(POLL_S)
        return time.perf_counter() - began


@contextmanager
def _consumer() -> Iterator[None]:
    program = Path(sys.executable).with_name("huey_consumer")
    process = subprocess.Popen([program, *CONSUMER, "bench.huey_noop.huey"], stdout=sys.stderr)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    os.environ["BENCH_HUEY_FOLDER"] = sys.argv[1]
    print(seconds_for(int(sys.argv[2])))
