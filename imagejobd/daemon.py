"""How everything hangs together: `serve` opens the parts of the daemon from the ground up and hands them to each other.

::

    curl ──▶ api ──▶ store (SQLite) ◀── runner ──▶ kinds ──▶ engine (Docker)
                                                        └──▶ registry

`api` and `runner` never meet but at the store, so a job that was acknowledged is on disk before anybody works on it.
"""

import asyncio
import gc
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple, cast

import structlog
import uvloop
from aiohttp import web

from imagejobd import __version__, logs
from imagejobd.api.app import create_app
from imagejobd.api.auth import Authentication
from imagejobd.api.intake import Intake, QueueBounds
from imagejobd.api.keys import load_keys
from imagejobd.api.metrics import Metrics
from imagejobd.config import Config, ConfigError
from imagejobd.dockerfile.policy import Policy
from imagejobd.engine.client import Engine
from imagejobd.engine.leases import Presence, presence_loop
from imagejobd.jobs.build import BuildKind
from imagejobd.jobs.dispatch import DispatchKind, check_repository
from imagejobd.jobs.distribute.kind import DistributeKind
from imagejobd.jobs.run import RunKind
from imagejobd.jobs.shared.access import EngineEgress
from imagejobd.jobs.shared.builder import ImageBuilder
from imagejobd.listeners import open_listeners
from imagejobd.model.circuit import Circuits
from imagejobd.model.clock import Clock, now_ms, utc
from imagejobd.model.egress import Egress
from imagejobd.model.errors import ErrorCode, Fault, Temporary
from imagejobd.model.job import uuid7
from imagejobd.model.kind import JobKind, by_name
from imagejobd.model.resolver import Resolver
from imagejobd.model.traffic import Traffic
from imagejobd.registry.client import RegistryClient
from imagejobd.registry.copy.transfer import Copier
from imagejobd.registry.hosts import RegistryHosts
from imagejobd.runner.gate import EngineGate
from imagejobd.runner.recovery import rescue, sweep_loop
from imagejobd.runner.retention import expire_loop, prune_loop
from imagejobd.runner.runner import Runner
from imagejobd.runner.schedules import Schedule, Schedules, read_schedules
from imagejobd.runner.webhooks import Webhooks, read_webhooks
from imagejobd.store.blobs import BlobStore
from imagejobd.store.files import FILE_MODE, FOLDER_MODE, UMASK, set_mode
from imagejobd.store.lock import LOCK_FILE_NAME, lock_state_dir
from imagejobd.store.sqlite.store import SqliteStore
from imagejobd.store.vault import Vault
from imagejobd.supervisor import Signals, Supervisor
from imagejobd.systemd import Notifier

DATABASE_NAME = "imagejobd.db"
# Where the earlier builder found its Redis.
REDIS_PREFIX = "CACHE_1_"

log = structlog.get_logger("imagejobd.daemon")


def check(config: Config) -> Iterator[str]:
    """What a start would refuse of a configuration that reads well, each with its key."""
    admins = config.auth.admin_subjects
    checks: tuple[Callable[[], object], ...] = (
        lambda: Egress(config.egress),
        lambda: Policy(config.policy),
        lambda: check_repository(config.kinds.dispatch.repository),
        lambda: Engine(config.engine),
        lambda: RegistryHosts(config.registry, admin_subjects=admins),
        lambda: load_keys(config.auth),
        lambda: read_webhooks(config.webhooks),
        lambda: check_schedules(config),
    )
    for check_part in checks:
        try:
            check_part()
        except Fault as fault:
            yield fault.message


def check_schedules(config: Config) -> list[Schedule]:
    """The schedules of a configuration, checked without opening anything. Raises `Permanent`."""
    if not config.schedule:
        return []
    builder = cast("ImageBuilder", _Judge(Policy(config.policy)))
    # Neither a copier nor a registry client is asked for what a spec says.
    registry, copier = cast("RegistryClient", None), cast("Copier", None)
    return read_schedules(config.schedule, _kinds(config, builder, Egress(config.egress), Resolver(), registry, copier))


def next_runs(config: Config) -> Iterator[tuple[str, str]]:
    """Of each schedule its name, and when it would run next if it began now."""
    for schedule in check_schedules(config):
        due_ms = schedule.cron.next_after(now_ms())
        yield schedule.name, "never" if due_ms is None else utc(due_ms)


