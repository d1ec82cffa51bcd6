"""What is asked of the outside world before a job is taken in, and how little may depend on the answer."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from asking_kind import AskingKind
from bare_app import MINIMAL, BareApp, bare_app

from imagejobd.api import intake
from imagejobd.model.bounds import MIB
from imagejobd.model.errors import ErrorCode, NotFound, Permanent, Temporary
from imagejobd.registry.manifest import MANIFEST_MAX_BYTES

ASKING: dict[str, Any] = {"kind": "asking", "spec": {"n": 1}}


@pytest.fixture
def kind() -> AskingKind:
    return AskingKind()


@pytest.fixture
async def app(tmp_path: Path, kind: AskingKind) -> AsyncIterator[BareApp]:
    async with bare_app(tmp_path, kinds={"asking": kind}) as app:
        yield app


async def post(app: BareApp, job: dict[str, Any], **headers: str) -> tuple[int, Any]:
    async with app.client.post("/api/v2/jobs", json=job, headers=headers) as response:
        return response.status, await response.json()


async def until_asked(kind: AskingKind, times: int) -> None:
    async with asyncio.timeout(5):
        while len(kind.asked) < times:
            await asyncio.sleep(0.001)


async def queued(app: BareApp) -> int:
    return sum((await app.store.stats()).queued.values())


async def test_asked_once_with_what_was_accepted(app: BareApp, kind: AskingKind) -> None:
    """A submission is preflighted by its kind, with the spec that is stored."""
    assert (await post(app, ASKING))[0] == 201
    assert [job.spec for job in kind.asked] == [{"n": 1}]


@pytest.mark.parametrize(
    ("code", "status"), [(ErrorCode.NOT_FOUND, 404), (ErrorCode.DENIED, 403), (ErrorCode.EGRESS, 403)]
)
async def test_what_surely_cannot_be_done_is_refused(
    app: BareApp, kind: AskingKind, code: ErrorCode, status: int
) -> None:
    """A permanent fault is the answer, and nothing is queued."""
    kind.answer = Permanent(code, "there is no such image")
    answered, problem = await post(app, ASKING)
    assert (answered, problem["code"], problem["detail"]) == (status, code, "there is no such image")
    assert await queued(app) == 0


async def test_a_temporary_fault_is_left_to_the_job(app: BareApp, kind: AskingKind) -> None:
    """A registry that is down or slow now may be well when the job's turn comes."""
    for answer in (Temporary(ErrorCode.REGISTRY_UNAVAILABLE, "connection refused"), TimeoutError()):
        kind.answer = answer
        assert (await post(app, ASKING))[0] == 201


async def test_those_who_wait_are_bounded(app: BareApp, kind: AskingKind, monkeypatch: pytest.MonkeyPatch) -> None:
    """With as many asked as may be at once the next job is accepted unasked, and other kinds never wait."""
    monkeypatch.setattr(intake, "PREFLIGHTS_MAX", 3)
    kind.hush = True
    asking = [asyncio.create_task(post(app, ASKING)) for _ in range(3)]
    await until_asked(kind, 3)
    assert (await post(app, ASKING))[0] == 201
    assert (await post(app, MINIMAL))[0] == 201
    assert not any(task.done() for task in asking)
    kind.speak()
    assert [status for status, _ in await asyncio.gather(*asking)] == [201] * 3
    assert len(kind.asked) == 3


def test_memory_of_those_who_wait() -> None:
    """What preflights of one kind may hold at once is small: silent registries can send a whole manifest each."""
    assert 2 * MANIFEST_MAX_BYTES * intake.PREFLIGHTS_MAX <= 128 * MIB


async def test_idempotency_key_is_stronger(app: BareApp, kind: AskingKind) -> None:
    """A request that is repeated finds its job even when the image has gone since."""
    first = await post(app, ASKING, **{"Idempotency-Key": "once"})
    kind.answer = NotFound("gone")
    again = await post(app, ASKING, **{"Idempotency-Key": "once"})
    assert (first[0], again[0]) == (201, 200)
    assert first[1]["id"] == again[1]["id"]


async def test_draining_begins_while_the_registry_is_asked(app: BareApp, kind: AskingKind) -> None:
    """A job whose registry is being asked when the daemon begins to stop is kept all the same, and waited for."""
    kind.hush = True
    asking = asyncio.create_task(post(app, ASKING))
    await until_asked(kind, 1)
    app.intake.drain(timeout_s=60)
    assert app.intake.is_receiving
    kind.speak()
    status, job = await asking
    assert (status, job["state"]) == (201, "queued")
    assert not app.intake.is_receiving
