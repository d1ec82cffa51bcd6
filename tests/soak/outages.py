"""What breaks: the daemon, its engine, its registries. Each runs until it is told to stop and leaves its peer whole."""

import random
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import imagejobd
from harness.daemon import Daemon
from harness.engine import PrivateEngine
from harness.proxy import Answer, CutRequest, CutResponse, FaultProxy, Misbehaviour
from harness.registry import Registry
from imagejobd.model.failpoint import EXIT_STATUS

POLL_S = 0.02
READY_TIMEOUT_S = 60.0
DRAIN_TIMEOUT_S = 5.0
# A drain that takes longer than this beyond its bound hangs.
DRAIN_GRACE_S = 15.0
SPARED_MAX_S = 60.0
CRASHES_MAX = 3
LIFE_MIN_S = 0.3
# A failpoint needs a job that comes by; in units of a usual life.
ARMED_LIVES = 2.0
# Commits are many, so that one of them is chosen by number.
COMMITS_MAX = 40
ENGINE_GAP_MEAN_S = 25.0
ENGINE_AWAY_MAX_S = 8.0
REGISTRY_GAP_MEAN_S = 4.0
REGISTRY_AWAY_MAX_S = 6.0
START_TRIES = 3

_FAILPOINT = re.compile(r'failpoint\("(\w+)"\)')
_FAULTS: tuple[tuple[str, str, Misbehaviour], ...] = (
    (".*", ".*", Answer(503)),
    (".*", ".*", Answer(500)),
    (".*", ".*", Answer(429, {"Retry-After": "1"})),
    ("PUT", ".*/manifests/.*", Answer(502)),
    ("POST|PUT|PATCH", ".*", CutRequest(1_000)),
    (".*", ".*", CutResponse(0)),
    ("GET", ".*", CutResponse(500)),
)


def failpoints() -> list[str]:
    """The names of all places of imagejobd where it can be made to crash."""
    sources = Path(imagejobd.__file__).parent.rglob("*.py")
    return sorted({name for source in sources for name in _FAILPOINT.findall(source.read_text())})


class DaemonOutages:
    """Ends the daemon `kills_max` times within `seconds`, by SIGKILL or at a failpoint, and now and then by SIGTERM."""

    def __init__(self, daemon: Daemon, *, seed: str, seconds: float, kills_max: int) -> None:
        self.kills = 0
        self.restarts = 0
        self.fired: set[str] = set()
        self.recoveries_s: list[float] = []
        self.troubles: list[str] = []
        self._daemon = daemon
        self._random = random.Random(f"{seed}-daemon")
        self._kills_max = kills_max
        self._ends_at = time.monotonic() + seconds
        self._armed = ""

    def run(self, over: threading.Event) -> None:
        """From a running daemon to a running daemon."""
        while not over.is_set() and self.kills < self._kills_max:
            self._live(over)
            self._end()
            self._begin(over)
        over.wait()
        self._terminate()
        self._begin(over)

    def _begin(self, over: threading.Event) -> None:
        """Start until it is ready: a failpoint may fire before."""
        self._armed = "" if over.is_set() or self.kills >= self._kills_max else self._place()
        passes = self._random.randint(1, COMMITS_MAX) if self._armed.endswith("_commit") else 1
        died_at = time.monotonic()
        self._daemon.spawn(failpoints=self._armed and f"{self._armed}:{passes}")
        while not self._becomes_ready():
            self._note_death()
            died_at = time.monotonic()
            self._daemon.spawn()
        self.recoveries_s.append(time.monotonic() - died_at)

    def _live(self, over: threading.Event) -> None:
        """As long as the kills that are left allow, or until a failpoint fires."""
        left = max(1, self._kills_max - self.kills)
        mean_s = (self._ends_at - time.monotonic()) / left - self._usual_recovery_s()
        lives = ARMED_LIVES if self._armed else min(self._random.expovariate(2.0), ARMED_LIVES)
        dies_at = time.monotonic() + max(LIFE_MIN_S, lives * mean_s)
        while time.monotonic() < dies_at and self._daemon.is_running and not over.is_set():
            time.sleep(POLL_S)
        spared_until = time.monotonic() + SPARED_MAX_S
        while self._daemon.is_running and self._has_lone(CRASHES_MAX - 1) and time.monotonic() < spared_until:
            time.sleep(POLL_S)

    def _end(self) -> None:
        if not self._daemon.is_running:
            self._note_death()
        elif self._has_lone(CRASHES_MAX - 1) or self._random.random() < 0.15:
            self._terminate()
        else:
            self._daemon.kill()
            self.kills += 1

    def _terminate(self) -> None:
        """SIGTERM. It has to end in time and in order."""
        if not self._daemon.is_running:
            self._note_death()
            return
        code, _ = self._daemon.terminate(timeout_s=DRAIN_TIMEOUT_S + DRAIN_GRACE_S)
        self.restarts += 1
        if code == EXIT_STATUS:
            self._note_death()
        elif code != 0:
            self.troubles.append(f"SIGTERM: the daemon ended with {code}")

    def _place(self) -> str:
        """A failpoint for every second life, one that has not fired yet as long as there is any; none while its crash
        might make an innocent job the guilty one, which the crash that has just been may have brought one nearer."""
        if self._random.random() < 0.5 or self._has_lone(CRASHES_MAX - 2):
            return ""
        places = failpoints()
        return self._random.choice([place for place in places if place not in self.fired] or places)

    def _note_death(self) -> None:
        code = self._daemon.wait(timeout_s=1.0)
        if self._armed and code == EXIT_STATUS:
            self.fired.add(self._armed)
            self.kills += 1
        else:
            self.troubles.append(f"the daemon ended by itself with {code}")
        self._armed = ""

    def _becomes_ready(self) -> bool:
        """False where it has ended before."""
        gives_up_at = time.monotonic() + READY_TIMEOUT_S
        while not self._daemon.is_ready():
            if not self._daemon.is_running:
                return False
            if time.monotonic() > gives_up_at:
                raise TimeoutError(f"not ready after {READY_TIMEOUT_S:g} s: {self._daemon.log_text()[-2000:]}")
            time.sleep(POLL_S)
        return True

    def _usual_recovery_s(self) -> float:
        recent = self.recoveries_s[-10:] or [1.0]
        return sum(recent) / len(recent)

    def _has_lone(self, crashes: int) -> bool:
        """Whether a live job was the only one at work in so many crashes; also where that cannot be told."""
        query = "select exists (select 1 from job where state in ('queued', 'running') and crashes_alone >= ?)"
        try:
            return bool(self._daemon.sqlite(query, (crashes,))[0][0])
        except sqlite3.Error:
            return True


