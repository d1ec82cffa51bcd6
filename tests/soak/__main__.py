"""`python -m soak`: see the package. The exit code is 1 where a promise was broken."""

import argparse
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.base_image import load_busybox, publish_busybox
from harness.daemon import Config, Daemon
from harness.engine import PrivateEngine
from harness.images import put_image
from harness.logins import JWT_SECRET
from harness.proxy import FaultProxy
from harness.registry import Registry
from soak import verdict
from soak.load import TENANTS, Customer, Records, Site
from soak.outages import CRASHES_MAX, DRAIN_TIMEOUT_S, DaemonOutages, EngineOutages, RegistryOutages, failpoints

PROGRESS_EVERY_S = 5.0
# In peace: until the queue is empty, and then until the sweeps that the daemon makes every minute have been.
EMPTY_TIMEOUT_S = 300.0
SWEPT_TIMEOUT_S = 150.0
LOOK_EVERY_S = 1.0
SETTLED_AFTER_S = 2.0
SOURCES = {"source/small": (10_000,), "source/layers": (300_000, 200_000, 100_000), "source/large": (6_000_000, 50_000)}
MIB = 1024 * 1024


@dataclass(frozen=True)
class Options:
    minutes: float
    kills: int
    seed: str
    keep: Path | None

    @property
    def seconds(self) -> float:
        return self.minutes * 60


class Soak:
    """All peers, running; see `hold`."""

    def __init__(self, options: Options, engine: PrivateEngine, site: Site, daemon: Daemon) -> None:
        self.options = options
        self.engine = engine
        self.site = site
        self.daemon = daemon
        self.records = Records()
        self.crashes = DaemonOutages(daemon, seed=options.seed, seconds=options.seconds, kills_max=options.kills)
        self.engine_outages = EngineOutages(engine, seed=options.seed)
        registries = [site.registry, site.private, site.mirror]
        self.registry_outages = RegistryOutages(registries, site.proxy, seed=options.seed)

    @classmethod
    @contextmanager
    def on_peers(cls, options: Options) -> Iterator["Soak"]:
        """On peers of its own, which end, each by its pid, with all that they have on disk."""
        with ExitStack() as stack:
            engine = stack.enter_context(PrivateEngine())
            registry, mirror = stack.enter_context(Registry()), stack.enter_context(Registry())
            private = stack.enter_context(Registry(htpasswd=True))
            proxy = stack.enter_context(FaultProxy(registry.host))
            load_busybox(engine)
            site = Site(
                registry=registry,
                private=private,
                mirror=mirror,
                proxy=proxy,
                sources={
                    name: put_image(registry, name, "1", layers=sizes, seed=name) for name, sizes in SOURCES.items()
                },
                public_base=publish_busybox(engine, registry, "bases/busybox", "1"),
                private_base=publish_busybox(engine, private, "bases/busybox", "1"),
            )
            secret = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="imagejobd-soak-"))) / "jwt.secret"
            secret.write_text(JWT_SECRET)
            secret.chmod(0o600)
            daemon = stack.enter_context(Daemon(_config(registry, secret), engine_host=engine.host))
            if options.keep is not None:
                stack.callback(_keep, daemon, engine, options.keep)
            yield cls(options, engine, site, daemon)

    def hold(self) -> bool:
        """Break things under load, leave all in peace, judge; whether every promise was kept."""
        time.sleep(SETTLED_AFTER_S)
        rss_before, began = self.daemon.rss_bytes(), time.monotonic()
        self._break_under_load(began)
        loaded_s = time.monotonic() - began
        findings = self._judge()
        ended = sum(row.has_ended for row in verdict.read_rows(self.daemon))
        recoveries_s = self.crashes.recoveries_s or [0.0]
        measured = {
            "recovery, p50": f"{statistics.median(recoveries_s):.2f} s",
            "recovery, max": f"{max(recoveries_s):.2f} s",
            "jobs done per minute": f"{ended / loaded_s * 60:.1f}",
            "RSS at start": f"{rss_before / MIB:.0f} MiB",
            "RSS at end": f"{self.daemon.rss_bytes() / MIB:.0f} MiB",
            "kills": str(self.crashes.kills),
            "failpoints that fired": f"{len(self.crashes.fired)}/{len(failpoints())}",
            "restarts by SIGTERM": str(self.crashes.restarts),
            "outages of the engine": str(self.engine_outages.count),
            "outages of registries": str(self.registry_outages.count),
            "requests repeated": str(len(self.records.repeated)),
            "minutes under load": f"{loaded_s / 60:.1f}",
        }
        print(f"\n{verdict.table(findings, len(self.records.jobs), measured)}\n")
        if silent := sorted(set(failpoints()) - self.crashes.fired):
            print(f"failpoints that did not fire: {', '.join(silent)}")
        print("\n".join(findings.lines(self.daemon.log_text())))
        return findings.is_clean

    def _break_under_load(self, began: float) -> None:
        over = threading.Event()
        customers = [
            Customer(f"c{n}", self.site, self.daemon, self.records, seed=self.options.seed, tenant=tenant)
            for n, tenant in enumerate(TENANTS)
        ]
        ctx: list[Callable[[threading.Event], None]] = [customer.serve for customer in customers]
        ctx += [self.crashes.run, self.engine_outages.run, self.registry_outages.run]
        with ThreadPoolExecutor(len(ctx)) as pool:
            parts = [pool.submit(part, over) for part in ctx]
            try:
                self._watch(parts, began)
            finally:
                over.set()
        for part in parts:
            part.result()

    def _watch(self, parts: list[Future[None]], began: float) -> None:
        """Tell of the progress until the time is up. Raises what a part raises."""
        while (left_s := began + self.options.seconds - time.monotonic()) > 0:
            done, _ = wait(parts, timeout=min(PROGRESS_EVERY_S, left_s), return_when=FIRST_EXCEPTION)
            for part in done:
                part.result()
            self._say("under load", began)

    def _say(self, what: str, began: float) -> None:
        ended = sum(bool(job.first_end) for job in self.records.jobs)
        print(
            f"{time.monotonic() - began:6.0f} s {what}: {len(self.records.jobs)} acknowledged, {ended} seen to end, "
            f"{self.crashes.kills} kills, {self.crashes.restarts} restarts, {self.engine_outages.count} outages of the "
            f"engine, {self.registry_outages.count} of registries",
            flush=True,
        )

    def _judge(self) -> verdict.Findings:
        findings = verdict.Findings()
        _in_time(lambda: verdict.is_queue_empty(self.daemon), EMPTY_TIMEOUT_S, "the queue to be empty")
        _in_time(lambda: not self._orphans(), SWEPT_TIMEOUT_S, "the sweep")
        findings.add(verdict.ORPHANS, *self._orphans())
        done = verdict.judge_jobs(findings, self.records, verdict.read_rows(self.daemon))
        verdict.judge_results(findings, done, self.site)
        verdict.judge_blobs(findings, self.daemon)
        verdict.judge_daemon(findings, self.daemon, self.crashes.troubles)
        return findings

    def _orphans(self) -> list[str]:
        return verdict.orphans(self.engine, self.site, self.daemon.state_dir)


