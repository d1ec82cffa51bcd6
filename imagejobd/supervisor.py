"""Supervises the running daemon: its loops, its signals, what the service manager hears of it, and its shutdown.

A long-lived loop that ends is a defect, and so is a store that failed: both end the process with a non-zero code, so
that the service manager starts it anew and the queue goes on from disk.
"""

import asyncio
import contextlib
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any

import structlog

from imagejobd.api.intake import Intake, Server
from imagejobd.model.errors import Fault, StoreFailed, Temporary
from imagejobd.runner.runner import Runner
from imagejobd.store.sqlite.store import SqliteStore
from imagejobd.systemd import Notifier

STATUS_EVERY_S = 10.0
READY_RETRY_S = 1.0
# How often the store is asked to commit where no service manager has a watchdog.
PROBE_EVERY_S = 10.0
RESTART_DELAY_S = 30.0

log = structlog.get_logger("imagejobd.daemon")

Loop = Coroutine[Any, Any, None]


class Signals:
    """The signals to the process, from its first moment on: one that comes while it starts waits for the supervisor.

    A second SIGTERM or SIGINT calls `hurry`. Until somebody sets that, it ends the process at once: a start may be cut
    anywhere, as a crash would cut it.
    """

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.hangup = asyncio.Event()
        self.hurry: Callable[[], None] | None = None
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_stop, number)
        loop.add_signal_handler(signal.SIGHUP, self.hangup.set)

    def _on_stop(self, number: signal.Signals) -> None:
        if not self.stop.is_set():
            self.stop.set()
        elif self.hurry is not None:
            self.hurry()
        else:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


class Supervisor:
    """Runs the daemon's loops until a signal. SIGTERM and SIGINT drain; the second one interrupts what runs. SIGHUP
    calls `reload`, which raises nothing."""

    def __init__(
        self,
        server: Server,
        signals: Signals,
        notifier: Notifier,
        store: SqliteStore,
        intake: Intake,
        runner: Runner,
        reload: Callable[[], Awaitable[None]],
    ) -> None:
        self._notifier = notifier
        self._store = store
        self._intake = intake
        self._runner = runner
        self._reload = reload
        self._drain_timeout_s = server.drain_timeout_s
        self._stop = signals.stop
        self._hangup = signals.hangup
        signals.hurry = self._hurry

    async def run(self, **housekeeping: Callable[[], Loop]) -> int:
        """Run jobs until told to stop, then drain; returns the exit code. `housekeeping` are loops by their names, of
        which one that fails is started again."""
        loops = {
            "runner": self._runner.run(),
            "ready": self._ready_loop(),
            "reload": self._reload_loop(),
            "status": self._status_loop(),
            "watchdog": self._watchdog_loop(),
            "store": self._store_failure(),
        } | {name: restart_on_failure(name, start) for name, start in housekeeping.items()}
        tasks = [asyncio.create_task(_endless(name, loop), name=name) for name, loop in loops.items()]
        stop = asyncio.create_task(self._stop.wait())
        done, _ = await asyncio.wait([*tasks, stop], return_when=asyncio.FIRST_COMPLETED)
        failed = [task for task in tasks if task in done]
        _log_failures(failed)
        # What still runs is queued again where the store allows it: the jobs have not caused this.
        await self._drain(0.0 if failed else self._drain_timeout_s)
        for task in (*tasks, stop):
            task.cancel()
        await asyncio.gather(*tasks, stop, return_exceptions=True)
        return 1 if failed else 0

    async def _drain(self, timeout_s: float) -> None:
        """Start no job, let the running ones end, interrupt the rest at the time-out: none of them loses an attempt."""
        self._notifier.stopping()
        self._intake.drain(timeout_s)
        started = time.monotonic()
        log.info("draining", running=self._runner.running, timeout_s=timeout_s)
        await self._runner.drain(timeout_s)
        log.info("drained", seconds=round(time.monotonic() - started, 3))

    def _hurry(self) -> None:
        log.warning("second signal: interrupting running jobs")
        self._runner.interrupt_all()
        self._intake.drain(0.0)

    async def _ready_loop(self) -> None:
        await self._send_ready()
        await asyncio.Event().wait()

    async def _reload_loop(self) -> None:
        """Read again what may change under a running daemon; several signals at once are one."""
        while True:
            await self._hangup.wait()
            self._hangup.clear()
            log.info("reloading; a new configuration needs a restart")
            is_expected = self._notifier.reloading()
            await self._reload()
            if is_expected:
                await self._send_ready()

    async def _send_ready(self) -> None:
        """Until the manager has taken it: without READY=1 a unit is killed as one that never started."""
        while not self._stop.is_set():
            if self._notifier.ready():
                break
            await asyncio.sleep(READY_RETRY_S)

    async def _status_loop(self) -> None:
        while True:
            try:
                stats = await self._store.stats()
                queued, running = sum(stats.queued.values()), sum(stats.running.values())
                self._notifier.status(f"queued {queued}, running {running}, write-ahead log {stats.wal_bytes} bytes")
            except Fault as fault:
                self._notifier.status(f"the store does not answer: {fault.message}")
            await asyncio.sleep(STATUS_EVERY_S)

    async def _watchdog_loop(self) -> None:
        """Feed the watchdog only while commits go on: a daemon whose writer hangs is better restarted.

        The probe also finds a lost database when nobody submits. Docker's health does not count here: a restart of
        the daemon does not mend it.
        """
        interval_s = self._notifier.watchdog_interval_s() or PROBE_EVERY_S
        while True:
            await asyncio.sleep(interval_s)
            # A full disk is an answer too, and no restart frees it.
            with contextlib.suppress(Temporary):
                await self._store.probe()
            self._notifier.watchdog()

    async def _store_failure(self) -> None:
        raise StoreFailed(await self._store.failed)


async def restart_on_failure(name: str, start: Callable[[], Loop]) -> None:
    """Run a loop again a while after it has failed: housekeeping is no reason to stop the daemon. Never returns.

    A failure that repeats the one before it is logged once.
    """
    last_error = ""
    while True:
        try:
            await start()
        except Exception as failure:
            error = repr(failure)
            if error != last_error:
                log.exception("a part of the housekeeping failed; it is tried again", part=name, error=error)
            last_error = error
        await asyncio.sleep(RESTART_DELAY_S)


async def _endless(name: str, loop: Loop) -> None:
    await loop
    raise RuntimeError(f"the {name} loop returned; it should run until cancelled")


def _log_failures(failed: Iterable[asyncio.Task[None]]) -> None:
    """Why the daemon stops. A database that failed is no defect, and is logged here once for all that met it."""
    reasons = set()
    for task in failed:
        match task.exception():
            case StoreFailed(reason=reason):
                reasons.add(reason)
            case failure:
                log.critical("stopping, because a part of the daemon failed", part=task.get_name(), exc_info=failure)
    for reason in reasons:
        log.critical("stopping, because the job database failed", error=reason)
