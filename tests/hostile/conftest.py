"""A second engine: two daemons on one would sweep away each other's bases."""

from collections.abc import Iterator

import pytest

from harness.base_image import load_busybox
from harness.engine import PrivateEngine
from harness.services import require


@pytest.fixture(scope="package")
def another_engine() -> Iterator[PrivateEngine]:
    """An engine for a daemon beside the module's own."""
    require("dockerd", "docker", "busybox")
    with PrivateEngine() as engine:
        load_busybox(engine)
        yield engine
