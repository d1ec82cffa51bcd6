"""What the engine's tests share: contexts on disk, whole builds, a look at the process table, an engine at fault."""

import asyncio
import contextlib
import io
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from aiohttp import web

from harness.base_image import BUSYBOX
from imagejobd.archive import ContextBounds, index, rewrite
from imagejobd.engine.build import BuildRequest, build
from imagejobd.engine.client import Engine
from imagejobd.engine.settings import EngineSettings
from imagejobd.engine.stream import BuildEvent, Output
from imagejobd.model.job import uuid7

FROM_BASE = f"FROM {BUSYBOX}\n"


def request(folder: Path, builder: str, text: str, files: Mapping[str, bytes] = {}, /, **more: Any) -> BuildRequest:
    """A build of the Dockerfile `text` with `files`, from a context written below `folder` and with no network."""
    given = io.BytesIO()
    with tarfile.open(fileobj=given, mode="w") as tar:
        for name, content in {"Dockerfile": b"FROM the-context's-own\n", **files}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    given.seek(0)
    context = folder / f"{uuid7()}.tar"
    with context.open("wb") as file:
        rewrite(given, file, ContextBounds(max_bytes=1 << 30, max_entries=1000), lambda: False)
    checked = {"bases": {BUSYBOX: BUSYBOX}, "entries": index(context), "dockerfile": text}
    more = {"build_id": uuid7(), "network": "none", **checked, **more}
    return BuildRequest(context=context, builder=builder, **more)  # type: ignore[arg-type]  # parametrized


async def run(engine: Engine, wanted: BuildRequest, events: list[BuildEvent] | None = None) -> list[BuildEvent]:
    """All events of a build; they are in `events` too, for when it fails."""
    events = [] if events is None else events
    async with contextlib.aclosing(build(engine, wanted)) as stream:
        async for event in stream:
            events.append(event)
    return events


def output(events: list[BuildEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, Output))


def open_files() -> set[str]:
    """What this process has open, sockets included, each under its number."""
    return {f"{entry.name} {entry.readlink()}" for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()}


async def until(reached: Callable[[], bool], *, timeout_s: float) -> None:
    async with asyncio.timeout(timeout_s):
        while not reached():
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def fake_engine(
    folder: Path, answer: Callable[[web.Request], Awaitable[web.StreamResponse]], **version: str
) -> AsyncIterator[Engine]:
    """An engine that says `version` of itself and gives `answer` to everything else."""

    async def say_version(_: web.Request) -> web.Response:
        return web.json_response({"Version": "99.0", "ApiVersion": "1.41", "MinAPIVersion": "1.12", **version})

    async def open_session(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=101, headers={"Connection": "Upgrade", "Upgrade": "h2c"})
        await response.prepare(request)
        await asyncio.Event().wait()
        return response

    app = web.Application(client_max_size=1 << 30)
    app.router.add_get("/version", say_version)
    app.router.add_post("/{version}/session", open_session)
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    socket = folder / "engine.sock"
    await web.UnixSite(runner, str(socket)).start()
    try:
        async with Engine(EngineSettings(host=f"unix://{socket}", connect_timeout_s=20)) as engine:
            yield engine
    finally:
        await runner.cleanup()


def lines(*texts: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """An answer to every request: these lines, then the end."""

    async def answer(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(text="".join(f"{text}\n" for text in texts), content_type="application/json")

    return answer
