"""Containers that take too much, or do not end: bounded, told apart, killed. In a real engine."""

import asyncio
import contextlib
from pathlib import Path

import pytest
from builds import until
from sandboxes import LIMITS, MIB, image_of, run, sandboxed, until_output

from harness.engine import PrivateEngine
from harness.processes import processes, unique_seconds
from imagejobd.engine.client import Engine
from imagejobd.engine.hardening import FreeSpace, free_space
from imagejobd.engine.sandbox import Exit, Output, Sandbox, create, discard, leftovers
from imagejobd.model.errors import ErrorCode, Permanent, Temporary
from imagejobd.model.job import uuid7

# By itself it would take a day. How soon it ends is told by the times of cancelled jobs (run/test_run_cancel).
STOP_S = 20.0
START_S = 20.0


def containers(engine: PrivateEngine) -> list[str]:
    return engine.docker("ps", "--all", "--quiet").split()


async def listen(sandbox: Sandbox, texts: list[str], *, timeout_s: float) -> None:
    """Run it within its time; what it says is in `texts` as it comes."""
    async with contextlib.aclosing(sandbox.run(output_max_bytes=100_000, timeout_s=timeout_s)) as pieces:
        async for piece in pieces:
            texts.append(piece.text if isinstance(piece, Output) else "an end")


@pytest.mark.parametrize(
    ("script", "code"),
    [('["tail", "/dev/zero"]', 137), ("tail /dev/zero; exit 3", 3)],
    ids=["itself", "child"],
)
async def test_a_memory_hog_is_out_of_memory(client: Engine, engine: PrivateEngine, script: str, code: int) -> None:
    """Killed at its bound, also when a child of a shell was the hog. It is said that memory was the reason where the
    engine says so, which none does each time."""
    async with sandboxed(client, engine, f"CMD {script}\n", memory_bytes=16 * MIB) as sandbox:
        ended = (await run(sandbox)).exit
        is_oom_killed = "true" in engine.docker("inspect", "--format", "{{.State.OOMKilled}}", *containers(engine))
    assert ended.code == code
    assert ended.is_out_of_memory or not is_oom_killed


async def test_a_hog_that_the_container_survives_is_no_failure(client: Engine, engine: PrivateEngine) -> None:
    """Who exits with 0 has coped."""
    async with sandboxed(client, engine, "CMD tail /dev/zero; exit 0\n", memory_bytes=16 * MIB) as sandbox:
        assert (await run(sandbox)).exit == Exit(0, is_out_of_memory=False)


async def test_a_fork_bomb_is_bounded_and_killed(client: Engine, engine: PrivateEngine) -> None:
    """It hits the bound on processes, and leaving kills every one of them."""
    sleep = unique_seconds()
    text = f"CMD while true; do sleep {sleep} & done\n"
    async with sandboxed(client, engine, text, pids=24) as sandbox:
        await until_output(sandbox, "Resource temporarily unavailable")
        await until(lambda: not processes(sleep), timeout_s=STOP_S)


async def test_a_disk_filler_hits_the_file_bound(client: Engine, engine: PrivateEngine) -> None:
    """No file in /data grows over its bound."""
    text = "CMD head -c 100000000 /dev/zero >/data/x; echo $?; stat -c %s /data/x\n"
    async with sandboxed(client, engine, text, file_max_bytes=MIB) as sandbox:
        assert (await run(sandbox)).out.split() == ["153", str(MIB)]


async def test_endless_output_is_cut_and_its_end_is_told(client: Engine, engine: PrivateEngine) -> None:
    """Past the bound there is a mark, then the last lines; the exit code is the container's."""
    text = "CMD seq 300000; echo at last; exit 4\n"
    async with sandboxed(client, engine, text) as sandbox:
        out, err, ended = await run(sandbox, output_max_bytes=100_000)
    assert out.startswith("1\n2\n3\n")
    assert out.endswith("\n300000\nat last\n")
    assert len(out) < 110_000
    assert "over 100000 bytes" in err
    assert ended.code == 4


async def test_output_without_end_does_not_hold_up_a_time_limit(client: Engine, engine: PrivateEngine) -> None:
    """While it goes on nothing more is read than the bound, and it is killed like any other."""
    word = unique_seconds()
    texts: list[str] = []
    async with sandboxed(client, engine, f'CMD ["yes", "{word}"]\n') as sandbox:
        with pytest.raises(Permanent, match=r"beyond its limit of 1\.5 s"):
            await listen(sandbox, texts, timeout_s=1.5)
        await until(lambda: not processes(word), timeout_s=STOP_S)
    assert "over 100000 bytes" in texts[-1]
    assert len("".join(texts[:-1])) == 100_000


async def test_a_single_endless_line_is_bounded(client: Engine, engine: PrivateEngine) -> None:
    """Without line ends there are last bytes instead of last lines."""
    text = "CMD yes x | head -c 20000000 | tr -d '\\n'; exit 4\n"
    async with sandboxed(client, engine, text) as sandbox:
        out, _, ended = await run(sandbox, output_max_bytes=1000)
    assert set(out) == {"x"}
    assert 1000 < len(out) < 300_000
    assert ended.code == 4


async def test_closed_output_is_not_the_end(client: Engine, engine: PrivateEngine) -> None:
    """A container that closes its output and goes on is waited for."""
    text = "CMD echo bye; exec >/dev/null 2>&1; sleep 0.3; echo '{}' >/data/perf.json; exit 6\n"
    async with sandboxed(client, engine, text) as sandbox:
        assert (await run(sandbox))[::2] == ("bye\n", Exit(6, is_out_of_memory=False))
        assert await sandbox.read_data("perf.json", max_bytes=100) == b"{}\n"


