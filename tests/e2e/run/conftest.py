"""A box for the session's tests of runs; every module must leave the engine as it found it."""

from collections.abc import Iterator

import pytest
from run_box import RunBox, run_box

from harness.engine import PrivateEngine
from harness.holdings import holdings
from harness.waiting import until

SWEEP_TIMEOUT_S = 10.0


@pytest.fixture(scope="module", autouse=True)
def _nothing_is_left(engine: PrivateEngine) -> Iterator[None]:
    """No container, no volume (anonymous ones neither) and no image stays; a sweep may still be at it."""
    before = holdings(engine)
    yield
    until(lambda: holdings(engine) <= before, timeout_s=SWEEP_TIMEOUT_S, what=f"{holdings(engine) - before} to go")


@pytest.fixture(scope="module")
def box(engine: PrivateEngine) -> Iterator[RunBox]:
    """A daemon that tests may neither stop nor overload."""
    with run_box(engine, limits={"run": 3}) as made:
        yield made
        made.check_healthy()
