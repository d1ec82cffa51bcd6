"""Which bounds an operator may set."""

from typing import Any

import msgspec
import pytest

from imagejobd.jobs.run import RunSettings


@pytest.mark.parametrize(
    "table",
    [{"memory_bytes": 1024**2}, {"cpus": 0.001}, {"pids": 1}, {"files": 63}],
    ids=lambda table: next(iter(table)),
)
def test_limits_under_which_nothing_runs_are_refused(table: dict[str, Any]) -> None:
    """At start, naming the key, rather than by each job."""
    with pytest.raises(msgspec.ValidationError, match=rf"\$\.{next(iter(table))}"):
        msgspec.convert(table, RunSettings)
