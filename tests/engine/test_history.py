"""BuildKit's history of builds: what it keeps of a job goes with the job."""

import asyncio
import contextlib
import os
from pathlib import Path

import pytest
from aiohttp import web
from builds import FROM_BASE, fake_engine, request, run, until

from harness.engine import PrivateEngine
from harness.processes import processes, unique_seconds
from imagejobd.engine import images
from imagejobd.engine.build import prune_build_cache
from imagejobd.engine.buildkit import delete_history, list_history
from imagejobd.engine.client import Engine
from imagejobd.engine.settings import EngineSettings
from imagejobd.engine.stream import BuildWarning, Step
from imagejobd.model.errors import ErrorCode, Permanent, Temporary
from imagejobd.model.job import uuid7
from imagejobd.model.reference import ImageReference

TIMEOUT_S = 20.0


async def built(client: Engine, folder: Path, tail: str = "") -> tuple[str, str]:
    """Build for a new job; its repository, and a word that stands in the build's output only."""
    uuid = uuid7()
    # Not in the step's own words: the build cache keeps those.
    step = f"RUN printf '%s-%s\\n' said {uuid}; {tail or 'true'}\n"
    with contextlib.suppress(Permanent):
        await run(client, request(folder, "buildkit", FROM_BASE + step, tags=(f"imagejobd/{uuid}:1",)))
    return f"imagejobd/{uuid}", f"said-{uuid}"


def is_kept(engine: PrivateEngine, word: str) -> bool:
    """Whether any file of the engine holds it; what goes while we look does not."""
    for folder, _, names in os.walk(engine.folder / "data"):
        for name in names:
            path = Path(folder, name)
            with contextlib.suppress(FileNotFoundError):
                if path.is_file() and not path.is_symlink() and word.encode() in path.read_bytes():
                    return True
    return False


async def has_history(client: Engine) -> bool:
    return not (await client.ping()).version.startswith("20.")


@pytest.mark.parametrize("tail", ["", "exit 3"])
async def test_the_log_of_a_job_goes_with_its_record(
    client: Engine, engine: PrivateEngine, tmp_path: Path, tail: str
) -> None:
    """However its build ended, a deleted job's record and output are gone, and another job's stay."""
    mine, my_word = await built(client, tmp_path, tail)
    other, other_word = await built(client, tmp_path, tail)
    kept = {mine, other} if await has_history(client) else set()
    assert await list_history(client) & {mine, other} == kept
    assert is_kept(engine, my_word) == bool(kept)

    assert await delete_history(client, mine) == len(kept & {mine})
    assert await list_history(client) & {mine, other} == kept - {mine}
    # Docker 26 lets go of the file only as it prunes.
    await prune_build_cache(client, 1 << 40)
    await until(lambda: not is_kept(engine, my_word), timeout_s=TIMEOUT_S)
    assert is_kept(engine, other_word) == bool(kept)
    assert await delete_history(client, mine) == 0


async def test_every_attempt_goes(client: Engine, tmp_path: Path) -> None:
    """All builds of a job are deleted, and none of one whose name only begins alike."""
    repository = f"imagejobd/{uuid7()}"
    tags = (f"{repository}:1", f"{repository}:2", f"{repository}1:1")
    for tag in tags:
        await run(client, request(tmp_path, "buildkit", FROM_BASE, tags=(tag,)))
    kept = await has_history(client)
    assert await delete_history(client, repository) == (2 if kept else 0)
    assert (f"{repository}1" in await list_history(client)) == kept
    await delete_history(client, f"{repository}1")
    for tag in tags:
        await images.remove(client, ImageReference.parse(tag))


async def test_what_marks_a_record_marks_nothing_else(client: Engine, tmp_path: Path) -> None:
    """Two jobs' identical builds are one image, from the cache, without a warning."""
    text = FROM_BASE + f"ARG A={uuid7()}\nRUN echo $A\n"
    first, second = [
        await run(client, request(tmp_path, "buildkit", text, tags=(f"imagejobd/{uuid7()}:1",))) for _ in range(2)
    ]
    assert first[-1] == second[-1]
    assert any(isinstance(event, Step) and event.state == "cached" and "RUN" in event.name for event in second)
    assert not [event for event in first + second if isinstance(event, BuildWarning)]


async def test_a_build_that_was_just_stopped_goes_too(client: Engine, tmp_path: Path) -> None:
    """The engine records a cancelled build a moment later; that is waited for."""
    sleep, repository = unique_seconds(), f"imagejobd/{uuid7()}"
    wanted = request(tmp_path, "buildkit", FROM_BASE + f"RUN sleep {sleep}\n", tags=(f"{repository}:1",))
    task = asyncio.create_task(run(client, wanted))
    await until(lambda: bool(processes(sleep)), timeout_s=TIMEOUT_S)
    task.cancel()
    await asyncio.wait([task])
    await delete_history(client, repository)
    await until(lambda: not processes(sleep), timeout_s=TIMEOUT_S)
    assert repository not in await list_history(client)


async def test_thousands_of_bytes_are_listed(client: Engine, tmp_path: Path) -> None:
    """Records larger than a window of HTTP/2 arrive whole."""
    repository = f"imagejobd/{uuid7()}"
    for attempt in range(3):
        args = {"A": f"{attempt}" * 100_000}
        await run(client, request(tmp_path, "buildkit", FROM_BASE, tags=(f"{repository}:{attempt}",), build_args=args))
    kept = await has_history(client)
    assert (repository in await list_history(client)) == kept
    assert await delete_history(client, repository) == (3 if kept else 0)


@pytest.mark.parametrize("status", [400, 403, 404])
async def test_an_engine_that_refuses_is_no_error(tmp_path: Path, status: int) -> None:
    """Where the history cannot be reached there is nothing to delete."""

    async def refuse(_: web.Request) -> web.Response:
        return web.json_response({"message": "no such door"}, status=status)

    async with fake_engine(tmp_path, refuse) as client:
        assert await delete_history(client, "imagejobd/x") == 0
        assert await list_history(client) == set()


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", bytes(64)])
async def test_an_engine_that_speaks_something_else_is_temporary(tmp_path: Path, said: bytes) -> None:
    """What is no HTTP/2 behind the upgrade, and an end in the middle, are the engine's trouble."""

    async def upgrade(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=101, headers={"Connection": "Upgrade", "Upgrade": "h2c"})
        await response.prepare(request)
        assert request.transport is not None
        request.transport.write(said)
        request.transport.close()
        return response

    async with fake_engine(tmp_path, upgrade) as client:
        with pytest.raises(Temporary) as caught:
            await delete_history(client, "imagejobd/x")
        assert caught.value.code is ErrorCode.ENGINE_UNAVAILABLE


async def test_an_engine_that_is_away_is_temporary(tmp_path: Path) -> None:
    """As with everything that is asked of it."""
    async with Engine(EngineSettings(host=f"unix://{tmp_path}/none.sock")) as client:
        with pytest.raises(Temporary, match="is it running"):
            await delete_history(client, "imagejobd/x")
