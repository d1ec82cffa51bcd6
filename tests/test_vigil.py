"""What the daemon tells its supervisor while it runs, on a real store."""

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from imagejobd import vigil as vigil_module
from imagejobd.api.door import Door
from imagejobd.api.settings import Server
from imagejobd.runner.runner import Runner
from imagejobd.runner.settings import Limits
from imagejobd.store.sqlite import SqliteStore
from imagejobd.store.vault import KEY_BYTES, Vault
from imagejobd.systemd import Notifier
from imagejobd.vigil import Signals, Vigil


class DeafManager:
    """A service manager that drops the first messages."""

    def __init__(self, dropped: int) -> None:
        self.said: list[str] = []
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

    def watchdog_interval_s(self) -> None:
        return None


async def nothing_to_reload() -> None:
    pass


async def test_ready_is_said_until_it_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """READY=1 that the manager dropped is sent again until it is taken; the status names the log's size."""
    monkeypatch.setattr(vigil_module, "READY_RETRY_S", 0.001)
    manager = DeafManager(dropped=3)
    async with SqliteStore.open(tmp_path / "imagejobd.db", vault=Vault(b"k" * KEY_BYTES)) as store:
        runner = Runner(store, {}, Limits(), slots={}, worker="w")
        door = Door(store, {}, Server(), queue_max=1)
        vigil = Vigil(
            Signals(), cast(Notifier, manager), store, door, runner, reload=nothing_to_reload, drain_timeout_s=1
        )
        keeping: asyncio.Task[Any] = asyncio.create_task(vigil.keep(runner=runner.run()))
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
    monkeypatch.setattr(vigil_module, "READY_RETRY_S", 0.001)
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
        runner = Runner(store, {}, Limits(), slots={}, worker="w")
        door = Door(store, {}, Server(), queue_max=1)
        vigil = Vigil(Signals(), cast(Notifier, manager), store, door, runner, reload=reload, drain_timeout_s=1)
        keeping: asyncio.Task[Any] = asyncio.create_task(vigil.keep(runner=runner.run()))
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