def _in_time(reached: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Wait; what does not come in time the verdict finds missing."""
    began = time.monotonic()
    while not reached():
        if time.monotonic() - began > timeout_s:
            print(f"waited {timeout_s:g} s in vain for {what}", flush=True)
            return
        time.sleep(LOOK_EVERY_S)
    print(f"waited {time.monotonic() - began:.0f} s for {what}", flush=True)


def _config(registry: Registry, secret: Path) -> Config:
    return {
        "server": {"drain_timeout_s": DRAIN_TIMEOUT_S},
        "auth": {"jwt_secret_file": str(secret)},
        "limits": {"retry_first_s": 0.5, "retry_max_s": 3.0, "crashes_max": CRASHES_MAX},
        "kinds": {"dispatch": {"repository": f"{registry.host}/dispatched"}},
    }


def _keep(daemon: Daemon, engine: PrivateEngine, folder: Path) -> None:
    """Copy what tells of the run, before it goes."""
    folder.mkdir(parents=True, exist_ok=True)
    daemon.kill()
    (folder / "daemon.log").write_text(daemon.log_text())
    (folder / "dockerd.log").write_text(engine.log_text())
    for file in daemon.state_dir.glob("imagejobd.db*"):
        shutil.copy(file, folder)


def _options() -> Options:
    parser = argparse.ArgumentParser(prog="soak", description="Break everything under load; no job may pay for it.")
    parser.add_argument("--minutes", type=float, default=15.0, help="under load; peace and judgement come on top")
    parser.add_argument("--kills", type=int, default=300, help="of the daemon, at most")
    parser.add_argument("--seed", default=str(random.randrange(10**6)), help="for the same orders and outages again")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="copy logs and database there")
    return Options(**vars(parser.parse_args()))


def main() -> int:
    options = _options()
    # As Ctrl-C: the peers are ended in order.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    print(
        f"seed {options.seed}, {options.minutes:g} minutes, {options.kills} kills, {os.cpu_count()} cores", flush=True
    )
    try:
        with Soak.on_peers(options) as soak:
            return 0 if soak.hold() else 1
    except KeyboardInterrupt:
        print("stopped; everything that was started has been ended", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
