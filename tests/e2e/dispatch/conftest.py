"""A box for the session's tests of dispatching; every module must leave the engine as it found it."""

from collections.abc import Iterator

import pytest

from harness.box import nothing_stays
from harness.dispatch_box import DispatchBox, Tenant
from harness.engine import PrivateEngine
from harness.services import require


@pytest.fixture(scope="module", autouse=True)
def _nothing_is_left(engine: PrivateEngine) -> Iterator[None]:
    """Nothing of any job."""
    require("skopeo")
    with nothing_stays(engine):
        yield


@pytest.fixture(scope="module")
def box(engine: PrivateEngine) -> Iterator[DispatchBox]:
    """A daemon that tests may neither stop nor overload."""
    with DispatchBox(engine, limits={"dispatch": 3}) as made:
        yield made
        made.check_healthy()


@pytest.fixture
def tenant(box: DispatchBox) -> Tenant:
    return box.tenant(1)
