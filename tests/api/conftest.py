"""Daemons to speak to: one with an engine and registries, one that has no engine, and the bare application."""

import base64
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from bare_app import BareApp, bare_app
from calls import context_tar
from signing import DOCUMENT_SECRET, written

from harness.daemon import Daemon
from harness.engine import PrivateEngine
from harness.services import require


@pytest.fixture(scope="module")
def daemon(engine: PrivateEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that builds on the session's engine, and knows the secret of the dispatcher's document."""
    require("curl")
    secret_file = written(tmp_path_factory.mktemp("auth"), "jwt.secret", DOCUMENT_SECRET)
    with Daemon({"auth": {"jwt_secret_file": secret_file}}, engine_host=engine.host) as daemon:
        yield daemon


@pytest.fixture(scope="session")
def lone_daemon() -> Iterator[Daemon]:
    """A daemon whose engine is down: it takes jobs in and ends none of them soon."""
    require("curl")
    with Daemon({"server": {"body_idle_s": 2.0}, "limits": {"retry_first_s": 600.0, "retry_max_s": 600.0}}) as daemon:
        yield daemon


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[BareApp]:
    async with bare_app(tmp_path) as app:
        yield app


@pytest.fixture
def context() -> bytes:
    """A small build context."""
    return context_tar()


@pytest.fixture
def context_base64(context: bytes) -> str:
    return base64.b64encode(context).decode()
