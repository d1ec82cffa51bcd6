"""What the supervisor does, and what it tells systemd, on a real store."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import cast

import pytest
from structlog.testing import capture_logs

from imagejobd import supervisor as supervisor_module
from imagejobd.api.intake import Intake, QueueBounds, Server
from imagejobd.model.circuit import Circuits
from imagejobd.model.clock import Clock
from imagejobd.model.errors import ErrorCode, StoreFailed, Temporary
from imagejobd.runner.gate import EngineGate
from imagejobd.runner.runner import Runner
from imagejobd.runner.settings import Limits
from imagejobd.store.sqlite.store import SqliteStore
from imagejobd.store.vault import KEY_BYTES, Vault
from imagejobd.supervisor import Signals, Supervisor, restart_on_failure
from imagejobd.systemd import Notifier


class DeafManager:
    """A service manager that drops the first messages."""

    def __init__(self, dropped: int) -> None:
        self.said: list[str] = []
        self.fed = 0
        self._dropped = dropped

    def ready(self) -> bool:
        self.said.append("ready")
        return self.said.count("ready") > self._dropped

    def status(self, text: str) -> bool:
        self.said.append(text)
        return True

    def reloading(self) -> bool:
        self.said.append("reloading")
        return True

    def stopping(self) -> bool:
        self.said.append("stopping")
        return True

    def watchdog(self) -> bool:
        self.fed += 1
        return True

    def watchdog_interval_s(self) -> float:
        return 0.001


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    async with SqliteStore.open(tmp_path / "imagejobd.db", vault=Vault(b"k" * KEY_BYTES)) as store:
        yield store


async def nothing() -> None:
    pass


def started(
    manager: DeafManager, store: SqliteStore, reload: Callable[[], Awaitable[None]] = nothing
) -> asyncio.Task[int]:
    """A supervisor with no job to run; the task's result is the exit code."""
    gate, circuits, clock = EngineGate(nothing), Circuits(), Clock()
    runner = Runner(store, {}, Limits(), slots={}, worker="w", gate=gate, circuits=circuits, clock=clock)
    server = Server(drain_timeout_s=1)
    intake = Intake(store, {}, server, bounds=QueueBounds(1))
    supervisor = Supervisor(server, Signals(), cast(Notifier, manager), store, intake, runner, reload)
    return asyncio.create_task(supervisor.run())


async def test_ready_is_sent_until_it_is_taken(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """READY=1 that the manager dropped is sent again until it is taken; the status names the log's size."""
    monkeypatch.setattr(supervisor_module, "READY_RETRY_S", 0.001)
    manager = DeafManager(dropped=3)
    running = started(manager, store)
    async with asyncio.timeout(20):
        while manager.said.count("ready") < 4 or not any("queued" in said for said in manager.said):
            await asyncio.sleep(0.001)
    await asyncio.sleep(0.02)
    os.kill(os.getpid(), signal.SIGTERM)
    assert await running == 0
    assert manager.said.count("ready") == 4
    assert manager.said[-1] == "stopping"
    [status] = [said for said in manager.said if "queued" in said]
    assert status.startswith("queued 0, running 0, write-ahead log ")
    assert status.endswith(" bytes")


async def test_a_hangup_reloads(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGHUP calls `reload` between RELOADING=1 and a READY=1 that is heard; signals during one make one more."""
    monkeypatch.setattr(supervisor_module, "READY_RETRY_S", 0.001)
    manager = DeafManager(dropped=0)
    reloads = 0
    go_on = asyncio.Event()

    async def reload() -> None:
        nonlocal reloads
        reloads += 1
        manager.said.append("read")
        await go_on.wait()

    async def until(is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not is_so():
                await asyncio.sleep(0.001)

    running = started(manager, store, reload)
    await until(lambda: "ready" in manager.said)
    os.kill(os.getpid(), signal.SIGHUP)
    await until(lambda: reloads == 1)
    for _ in range(3):
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0.002)
    go_on.set()
    await until(lambda: manager.said.count("ready") == 3)
    os.kill(os.getpid(), signal.SIGTERM)
    assert await running == 0
    said = [word for word in manager.said if "queued" not in word]
    assert said == ["ready", *(["reloading", "read", "ready"] * 2), "stopping"]


async def test_the_watchdog_is_fed_by_commits(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is fed while commits go on, and on a full disk, which no restart frees; not while the writer hangs."""
    manager = DeafManager(dropped=0)
    probe = SqliteStore.probe
    is_full, hangs = False, False
    hung = asyncio.Event()

    async def probing(store: SqliteStore) -> None:
        if is_full:
            raise Temporary(ErrorCode.STORAGE_FULL, "full")
        if hangs:
            hung.set()
            await asyncio.Event().wait()
        await probe(store)

    async def fed_again() -> None:
        before = manager.fed
        while manager.fed < before + 2:
            await asyncio.sleep(0.001)

    monkeypatch.setattr(SqliteStore, "probe", probing)
    running = started(manager, store)
    async with asyncio.timeout(20):
        await fed_again()
        is_full = True
        await fed_again()
        is_full, hangs = False, True
        await hung.wait()
        before = manager.fed
        await asyncio.sleep(0.2)
        assert manager.fed == before
    os.kill(os.getpid(), signal.SIGTERM)
    assert await running == 0


async def test_a_failed_store_ends_the_daemon(store: SqliteStore, tmp_path: Path) -> None:
    """With a non-zero code, when nobody submits anything too, and with the reason in the log."""
    running = started(DeafManager(dropped=0), store)
    await asyncio.sleep(0.05)
    with capture_logs() as logs:
        (tmp_path / "imagejobd.db").rename(tmp_path / "moved.db")
        assert await asyncio.wait_for(running, 20) == 1
    with pytest.raises(StoreFailed):
        await store.probe()
    [line] = [line for line in logs if line["log_level"] == "critical" and "exc_info" not in line]
    assert "cannot be found any more" in line["error"]


async def test_housekeeping_outlives_its_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that fails is run again; the same failure is logged once, and a cancellation ends it."""
    monkeypatch.setattr(supervisor_module, "RESTART_DELAY_S", 0.0)
    failures = [OSError("no"), OSError("no"), OSError("no"), KeyError("x"), OSError("no")]
    runs = 0

    async def loop() -> None:
        nonlocal runs
        runs += 1
        if failures:
            raise failures.pop()
        await asyncio.Event().wait()

    with capture_logs() as logs:
        task = asyncio.create_task(restart_on_failure("prune", loop))
        async with asyncio.timeout(20):
            while runs < 6:
                await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert [line["error"] for line in logs] == ["OSError('no')", "KeyError('x')", "OSError('no')"]
    assert {line["part"] for line in logs} == {"prune"}
