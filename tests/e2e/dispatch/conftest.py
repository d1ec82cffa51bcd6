"""A box for the session's tests of dispatching; every module must leave the engine as it found it."""

from collections.abc import Iterator

import pytest
from dispatch_box import DispatchBox, Tenant, dispatch_box

from harness.engine import PrivateEngine
from harness.holdings import holdings
from harness.services import require
from harness.waiting import until

SWEEP_TIMEOUT_S = 10.0


@pytest.fixture(scope="module", autouse=True)
def _nothing_is_left(engine: PrivateEngine) -> Iterator[None]:
    """No container, no volume and no image stays; a sweep may still be at it."""
    require("skopeo")
    before = holdings(engine)
    yield
    until(lambda: holdings(engine) <= before, timeout_s=SWEEP_TIMEOUT_S, what=f"{holdings(engine) - before} to go")


@pytest.fixture(scope="module")
def box(engine: PrivateEngine) -> Iterator[DispatchBox]:
    """A daemon that tests may neither stop nor overload."""
    with dispatch_box(engine, limits={"dispatch": 3}) as made:
        yield made
        made.check_healthy()


@pytest.fixture
def tenant(box: DispatchBox) -> Tenant:
    return box.tenant(1)