class _Judge(NamedTuple):
    """As much of an `ImageBuilder` as kinds need to check a spec, with an engine of which nothing is known."""

    policy: Policy
    knows_heredocs: bool = True
    blobs: None = None


def run(config: Config) -> int:
    """Serve until told to stop; returns the process's exit code."""
    logs.configure()
    version, state_dir, host = __version__, config.server.state_dir, config.engine.resolved_host()
    log.info("starting", version=version, state_dir=state_dir, engine=host)
    if ignored := sorted(name for name in os.environ if name.startswith(REDIS_PREFIX)):
        message = "the variables of the earlier builder's Redis are ignored: the queue in state_dir replaces it"
        log.warning(message, names=", ".join(ignored))
    # What is imported stays for good; the collector's walks over all of it held up every request for 10 to 20 ms.
    gc.collect()
    gc.freeze()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
        try:
            return loop.run(serve(config))
        except ConfigError as error:
            log.critical("cannot start", error=str(error))
            return os.EX_CONFIG
        except Fault as fault:
            log.critical("cannot start", error=fault.message)
            return 1


async def serve(config: Config) -> int:
    """Open everything, take back what a crash left, listen, and work until told to stop; returns the exit code."""
    signals, worker, limits = Signals(), uuid7(), config.limits
    async with AsyncExitStack() as stack:
        umask = os.umask(UMASK)
        stack.callback(os.umask, umask)
        state_dir, blobs = _open_state_dir(stack, config)
        vault = Vault.from_environment(state_dir)
        store = await _open_store(stack, state_dir, vault, blobs)

        engine = await stack.enter_async_context(Engine(config.engine, await store.engine.installation()))
        clock, gate, presence = Clock(), EngineGate(engine.probe), Presence(engine)
        stack.push_async_callback(presence.withdraw)
        egress, names, circuits, traffic = Egress(config.egress), Resolver(), Circuits(), Traffic(config.registry)
        registry = await _open_registry(stack, config, egress, names, circuits, traffic)

        builder = ImageBuilder(
            engine,
            registry,
            EngineEgress(egress, names),
            blobs,
            Policy(config.policy),
            records=store.engine,
            known=store.engine.known,
            cache_scope=(lambda _tenant: "") if config.engine.share_build_cache else vault.fingerprint,
        )
        kinds = _kinds(config, builder, egress, names, registry, _copier(config, blobs))
        slots = {name: limits.slots(name) for name in kinds}
        runner = Runner(
            store, kinds, limits, slots=slots, worker=worker, gate=gate, circuits=circuits, clock=clock, traffic=traffic
        )
        intake = _intake(config, store, kinds, slots, runner)
        authentication = Authentication(config.auth)
        schedules = Schedules(read_schedules(config.schedule, kinds), store, limits)
        webhooks = Webhooks(read_webhooks(config.webhooks), store, egress, names)
        metrics = await _metrics(config, store, slots, gate, circuits, traffic, webhooks)
        app = _create_app(config, intake, authentication, store, blobs, gate, presence, metrics, schedules)

        await rescue(store, worker, crashes_max=limits.crashes_max)
        addresses = await open_listeners(stack, config, app, intake, umask=umask)
        log.info("ready", listen=", ".join(addresses), installation=engine.installation)
        supervisor = Supervisor(config.server, signals, Notifier(), store, intake, runner, authentication.reload)
        return await supervisor.run(
            sweep=lambda: sweep_loop(store, kinds.values()),
            expire=lambda: expire_loop(store, limits.queue_timeout_s, clock, runner.downtime_ms),
            prune=lambda: prune_loop(store, blobs, config.retention),
            build_cache=builder.prune_loop,
            presence=lambda: presence_loop(presence),
            metrics=metrics.run,
            webhooks=webhooks.run,
            schedules=schedules.run,
        )


