"""Liveness and readiness, for load balancers, monitors and people with curl."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

from aiohttp import web

from imagejobd.api.door import Door
from imagejobd.api.wire import json_response
from imagejobd.model.errors import Fault

PROBE_TIMEOUT_S = 3.0

# What is known of an outside service: "ok", or what is wrong with it.
Check = Callable[[], str]


def routes(door: Door, checks: Mapping[str, Check], other_daemons: Callable[[], Sequence[str]]) -> list[web.RouteDef]:
    """`checks` are outside services: reported, but jobs are accepted without them because they can wait. So are the
    installations of `other_daemons` that work on the same engine."""

    async def healthz(request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(request: web.Request) -> web.Response:
        """200 when jobs are accepted durably, 503 otherwise."""
        store = await _probe(door.store.probe)
        ready = store == "ok" and not door.is_draining
        report = {"ready": ready, "draining": door.is_draining, "store": store, "wal_bytes": await _wal_bytes(door)}
        for name, check in checks.items():
            report[name] = check()
        report["other_daemons"] = list(other_daemons())
        return json_response(report, 200 if ready else 503)

    return [web.get("/healthz", healthz), web.get("/readyz", readyz)]


async def _wal_bytes(door: Door) -> int | None:
    try:
        return (await door.store.stats()).wal_bytes
    except Fault:
        return None


async def _probe(check: Callable[[], Awaitable[object]]) -> str:
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            await check()
    except Fault as fault:
        return fault.message
    except TimeoutError:
        return f"no answer within {PROBE_TIMEOUT_S:g} s"
    return "ok"