async def test_leaving_kills_whoever_ignores_sigterm(client: Engine, engine: PrivateEngine) -> None:
    """Closing the iteration ends the container; removal is left to `discard`."""
    sleep = unique_seconds()
    async with sandboxed(client, engine, f"CMD trap '' TERM INT; echo ready; sleep {sleep}; sleep 99\n") as sandbox:
        async with asyncio.timeout(START_S):
            await until_output(sandbox, "ready")
        await until(lambda: not processes(sleep), timeout_s=STOP_S)


@pytest.mark.parametrize("delay_s", [0.0, 0.01, 0.03, 0.06, 0.1])
async def test_cancelling_at_any_time_kills(client: Engine, engine: PrivateEngine, delay_s: float) -> None:
    """Even in the middle of the start, and though a second cancellation follows at once."""
    sleep = unique_seconds()
    async with sandboxed(client, engine, f'CMD ["sleep", "{sleep}"]\n') as sandbox:
        task = asyncio.create_task(run(sandbox))
        await asyncio.sleep(delay_s)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # The engine answers this when a start that is under way is over.
        engine.docker("inspect", *containers(engine))
        await until(lambda: not processes(sleep), timeout_s=STOP_S)


async def test_a_time_limit_kills(client: Engine, engine: PrivateEngine) -> None:
    """A sleeper beyond its time is gone when the time-out is told."""
    sleep = unique_seconds()
    async with sandboxed(client, engine, f"CMD sleep {sleep}\n") as sandbox:
        async with asyncio.timeout(START_S):
            with pytest.raises(Permanent, match=r"beyond its limit of 0\.5 s") as caught:
                await listen(sandbox, [], timeout_s=0.5)
        assert caught.value.code is ErrorCode.TIMEOUT
        assert not processes(sleep)


async def test_a_container_that_somebody_removes_is_run_again(client: Engine, engine: PrivateEngine) -> None:
    """An operator's `docker rm --force` is temporary."""
    sleep = unique_seconds()
    async with sandboxed(client, engine, f"CMD sleep {sleep}\n") as sandbox:
        task = asyncio.create_task(run(sandbox))
        await until(lambda: bool(processes(sleep)), timeout_s=START_S)
        engine.docker("rm", "--force", *engine.docker("ps", "--quiet").split())
        with pytest.raises(Temporary, match="removed meanwhile") as caught:
            await task
    assert caught.value.code is ErrorCode.CONFLICT


@pytest.mark.parametrize("delay_s", [0.0, 0.005, 0.01, 0.02, 0.05])
async def test_cancelling_the_creation_leaves_nothing_hidden(
    client: Engine, engine: PrivateEngine, delay_s: float
) -> None:
    """`discard` right after it finds all that was made."""
    uuid, image = uuid7(), image_of(engine, "USER nobody\n")
    task = asyncio.create_task(create(client, uuid=uuid, attempt=1, image=image, limits=LIMITS))
    await asyncio.sleep(delay_s)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await discard(client, uuid)
    await asyncio.sleep(0.2)
    assert uuid not in {owner.uuid for owner in await leftovers(client)}


async def test_two_discards_at_once_agree(client: Engine, engine: PrivateEngine) -> None:
    """A sweep and a job's own end do not stumble over each other."""
    uuid = uuid7()
    await create(client, uuid=uuid, attempt=1, image=image_of(engine, "CMD sleep 99\n"), limits=LIMITS)
    await asyncio.gather(*(discard(client, uuid) for _ in range(3)))
    assert uuid not in {owner.uuid for owner in await leftovers(client)}


@pytest.mark.parametrize("low", [FreeSpace(MIB - 1, 0.5), FreeSpace(MIB, 0.001)], ids=["bytes", "inodes"])
async def test_a_disk_that_runs_full_stops_the_container(client: Engine, engine: PrivateEngine, low: FreeSpace) -> None:
    """It is killed within seconds, and the fault says what was short."""
    spaces = iter([FreeSpace(MIB)] * 3)
    async with sandboxed(client, engine, "CMD sleep 99\n", probe=lambda _: next(spaces, low)) as sandbox:
        with pytest.raises(Permanent, match="have to stay so") as caught:
            await run(sandbox)
    assert caught.value.code is ErrorCode.STORAGE_FULL


async def test_on_a_full_disk_nothing_starts(client: Engine, engine: PrivateEngine) -> None:
    """That is nobody's fault, and may be better later; what an image has in its VOLUMEs is not copied either."""
    uuid, image = uuid7(), image_of(engine, "VOLUME /bin\nCMD sleep 99\n")
    with pytest.raises(Temporary, match="not started") as caught:
        await create(client, uuid=uuid, attempt=1, image=image, limits=LIMITS, probe=lambda _: FreeSpace(0))
    assert caught.value.code is ErrorCode.STORAGE_FULL
    assert uuid not in engine.docker("ps", "--all", "--format", "{{.Names}}")
    await discard(client, uuid)


async def test_the_disk_is_that_of_the_volume(client: Engine, engine: PrivateEngine) -> None:
    """The probe is asked for a folder below the engine's own root, which can be seen here."""
    paths: list[Path] = []

    def probe(path: Path) -> FreeSpace | None:
        paths.append(path)
        return free_space(path)

    async with sandboxed(client, engine, "CMD true\n", probe=probe) as sandbox:
        await run(sandbox)
    assert paths[0].is_relative_to(engine.folder / "data")
    assert free_space(engine.folder) is not None


async def test_a_disk_out_of_sight_is_not_watched(client: Engine, engine: PrivateEngine) -> None:
    """A remote engine's containers run all the same."""
    async with sandboxed(client, engine, "CMD true\n", probe=lambda _: None) as sandbox:
        assert (await run(sandbox)).exit.code == 0