class EngineOutages:
    """Stops, kills, freezes and restarts the engine."""

    def __init__(self, engine: PrivateEngine, *, seed: str) -> None:
        self.count = 0
        self._engine = engine
        self._random = random.Random(f"{seed}-engine")

    def run(self, over: threading.Event) -> None:
        ways: list[Callable[[threading.Event], None]] = [self._stop, self._kill, self._freeze, self._restart]
        while not over.wait(self._random.uniform(0.3, 1.7) * ENGINE_GAP_MEAN_S):
            self._random.choice(ways)(over)
            self.count += 1

    def _stop(self, over: threading.Event) -> None:
        self._engine.stop()
        self._stay_away(over)
        self._start()

    def _kill(self, over: threading.Event) -> None:
        self._engine.kill()
        self._stay_away(over)
        self._start()

    def _freeze(self, over: threading.Event) -> None:
        with self._engine.frozen():
            self._stay_away(over)

    def _restart(self, over: threading.Event) -> None:
        self._engine.stop()
        self._start()

    def _stay_away(self, over: threading.Event) -> None:
        over.wait(self._random.uniform(0.0, ENGINE_AWAY_MAX_S))

    def _start(self) -> None:
        """On a busy machine an engine that was killed may need a second try."""
        for _ in range(START_TRIES - 1):
            try:
                self._engine.start()
            except (RuntimeError, TimeoutError):
                continue
            return
        self._engine.start()


class RegistryOutages:
    """Stops and freezes registries, and has the proxy before one of them answer badly."""

    def __init__(self, registries: Sequence[Registry], proxy: FaultProxy, *, seed: str) -> None:
        self.count = 0
        self._registries = registries
        self._proxy = proxy
        self._random = random.Random(f"{seed}-registries")

    def run(self, over: threading.Event) -> None:
        ways: list[Callable[[threading.Event], None]] = [self._stop, self._freeze, self._misbehave]
        while not over.wait(self._random.uniform(0.3, 1.7) * REGISTRY_GAP_MEAN_S):
            self._random.choice(ways)(over)
            self.count += 1

    def _stop(self, over: threading.Event) -> None:
        registry = self._random.choice(self._registries)
        registry.stop()
        self._stay_away(over)
        registry.start()

    def _freeze(self, over: threading.Event) -> None:
        with self._random.choice(self._registries).frozen():
            self._stay_away(over)

    def _misbehave(self, over: threading.Event) -> None:
        """All requests that match, or some of them; the proxy forgets what it saw as well."""
        with ExitStack() as stack:
            stack.callback(self._proxy.reset)
            method, path, fault = self._random.choice(_FAULTS)
            self._proxy.add(method, path, fault, times=self._random.choice([1, 5, None]))
            self._stay_away(over)

    def _stay_away(self, over: threading.Event) -> None:
        over.wait(self._random.uniform(0.5, REGISTRY_AWAY_MAX_S))
