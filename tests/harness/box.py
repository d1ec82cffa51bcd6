"""The daemon with its engine: started for a test, asked as a client, and looked over for what must hold afterwards."""

import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.client import Client, Fields
from harness.daemon import Daemon
from harness.engine import PrivateEngine
from harness.holdings import holdings, holdings_of
from harness.process import Peer
from harness.waiting import until
from imagejobd.model.failpoint import EXIT_STATUS

# Retries that a test waits for.
QUICK_RETRIES = {"retry_first_s": 0.3, "retry_max_s": 1.0}


class Box(Client, Peer):
    """A daemon on `engine`, and its client without a token; `tables` are those of `config.toml`.

    A `with` block starts it and removes it. `failpoints` arms crashes for its first life, which may end before ready.
    """

    def __init__(
        self,
        engine: PrivateEngine | None = None,
        /,
        *,
        builder: str = "buildkit",
        engine_host: str | None = None,
        env: Mapping[str, str] | None = None,
        failpoints: str = "",
        **tables: Mapping[str, Any],
    ) -> None:
        config = tables | {
            "engine": {"builder": builder, **tables.get("engine", {})},
            "limits": {**QUICK_RETRIES, **tables.get("limits", {})},
        }
        host = engine_host or (engine.host if engine else None)
        super().__init__(Daemon(config, engine_host=host, env=env))
        self.builder = builder
        self._engine = engine
        self._failpoints = failpoints

    @property
    def engine(self) -> PrivateEngine:
        if self._engine is None:
            raise RuntimeError("this box has no engine")
        return self._engine

    def start(self) -> None:
        if not self._failpoints:
            self.daemon.start()
            return
        self.daemon.spawn(failpoints=self._failpoints)
        until(lambda: self.daemon.is_ready() or not self.daemon.is_running, what="the daemon to be ready or to crash")

    def remove(self) -> None:
        self.daemon.remove()

    def restart(self) -> None:
        """`kill -9`, and up again without any crash armed."""
        self.daemon.kill()
        self.daemon.start()

    def submit_surely(self, kind: str, spec: Fields) -> str:
        """Submit as a client does that repeats itself until it has an answer, across an armed crash."""
        key = str(uuid.uuid4())
        try:
            return self.submit(kind, spec, key=key)
        except OSError:
            self.go_on_after_crash()
            return self.submit(kind, spec, key=key)

    def go_on_after_crash(self) -> None:
        """Wait for the armed crash, unless the daemon has been started again after it, and start it again."""
        if self.daemon.log_text().count(" event=starting ") == 1:
            assert self.daemon.wait() == EXIT_STATUS
            self.daemon.start()

    def spooled(self) -> list[Path]:
        """Files that jobs and requests keep beside memory."""
        return [path for path in (self.daemon.state_dir / "spool").rglob("*") if path.is_file()]

    def blobs(self) -> set[str]:
        """Digests of what the content store holds."""
        return {path.name for path in (self.daemon.state_dir / "blobs").rglob("*") if path.is_file()}

    def check_healthy(self) -> None:
        """It answers, has met no defect of its own, has a sound database, and no file of an ended job lies about."""
        assert self.call("GET", "/readyz").status == 200
        log = self.daemon.log_text()
        assert "Traceback" not in log, log[-3000:]
        assert "defect of imagejobd" not in log, log[-3000:]
        assert self.spooled() == []
        self.check_database()

    def check_database(self) -> None:
        assert self.daemon.sqlite("pragma integrity_check") == [("ok",)]
        assert self.daemon.sqlite("pragma foreign_key_check") == []

    def check_gone(self, job: str) -> None:
        """Nothing of this job is in the engine, or it is just being swept."""
        until(lambda: not holdings_of(self.engine, job), what=lambda: holdings_of(self.engine, job))


@contextmanager
def nothing_stays(engine: PrivateEngine) -> Iterator[None]:
    """No container, volume (anonymous ones neither) or image of the block's stays; a sweep may still be at it."""
    before = holdings(engine)
    yield
    until(lambda: holdings(engine) <= before, what=lambda: holdings(engine) - before)
