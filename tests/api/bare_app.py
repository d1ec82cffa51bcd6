"""The application alone, in the test's own loop: a real store and kind, no runner, so that jobs stay queued."""

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from harness.building import image_builder
from imagejobd.api.app import create_app
from imagejobd.api.auth import Authentication
from imagejobd.api.intake import Intake, QueueBounds, Server
from imagejobd.api.keys import Auth
from imagejobd.api.metrics import Metrics
from imagejobd.dockerfile.policy import Policy
from imagejobd.engine.client import Engine
from imagejobd.engine.settings import EngineSettings
from imagejobd.jobs.build import BuildKind, BuildSettings
from imagejobd.jobs.dispatch import DispatchKind, DispatchSettings
from imagejobd.jobs.distribute.kind import DistributeKind
from imagejobd.jobs.distribute.spec import DistributeSettings
from imagejobd.jobs.run import RunKind, RunSettings
from imagejobd.model.egress import Egress
from imagejobd.model.job import Claim
from imagejobd.model.kind import JobKind, by_name
from imagejobd.model.resolver import Resolver
from imagejobd.model.traffic import Traffic
from imagejobd.registry.client import RegistryClient
from imagejobd.registry.copy.transfer import Copier
from imagejobd.runner.gate import EngineGate
from imagejobd.store.blobs import BlobStore
from imagejobd.store.protocol import CRASHES_MAX, Capacity
from imagejobd.store.sqlite.store import SqliteStore
from imagejobd.store.vault import KEY_BYTES, Vault

MINIMAL: dict[str, Any] = {"kind": "build", "spec": {"image": "example.org/app", "dockerfile": "FROM scratch\n"}}
# Bounds that a test can reach.
SERVER = Server(json_max_bytes=256 * 1024, body_idle_s=2.0)


class BareApp:
    """A client of the application and what lies behind it."""

    def __init__(
        self,
        folder: Path,
        client: aiohttp.ClientSession,
        port: int,
        intake: Intake,
        blobs: BlobStore,
        store: SqliteStore,
        routes: Collection[web.AbstractRoute],
    ) -> None:
        self.folder = folder
        self.client = client
        self.port = port
        self.intake = intake
        self.blobs = blobs
        self.store = store
        self.routes = routes

    async def submit(self, **changes: Any) -> dict[str, Any]:
        """A job that was accepted."""
        async with self.client.post("/api/v2/jobs", json=MINIMAL | changes) as response:
            assert response.status in (200, 201), await response.text()
            job: dict[str, Any] = await response.json()
            return job

    async def claimed(self, kind: str = "build") -> Claim:
        """The next job of a kind, as a worker takes it."""
        room = Capacity(free={kind: 1}, per_tenant_running=10)
        [claim] = await self.store.claim("worker", room)
        return claim


# What the daemon knows of its engine.
ENGINE_AWAY = "waiting for the Docker Engine since 2026-01-01T00:00:00Z: there is none"


@asynccontextmanager
async def bare_app(
    folder: Path,
    *,
    queue_max: int = 1000,
    settings: Server = SERVER,
    kinds: Mapping[str, JobKind] | None = None,
    policy: Policy | None = None,
    auth: Auth | None = None,
) -> AsyncIterator[BareApp]:
    """The application on a store in `folder`, with an engine that does not exist; `kinds` are further ones."""
    bounds = BuildSettings(upload_max_bytes=1024 * 1024, context_max_bytes=4 * 1024 * 1024)
    async with (
        SqliteStore.open(folder / "imagejobd.db", vault=Vault(b"k" * KEY_BYTES)) as store,
        Engine(EngineSettings(host=f"unix://{folder}/no-engine.sock")) as engine,
        RegistryClient({}, Egress()) as registry,
    ):
        blobs = BlobStore(folder)
        builder = image_builder(engine, registry, blobs, policy=policy)
        own = by_name(
            BuildKind(builder, Egress(), Resolver(), bounds),
            RunKind(builder, RunSettings()),
            DispatchKind(builder, DispatchSettings()),
            DistributeKind(registry, _copier(folder), DistributeSettings()),
        )
        known = own | dict(kinds or {})
        intake = Intake(store, known, settings, bounds=QueueBounds(queue_max), slots=dict.fromkeys(known, 2))
        metrics = Metrics(
            store,
            store.commits,
            since_event=0,
            slots=dict.fromkeys(known, 2),
            queue_max=queue_max,
            crashes_max=CRASHES_MAX,
            engine=EngineGate(engine.probe),
            circuits=registry.circuits,
            traffic=Traffic(),
            state_dir=folder,
        )
        app = create_app(intake, {"engine": lambda: ENGINE_AWAY}, Authentication(auth or Auth()), metrics=metrics)
        async with _served(app) as port, aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client:
            yield BareApp(folder, client, port, intake, blobs, store, app.router.routes())


def _copier(folder: Path) -> Copier:
    """Nothing is ever copied here."""
    settings = DistributeSettings()
    return Copier(
        lambda: nullcontext(folder / "spool-file"),
        streams_max=settings.streams_max,
        window_bytes=settings.window_bytes,
        spool_max_bytes=settings.spool_max_bytes,
    )


@asynccontextmanager
async def _served(app: web.Application) -> AsyncIterator[int]:
    """As the daemon serves it: packed bodies stay packed, and handlers are not cancelled when a client goes."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, auto_decompress=False)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port: int = runner.addresses[0][1]
        yield port
    finally:
        await runner.cleanup()
