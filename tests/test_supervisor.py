"""What the daemon tells its supervisor while it runs, on a real store."""

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

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
from imagejobd.supervisor import Signals, Supervisor, lasting
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


def idle_runner(store: SqliteStore) -> Runner:
    gate = EngineGate(nothing_to_reload)
    return Runner(store, {}, Limits(), slots={}, worker="w", gate=gate, circuits=Circuits(), clock=Clock())


async def nothing_to_reload() -> None:
    pass


async def test_ready_is_said_until_it_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """READY=1 that the manager dropped is sent again until it is taken; the status names the log's size."""
    monkeypatch.setattr(supervisor_module, "READY_RETRY_S", 0.001)
    manager = DeafManager(dropped=3)
    async with SqliteStore.open(tmp_path / "imagejobd.db", vault=Vault(b"k" * KEY_BYTES)) as store:
        runner = idle_runner(store)
        intake = Intake(store, {}, Server(), bounds=QueueBounds(1))
        supervisor = Supervisor(
            Signals(), cast(Notifier, manager), store, intake, runner, reload=nothing_to_reload, drain_timeout_s=1
        )
        keeping: asyncio.Task[Any] = asyncio.create_task(supervisor.run(runner=runner.run()))
        async with asyncio.timeout(20):
            while manager.said.count("ready") < 4 or not any("queued" in said for said in manager.said):
                await asyncio.sleep(0.001)
        await asyncio.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)
        assert await keeping == 0
    assert manager.said.count("ready") == 4
    assert manager.said[-1] == "stopping"
    [status] = [said for said in manager.said if "queued" in said]
    assert status.startswith("queued 0, running 0, write-ahead log ")
    assert status.endswith(" bytes")


async def test_a_hangup_reloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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

    async with SqliteStore.open(tmp_path / "imagejobd.db", vault=Vault(b"k" * KEY_BYTES)) as store:
        runner = idle_runner(store)
        intake = Intake(store, {}, Server(), bounds=QueueBounds(1))
        supervisor = Supervisor(
            Signals(), cast(Notifier, manager), store, intake, runner, reload=reload, drain_timeout_s=1
        )
        keeping: asyncio.Task[Any] = asyncio.create_task(supervisor.run(runner=runner.run()))
        await until(lambda: "ready" in manager.said)
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: reloads == 1)
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGHUP)
            await asyncio.sleep(0.002)
        go_on.set()
        await until(lambda: manager.said.count("ready") == 3)
        os.kill(os.getpid(), signal.SIGTERM)
        assert await keeping == 0
    said = [word for word in manager.said if "queued" not in word]
    assert said == ["ready", *(["reloading", "read", "ready"] * 2), "stopping"]


async def kept(manager: DeafManager, store: SqliteStore) -> int:
    """The exit code of a supervisor with nothing to do."""
    runner = idle_runner(store)
    intake = Intake(store, {}, Server(), bounds=QueueBounds(1))
    supervisor = Supervisor(
        Signals(), cast(Notifier, manager), store, intake, runner, reload=nothing_to_reload, drain_timeout_s=1
    )
    return await supervisor.run(runner=runner.run())


async def test_the_watchdog_hears_of_commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is fed while commits go on, and on a full disk, which no restart frees; not while the writer hangs."""
    manager = DeafManager(dropped=0)
    probe = SqliteStore.probe
    is_full, hangs = False, False

    async def probing(store: SqliteStore) -> None:
        if is_full:
            raise Temporary(ErrorCode.STORAGE_FULL, "full")
        if hangs:
            await asyncio.Event().wait()
        await probe(store)

    async def fed_again() -> None:
        before = manager.fed
        while manager.fed < before + 2:
            await asyncio.sleep(0.001)

    async with SqliteStore.open(tmp_path / "imagejobd.db", vault=Vault(b"k" * KEY_BYTES)) as store:
        monkeypatch.setattr(SqliteStore, "probe", probing)
        keeping = asyncio.create_task(kept(manager, store))
        async with asyncio.timeout(20):
            await fed_again()
            is_full = True
            await fed_again()
            is_full, hangs = False, True
            await asyncio.sleep(0.05)  # what was under way
            before = manager.fed
            await asyncio.sleep(0.2)
            assert manager.fed == before
        os.kill(os.getpid(), signal.SIGTERM)
        assert await keeping == 0


async def test_a_failed_store_ends_the_daemon(tmp_path: Path) -> None:
    """With a non-zero code, when nobody submits anything too, and with the reason in the log."""
    async with SqliteStore.open(tmp_path / "imagejobd.db", vault=Vault(b"k" * KEY_BYTES)) as store:
        keeping = asyncio.create_task(kept(DeafManager(dropped=0), store))
        await asyncio.sleep(0.05)
        with capture_logs() as logs:
            (tmp_path / "imagejobd.db").rename(tmp_path / "moved.db")
            assert await asyncio.wait_for(keeping, 20) == 1
        with pytest.raises(StoreFailed):
            await store.probe()
    [told] = [line for line in logs if line["log_level"] == "critical" and "exc_info" not in line]
    assert "cannot be found any more" in told["error"]


async def test_housekeeping_outlives_its_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that fails is run again; the same failure is told once, and a cancellation ends it."""
    monkeypatch.setattr(supervisor_module, "LASTING_RETRY_S", 0.0)
    failures = [OSError("no"), OSError("no"), OSError("no"), KeyError("x"), OSError("no")]
    runs = 0

    async def loop() -> None:
        nonlocal runs
        runs += 1
        if failures:
            raise failures.pop()
        await asyncio.Event().wait()

    with capture_logs() as logs:
        keeping = asyncio.create_task(lasting("prune", loop))
        async with asyncio.timeout(20):
            while runs < 6:
                await asyncio.sleep(0.001)
        keeping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await keeping
    assert [line["error"] for line in logs] == ["OSError('no')", "KeyError('x')", "OSError('no')"]
    assert {line["part"] for line in logs} == {"prune"}
