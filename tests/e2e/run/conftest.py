"""A box for the session's tests of runs; every module must leave the engine as it found it."""

from collections.abc import Iterator

import pytest

from harness.box import nothing_stays
from harness.engine import PrivateEngine
from harness.run_box import RunBox


@pytest.fixture(scope="module", autouse=True)
def _nothing_is_left(engine: PrivateEngine) -> Iterator[None]:
    """Nothing of any job."""
    with nothing_stays(engine):
        yield


@pytest.fixture(scope="module")
def box(engine: PrivateEngine) -> Iterator[RunBox]:
    """A daemon that tests may neither stop nor overload."""
    with RunBox(engine, limits={"run": 3}) as made:
        yield made
        made.check_healthy()
