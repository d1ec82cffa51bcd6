"""The schedules through the native API, and who may see them."""

from http import HTTPStatus
from pathlib import Path

import msgspec
from bare_app import BareApp, bare_app
from signing import bearer, by_secret, token

from imagejobd.api import schemas
from imagejobd.api.schedules import render
from imagejobd.model.job import State, uuid7
from imagejobd.model.schedule import ScheduleStatus

PATH = "/api/v2/schedules"
IDLE = ScheduleStatus(
    name="nightly",
    cron="30 2 * * *",
    timezone="Europe/Berlin",
    kind="build",
    next_ms=1_800_000_000_000,
    last_ms=None,
    skipped_ms=None,
    job=None,
    state=None,
)


def test_how_a_schedule_looks() -> None:
    """Times are ISO 8601, what there is not is null, and the document knows all of it."""
    assert render(IDLE) == {
        "name": "nightly",
        "cron": "30 2 * * *",
        "timezone": "Europe/Berlin",
        "kind": "build",
        "next_run": "2027-01-15T08:00:00.000+00:00",
        "last_run": None,
        "last_skipped": None,
        "job": None,
        "state": None,
    }
    busy = msgspec.structs.replace(IDLE, last_ms=1, skipped_ms=2, job=uuid7(), state=State.RUNNING)
    for status in (IDLE, busy):
        answer = {"schedules": [render(status)]}
        read = msgspec.convert(answer, schemas.SchedulesAnswer, strict=False)
        assert (read.schedules[0].name, read.schedules[0].state) == (status.name, status.state)
        assert {field.name for field in msgspec.structs.fields(schemas.ScheduleAnswer)} == set(render(status))


async def test_who_may_see_them(tmp_path: Path) -> None:
    """Admins, and whoever has no token where none is required."""
    for required in (False, True):
        (tmp_path / str(required)).mkdir()
        auth = by_secret(tmp_path, required=required, admin_subjects=("root",))
        async with bare_app(tmp_path / str(required), auth=auth) as app:
            for headers, status in (
                (bearer(token()), 403),
                (bearer(token(sub="schedule:nightly")), 403),
                (bearer(token(sub="root")), 200),
                ({}, 401 if required else 200),
            ):
                async with app.client.get(PATH, headers=headers) as response:
                    assert response.status == status
                    if status == 200:
                        assert await response.json() == {"schedules": []}


async def test_no_parameter_is_taken(app: BareApp) -> None:
    """400 for one."""
    async with app.client.get(f"{PATH}?name=x") as response:
        assert response.status == HTTPStatus.BAD_REQUEST
