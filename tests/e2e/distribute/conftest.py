"""The peers of copies: a source, three targets and a daemon for the session; a repository of its own for each test."""

from collections.abc import Iterator

import pytest

from harness.distribute_box import DistributeBox, named
from harness.proxy import FaultProxy
from harness.registry import Registry
from harness.services import require


@pytest.fixture(scope="session", autouse=True)
def programs() -> None:
    require("docker-registry", "skopeo")


@pytest.fixture(scope="session")
def box() -> Iterator[DistributeBox]:
    """A daemon that tests may neither stop nor overload."""
    with DistributeBox() as made:
        yield made


@pytest.fixture(scope="session")
def origin() -> Iterator[Registry]:
    """Where images come from."""
    with Registry() as made:
        yield made


@pytest.fixture(scope="session")
def mirrors() -> Iterator[tuple[Registry, Registry, Registry]]:
    """Where images go to."""
    with Registry() as one, Registry() as two, Registry() as three:
        yield one, two, three


@pytest.fixture(scope="session")
def mirror(mirrors: tuple[Registry, Registry, Registry]) -> Registry:
    """The first of the targets."""
    return mirrors[0]


@pytest.fixture
def path(request: pytest.FixtureRequest) -> str:
    """A repository that no other test uses."""
    return f"t/{named(request.node.name)}"


@pytest.fixture
def source_proxy(origin: Registry) -> Iterator[FaultProxy]:
    """Before the source."""
    with FaultProxy(origin.host) as proxy:
        yield proxy


@pytest.fixture
def target_proxy(mirror: Registry) -> Iterator[FaultProxy]:
    """Before the first target."""
    with FaultProxy(mirror.host) as proxy:
        yield proxy
