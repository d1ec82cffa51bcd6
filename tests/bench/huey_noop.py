"""The no-op task as a huey application, for its producer (bench.huey_jobs) and its consumer alike.

`fsync=True` makes huey's own choice of WAL as durable as this project's: synchronous=FULL.
"""

import os
from pathlib import Path

from huey import SqliteHuey

FOLDER_VARIABLE = "BENCH_HUEY_FOLDER"

huey = SqliteHuey("bench", filename=Path(os.environ[FOLDER_VARIABLE]) / "huey.db", fsync=True, results=False)


@huey.task()
def noop(number: int) -> None:
    """Do nothing."""
