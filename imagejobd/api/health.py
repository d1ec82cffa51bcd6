"""Liveness, readiness and version, for load balancers, monitors and people with curl."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

from aiohttp import web

from imagejobd import API_VERSION, __version__
from imagejobd.api.intake import Intake
from imagejobd.api.wire import json_response, parameters
from imagejobd.model.errors import Fault
from imagejobd.model.job import Json

PROBE_TIMEOUT_S = 3.0
# How long an answer serves later callers: each of what the daemon needs costs an fsync, and anybody may ask.
ANSWER_MAX_AGE_S = 0.5

_NO_ANSWER = f"no answer within {PROBE_TIMEOUT_S:g} s"

# Raises a `Fault` that says what is wrong.
Probe = Callable[[], Awaitable[object]]
# What is known of an outside service: "ok", or what is wrong with it.
Check = Callable[[], str]


class Needs:
    """What the daemon needs to keep a job durably, each asked by a probe that really writes.

    One that hangs is asked once: whoever comes later waits for the same answer.
    """

    def __init__(self, probes: Mapping[str, Probe]) -> None:
        self._probes = probes
        self._asked: dict[str, tuple[float, asyncio.Task[str]]] = {}

    async def answers(self) -> dict[str, str]:
        """`ok`, or the reason why not, of each."""
        asked = {name: self._ask(name, probe) for name, probe in self._probes.items()}
        await asyncio.wait(asked.values(), timeout=PROBE_TIMEOUT_S)
        return {name: task.result() if task.done() else _NO_ANSWER for name, task in asked.items()}

    def _ask(self, name: str, probe: Probe) -> asyncio.Task[str]:
        now = time.monotonic()
        asked_at, task = self._asked.get(name, (0.0, None))
        if task is None or (task.done() and now - asked_at > ANSWER_MAX_AGE_S):
            task = asyncio.create_task(_answer(probe), name=f"probe of {name}")
            self._asked[name] = now, task
        return task


def routes(
    intake: Intake,
    needs: Mapping[str, Probe],
    checks: Mapping[str, Check],
    other_daemons: Callable[[], Sequence[str]],
) -> list[web.RouteDef]:
    """Without one of `needs` no job is accepted. `checks` are outside services: reported, but jobs wait for them; and
    `other_daemons` the installations that work on the same engine."""
    needed = Needs(needs)

    async def healthz(request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(request: web.Request) -> web.Response:
        """200 when jobs are accepted durably, 503 otherwise."""
        answers = await needed.answers()
        ready = not intake.is_draining and all(answer == "ok" for answer in answers.values())
        report: Json = {"ready": ready, "draining": intake.is_draining, **answers, "wal_bytes": await wal_bytes()}
        report |= {name: check() for name, check in checks.items()}
        report["other_daemons"] = list(other_daemons())
        return json_response(report, 200 if ready else 503)

    async def wal_bytes() -> int | None:
        try:
            return (await intake.store.stats()).wal_bytes
        except Fault:
            return None

    async def version(request: web.Request) -> web.Response:
        parameters(request)
        return json_response({"version": __version__, "api": API_VERSION})

    return [web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/version", version)]


async def _answer(probe: Probe) -> str:
    try:
        await probe()
    except Fault as fault:
        return fault.message
    return "ok"
