"""A box for the tests of a module; those that stop it or set it up in another way make their own."""

from collections.abc import Iterator

import pytest

from harness.build_box import BuildBox
from harness.engine import PrivateEngine


@pytest.fixture(scope="module")
def box(engine: PrivateEngine) -> Iterator[BuildBox]:
    """A daemon that tests may neither stop nor overload."""
    yield from _running(engine, "buildkit")


@pytest.fixture(scope="module", params=["buildkit", "classic"])
def either_box(request: pytest.FixtureRequest, engine: PrivateEngine) -> Iterator[BuildBox]:
    """As `box`, for each of the engine's builders."""
    yield from _running(engine, request.param)


def _running(engine: PrivateEngine, builder: str) -> Iterator[BuildBox]:
    with BuildBox(engine, builder=builder) as made:
        yield made
        made.check_clean()
        made.check_healthy()
