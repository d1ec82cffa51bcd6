"""A box for the tests of a module; those that stop it or set it up in another way make their own."""

from collections.abc import Iterator

import pytest

from harness.build_box import BuildBox
from harness.engine import PrivateEngine


@pytest.fixture(scope="module")
def box(engine: PrivateEngine) -> Iterator[BuildBox]:
    """A daemon that tests may neither stop nor overload."""
    with BuildBox(engine) as made:
        yield made
        made.check_clean()
        made.check_healthy()
