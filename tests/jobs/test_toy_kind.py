"""What a new kind of job has to bring along: one class, and one line where the daemon lists its kinds."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from api.bare_app import BareApp, bare_app
from imagejobd.model.circuit import Circuits
from imagejobd.model.clock import Clock
from imagejobd.model.errors import ENGINE, ErrorCode, Temporary, invalid
from imagejobd.model.job import Json
from imagejobd.model.kind import Accepted, JobContext, JobKind, Upload, by_name
from imagejobd.runner.gate import EngineGate
from imagejobd.runner.recovery import sweep
from imagejobd.runner.runner import Runner
from imagejobd.runner.settings import SLOTS_DEFAULT, Limits

END_TIMEOUT_S = 10.0


class Greeting(JobKind):
    """All that there is of a kind."""

    name = "greeting"

    def parse(self, spec: Json, upload: Upload | None = None) -> Accepted:
        if spec.keys() != {"whom"}:
            raise invalid("spec needs whom, and nothing else")
        return Accepted(spec)

    async def run(self, ctx: JobContext) -> Json:
        async with ctx.phase("greeting", timeout_s=1.0):
            await ctx.log(f"greeting {ctx.job.spec['whom']}\n")
        return {"words": f"hello {ctx.job.spec['whom']}"}


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[BareApp]:
    """The APIs with all kinds of the daemon and this one."""
    async with bare_app(tmp_path, kinds=by_name(Greeting())) as app:
        yield app


@asynccontextmanager
async def running(app: BareApp, limits: Limits) -> AsyncIterator[None]:
    """The runner with the same kinds, wired as the daemon does it, while no engine answers."""

    async def probe() -> None:
        raise Temporary(ErrorCode.ENGINE_UNAVAILABLE, "there is none", peer=ENGINE)

    kinds = app.intake.kinds
    slots = {name: limits.slots(name) for name in kinds}
    runner = Runner(
        app.store,
        kinds,
        limits,
        slots=slots,
        worker="w",
        gate=EngineGate(probe),
        circuits=Circuits(),
        clock=Clock(),
    )
    task = asyncio.create_task(runner.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def job_of(app: BareApp, uuid: str) -> dict[str, Any]:
    async with app.client.get(f"/api/v2/jobs/{uuid}") as response:
        job: dict[str, Any] = await response.json()
        return job


async def test_a_kind_is_one_class_and_one_line(app: BareApp) -> None:
    """It is accepted, run, shown with phase, log and result, listed and swept; nothing else knows its name."""
    submitted = await app.submit(kind="greeting", spec={"whom": "world"})
    async with running(app, Limits()), asyncio.timeout(END_TIMEOUT_S):
        while (job := await job_of(app, submitted["id"]))["state"] in ("queued", "running"):
            await asyncio.sleep(0.01)
    assert (job["state"], job["result"], job["error"]) == ("succeeded", {"words": "hello world"}, None)
    assert [phase["name"] for phase in job["phases"]] == ["greeting"]
    async with app.client.get(f"/api/v2/jobs/{job['id']}/log") as response:
        assert await response.text() == "greeting world\n"
    async with app.client.get("/api/v2/jobs?kind=greeting") as response:
        assert [listed["id"] for listed in (await response.json())["jobs"]] == [job["id"]]
    assert await sweep(app.store, [app.intake.kinds["greeting"]]) == set()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"spec": {}}, "spec needs whom"),
        ({"spec": {"whom": "world"}, "context": "AAAA"}, "a job of kind greeting takes no file"),
    ],
    ids=["spec", "file"],
)
async def test_it_refuses_what_it_does_not_know(app: BareApp, changes: dict[str, Any], reason: str) -> None:
    """Its own words reach the client; a file is refused without a word of its own."""
    async with app.client.post("/api/v2/jobs", json={"kind": "greeting", **changes}) as response:
        assert response.status == 400
        assert reason in (await response.json())["detail"]


def test_its_limits_have_a_default() -> None:
    """Kinds with a key in [limits] keep theirs; the bounds on a tenant are those of all kinds."""
    limits = Limits(build=7)
    assert (limits.slots("build"), limits.slots("greeting")) == (7, SLOTS_DEFAULT)
    assert limits.per_tenant.running == {}
