"""imagejobd itself as a subprocess, on a state folder that survives its crashes."""

import json
import os
import shutil
import sqlite3
import sys
import tempfile
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from harness.forked import Template
from harness.process import Child, Exit, Peer, Process, free_port

START_TIMEOUT_S = 20.0
PROBE_TIMEOUT_S = 5.0
FAILPOINTS_VARIABLE = "IMAGEJOBD_FAILPOINTS"
SOURCE_ROOT = Path(__file__).parents[2]

Config = Mapping[str, Mapping[str, Any]]


class Daemon(Peer):
    """`python -m imagejobd serve` with a configuration file made from `config`, on a free port.

    `config` holds tables as `config.toml` does; `server.listen`, `server.state_dir` and `engine.host` are added
    (without `engine_host` an engine that is down), and the network that a `PrivateEngine` can give to RUN steps: none.
    `template` is what all daemons are forked from that are not to be `executed`; without one all are.
    """

    template: ClassVar[Template | None] = None

    def __init__(
        self,
        config: Config | None = None,
        *,
        engine_host: str | None = None,
        env: Mapping[str, str] | None = None,
        executed: bool = False,
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="imagejobd-daemon-"))
        self.state_dir = self.folder / "state"
        self.state_dir.mkdir(mode=0o700)  # as systemd's StateDirectory= does
        self.config_file = self.folder / "config.toml"
        self.port = free_port()
        self._env = clean_environment() | dict(env or {})
        self.configure(_merged(config or {}, self._own_tables(engine_host)))
        self._process = _Process(
            [sys.executable, "-m", "imagejobd", "serve", "--config", str(self.config_file)],
            log_file=self.folder / "daemon.log",
            env=self._env,
            template=None if executed else self.template,
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.is_running

    def configure(self, config: Config) -> None:
        """Write the configuration file for the next start, as it is."""
        self.config_file.write_text(to_toml(config))

    def start(self, *, failpoints: str = "", umask: int = -1) -> None:
        """Start on the same state and wait for /readyz. `failpoints` arms crashes for this life only; `umask` is the
        process's, where it is not to be the caller's."""
        self._arm(failpoints)
        self._process.umask = umask
        self._process.start(self.is_ready, timeout_s=START_TIMEOUT_S)

    def spawn(self, *, failpoints: str = "") -> None:
        """Start without waiting: for a failpoint that fires, or a configuration that is refused, before ready."""
        self._arm(failpoints)
        self._process.spawn()

    def is_ready(self) -> bool:
        """Whether /readyz says so now."""
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=PROBE_TIMEOUT_S) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    def wait(self, *, timeout_s: float = START_TIMEOUT_S) -> int:
        """Wait until it ends by itself; returns the exit code (a failpoint's is 137)."""
        return self._process.wait(timeout_s=timeout_s)

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()

    def terminate(self, *, timeout_s: float = 120.0) -> Exit:
        """SIGTERM and wait; returns exit code and seconds."""
        return self._process.terminate(timeout_s=timeout_s)

    def remove(self) -> None:
        """End it and remove its state."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def sqlite(self, sql: str, parameters: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """The rows of a query, read by a read-only connection beside the running daemon."""
        with closing(sqlite3.connect(f"file:{self.database_file}?mode=ro", uri=True)) as connection:
            return connection.execute(sql, parameters).fetchall()

    @property
    def database_file(self) -> Path:
        return self.state_dir / "imagejobd.db"

    @property
    def installation(self) -> str:
        """What it calls itself in the engine."""
        return str(self.sqlite("select id from installation")[0][0])

    def rss_bytes(self) -> int:
        """The memory it has resident now."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise ProcessLookupError(f"{self.pid} has ended")

    def log_text(self) -> str:
        """What it has written to stdout and stderr in all its lives."""
        return self._process.log_text()

    def _own_tables(self, engine_host: str | None) -> Config:
        server = {"listen": [f"127.0.0.1:{self.port}"], "state_dir": str(self.state_dir)}
        # Never the machine's own engine.
        host = engine_host or f"unix://{self.folder}/no-engine.sock"
        return {"server": server, "engine": {"host": host, "network": "none"}}

    def _arm(self, failpoints: str) -> None:
        self._process.env = self._env | ({FAILPOINTS_VARIABLE: failpoints} if failpoints else {})


class _Process(Process):
    """`python -m imagejobd`, forked from `template` where that makes no difference."""

    def __init__(
        self, argv: Sequence[str], *, log_file: Path, env: Mapping[str, str], template: Template | None
    ) -> None:
        super().__init__(argv, log_file=log_file, env=env)
        self._template = template if template is not None and template.suits(env) else None

    def _launch(self, log: BinaryIO) -> Child:
        if self._template is None:
            return super()._launch(log)
        return self._template.fork(self.argv[3:], env=self.env, log=log.fileno(), umask=self.umask)


def to_toml(tables: Mapping[str, Any]) -> str:
    """Tables of strings, numbers, booleans, lists and tables as TOML; every name is quoted, so any will do."""
    return "\n".join(_table((name,), content) for name, content in tables.items())


def _table(path: tuple[str, ...], content: Mapping[str, Any]) -> str:
    plain = {k: v for k, v in content.items() if not isinstance(v, Mapping)}
    inner = {k: v for k, v in content.items() if isinstance(v, Mapping)}
    lines = [f"[{'.'.join(json.dumps(name) for name in path)}]"]
    # A JSON scalar or list of scalars is a TOML one too.
    lines += [f"{json.dumps(key)} = {json.dumps(value)}" for key, value in plain.items()]
    lines += [_table((*path, key), value) for key, value in inner.items()]
    return "\n".join(lines) + "\n"


def _merged(given: Config, own: Config) -> dict[str, dict[str, Any]]:
    """`own` below `given`, table by table, so that a caller can override every key."""
    return {name: {**own.get(name, {}), **given.get(name, {})} for name in [*own, *(n for n in given if n not in own)]}


def clean_environment() -> dict[str, str]:
    """The caller's environment without what the daemon itself would obey; peers on loopback are reached directly."""
    obeyed = {"PORT", "DOCKER_HOST", "NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "WATCHDOG_USEC", FAILPOINTS_VARIABLE}
    obeyed |= {name for name in os.environ if name.lower() in ("http_proxy", "https_proxy", "all_proxy")}
    clean = {k: v for k, v in os.environ.items() if k not in obeyed}
    path = [str(SOURCE_ROOT), *filter(None, [clean.get("PYTHONPATH")])]
    return clean | {"PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1"}