def _open_state_dir(stack: AsyncExitStack, config: Config) -> tuple[Path, BlobStore]:
    """Make and hold the state folder, and clear what a crash left in it."""
    folder = Path(config.server.state_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(lock_state_dir(folder))
        blobs = BlobStore(folder)
        blobs.clear_spool()
        blobs.set_modes()
        _set_modes(folder)
    except OSError as error:
        message = f"server.state_dir: cannot use {folder}: {error.strerror}: {error.filename}"
        raise Temporary(ErrorCode.INTERNAL, message) from None
    return folder, blobs


def _set_modes(folder: Path) -> None:
    """Of a state folder and files that were made under another umask. The key's are the vault's to check."""
    for name in (LOCK_FILE_NAME, DATABASE_NAME, f"{DATABASE_NAME}-wal", f"{DATABASE_NAME}-shm"):
        if (folder / name).exists():
            set_mode(folder / name, FILE_MODE)
    try:
        set_mode(folder, FOLDER_MODE)
    except PermissionError:
        log.warning("the state folder belongs to another user, and keeps its permissions", state_dir=str(folder))


async def _open_store(stack: AsyncExitStack, state_dir: Path, vault: Vault, blobs: BlobStore) -> SqliteStore:
    store = await stack.enter_async_context(
        SqliteStore.open(
            state_dir / DATABASE_NAME, vault=vault, blob_size=blobs.size_bytes, has_content=blobs.has_content()
        )
    )
    unopened = await store.register_key()
    if unopened:
        log.warning(
            "the secrets key is not the one of the last start, and waiting jobs have registry credentials that it does "
            "not open: they will fail with secrets_lost, unless the old key is put back and the daemon started again",
            jobs=unopened,
        )
    return store


async def _open_registry(
    stack: AsyncExitStack, config: Config, egress: Egress, names: Resolver, circuits: Circuits, traffic: Traffic
) -> RegistryClient:
    admins = config.auth.admin_subjects
    registry = RegistryClient(
        config.registry, egress, names=names, circuits=circuits, traffic=traffic, admin_subjects=admins
    )
    return await stack.enter_async_context(registry)


def _kinds(
    config: Config, builder: ImageBuilder, egress: Egress, names: Resolver, registry: RegistryClient, copier: Copier
) -> dict[str, JobKind]:
    """A new kind of job is one more line here, and needs no other."""
    return by_name(
        BuildKind(builder, egress, names, config.kinds.build),
        RunKind(builder, config.kinds.run),
        DispatchKind(builder, config.kinds.dispatch),
        DistributeKind(registry, copier, config.kinds.distribute),
    )


def _copier(config: Config, blobs: BlobStore) -> Copier:
    settings = config.kinds.distribute
    return Copier(
        blobs.spool_file,
        streams_max=settings.streams_max,
        window_bytes=settings.window_bytes,
        spool_max_bytes=settings.spool_max_bytes,
    )


def _intake(
    config: Config, store: SqliteStore, kinds: Mapping[str, JobKind], slots: Mapping[str, int], runner: Runner
) -> Intake:
    limits, each = config.limits, config.limits.per_tenant
    return Intake(
        store,
        kinds,
        config.server,
        bounds=QueueBounds(limits.queue_max, each.queue_max, each.stored_max_bytes),
        slots=slots,
        waiting_for=runner.waiting_for,
        waiting_for_kind=runner.waiting_for_kind,
        eta_s=runner.eta_s,
    )


async def _metrics(
    config: Config,
    store: SqliteStore,
    slots: Mapping[str, int],
    gate: EngineGate,
    circuits: Circuits,
    traffic: Traffic,
    webhooks: Webhooks,
) -> Metrics:
    return Metrics(
        store,
        store.commits,
        since_event=await store.last_event(),
        slots=slots,
        queue_max=config.limits.queue_max,
        crashes_max=config.limits.crashes_max,
        engine=gate,
        circuits=circuits,
        traffic=traffic,
        state_dir=Path(config.server.state_dir),
        webhooks=webhooks.counts,
    )


def _create_app(
    config: Config,
    intake: Intake,
    authentication: Authentication,
    store: SqliteStore,
    blobs: BlobStore,
    gate: EngineGate,
    presence: Presence,
    metrics: Metrics,
    schedules: Schedules,
) -> web.Application:
    return create_app(
        intake,
        {"engine": lambda: gate.waiting or "ok"},
        authentication,
        needs={"store": store.probe, "blobs": blobs.probe},
        registries=config.registry,
        other_daemons=lambda: presence.others,
        metrics=metrics,
        schedule_statuses=schedules.status,
    )
