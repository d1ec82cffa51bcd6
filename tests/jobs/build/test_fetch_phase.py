"""The fetching phase keeps a blob from collection until the job refers to it, and no longer."""

import io
import tarfile
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from harness.building import image_builder
from imagejobd.engine.client import Engine
from imagejobd.engine.settings import EngineSettings
from imagejobd.jobs.build import BuildKind, BuildSettings, BuildSpec
from imagejobd.model.egress import Egress, EgressSettings
from imagejobd.model.errors import ErrorCode, Temporary
from imagejobd.model.resolver import Resolver
from imagejobd.registry.client import RegistryClient
from imagejobd.registry.proxies import Proxies
from imagejobd.store.blobs import BlobStore


class FetchWork:
    """As much of a `JobContext` as the phase uses; its `save` collects, then fails when `fault` is set."""

    def __init__(self, blobs: BlobStore, fault: Temporary | None) -> None:
        self.checkpoint: dict[str, Any] = {}
        self.secrets: dict[str, Any] = {}
        self.collected = 0
        self._blobs = blobs
        self._fault = fault

    @asynccontextmanager
    async def phase(self, name: str, *, timeout_s: float, waits_for: str) -> AsyncIterator[None]:
        yield

    async def save(self, *, blobs: Collection[str] = (), **values: Any) -> None:
        self.collected += await self._blobs.collect([], min_age_s=-1)
        if self._fault is not None:
            raise self._fault

    async def log(self, text: str) -> None: ...

    def progress(self, **values: Any) -> None: ...


async def test_a_dead_server_is_found_out_once(tmp_path: Path) -> None:
    """The job is told who does not answer, and the next one is not sent there again."""
    async with TestServer(web.Application()) as server:
        url, host = str(server.make_url("/c.tar")), f"127.0.0.1:{server.port}"
    egress, blobs = Egress(EgressSettings(deny=())), BlobStore(tmp_path)
    async with RegistryClient({}, egress, proxies=Proxies({})) as registry:
        builder = image_builder(Engine(EngineSettings(host="unix:///nowhere")), registry, blobs, egress=egress)
        kind = BuildKind(builder, egress, Resolver(), BuildSettings())
        known = []
        for _ in range(2):
            with pytest.raises(Temporary) as down:
                await kind.fetch_context(FetchWork(blobs, None), BuildSpec(image="app", tar_url=url))  # type: ignore[arg-type]
            assert (down.value.code, down.value.peer) == (ErrorCode.FETCH_FAILED, host)
            known.append("known from an earlier request" in down.value.message)
    assert known == [False, True]


@pytest.mark.parametrize("fault", [None, Temporary(ErrorCode.STORAGE_FULL, "full")])
async def test_the_blob_is_pinned_until_it_is_saved(tmp_path: Path, fault: Temporary | None) -> None:
    """While the checkpoint is written the blob cannot be collected; afterwards only a reference keeps it."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        member = tarfile.TarInfo("Dockerfile")
        member.size = len(b"FROM scratch\n")
        tar.addfile(member, io.BytesIO(b"FROM scratch\n"))

    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=archive.getvalue())

    app = web.Application()
    app.router.add_get("/c.tar", answer)
    engine, blobs = Engine(EngineSettings(host="unix:///nowhere")), BlobStore(tmp_path)
    egress = Egress(EgressSettings(deny=()))
    kind = BuildKind(
        image_builder(engine, RegistryClient({}, egress), blobs, egress=egress), egress, Resolver(), BuildSettings()
    )
    ctx = FetchWork(blobs, fault)
    async with TestServer(app) as server:
        spec = BuildSpec(image="app", tar_url=str(server.make_url("/c.tar")))
        with pytest.raises(Temporary, match="full") if fault else nullcontext():
            await kind.fetch_context(ctx, spec)  # type: ignore[arg-type]  # a part of a JobContext
    assert ctx.collected == 0
    assert await blobs.collect([], min_age_s=-1) == 1
