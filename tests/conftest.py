"""The peers that many tests share: one engine, one open and one private registry for the whole session."""

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Makes the assertions of the harness as telling as a test's own.
pytest.register_assert_rewrite("harness")

from harness.base_image import load_busybox  # noqa: E402
from harness.daemon import Daemon, clean_environment  # noqa: E402
from harness.engine import PrivateEngine  # noqa: E402
from harness.forked import Template  # noqa: E402
from harness.proxy import FaultProxy  # noqa: E402
from harness.registry import Registry  # noqa: E402
from harness.services import require  # noqa: E402

# No test speaks to the outside world, and reading the machine's authorities takes longer than most tests do. OpenSSL
# and Go both obey this.
os.environ["SSL_CERT_FILE"] = os.devnull
# A shell has its background jobs ignore Ctrl-C, and so all that they start; what is started here is to hear it.
signal.signal(signal.SIGINT, signal.default_int_handler)

TESTS = Path(__file__).parent

# A machine that is busy fails nothing: neither a time for each example, nor one for the making of examples.
_PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
# `HYPOTHESIS_PROFILE=fuzz` looks for new examples, and keeps those that fail; else each run tries the same ones.
settings.register_profile("same", _PATIENT, derandomize=True, database=None)
settings.register_profile("fuzz", _PATIENT)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


# The folders with the longest tests. They come first where files are shared out among processes, so that no process is
# left alone with a long one at the end.
LONG_FIRST = ("systemd", "soak", "faults", "e2e", "docs", "page", "hostile", "engine", "api", "jobs")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        ranks = {name: rank for rank, name in enumerate(LONG_FIRST)}
        items.sort(key=lambda item: ranks.get(item.path.relative_to(TESTS).parts[0], len(ranks)))


@pytest.fixture(scope="session", autouse=True)
def _template() -> Iterator[None]:
    """What forks daemons, which demo, soak and benchmarks execute as users do."""
    with closing(Template(clean_environment())) as Daemon.template:
        yield
    Daemon.template = None


@pytest.fixture(scope="session")
def engine() -> Iterator[PrivateEngine]:
    """A Docker Engine of our own that has the base image `harness.base_image.BUSYBOX`."""
    require("dockerd", "docker", "busybox")
    with PrivateEngine() as engine:
        load_busybox(engine)
        yield engine


@pytest.fixture(scope="session")
def registry() -> Iterator[Registry]:
    """A registry on loopback that lets everybody in over plain HTTP."""
    require("docker-registry")
    with Registry() as registry:
        yield registry


@pytest.fixture
def proxy(registry: Registry) -> Iterator[FaultProxy]:
    """A proxy before the open registry, which misbehaves as a test wants it."""
    with FaultProxy(registry.host) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def private_registry() -> Iterator[Registry]:
    """A registry on loopback that lets in `harness.registry.USERNAME` with `PASSWORD`."""
    require("docker-registry")
    with Registry(htpasswd=True) as registry:
        yield registry
