"""Distributions on a real store and a real runner, with copies that a test scripts itself."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import pytest

from imagejobd.jobs.distribute import copies as copies_module
from imagejobd.jobs.distribute.kind import DistributeKind
from imagejobd.jobs.distribute.spec import DistributeSettings
from imagejobd.jobs.distribute.table import Endpoints, endpoints
from imagejobd.model.circuit import Circuits
from imagejobd.model.errors import Fault, NotFound
from imagejobd.model.job import Claim, Enqueued, Job, Json, NewJob, Principal, Push, uuid7
from imagejobd.model.secrets import Credentials
from imagejobd.registry.copy.image import Ended, Options
from imagejobd.registry.copy.target import Outcome, TagState, Tally, Target
from imagejobd.registry.copy.transfer import Copier, Holdings
from imagejobd.registry.hosts import RegistryTarget
from imagejobd.registry.repository import Repository
from imagejobd.store.sqlite.store import SqliteStore
from runner.runner_bench import END_TIMEOUT_S, Bench

DIGEST = "sha256:" + "a" * 64
SOURCE_DIGEST = "sha256:" + "5" * 64
# What a copy meets when the source does not have what it is asked for.
GONE = NotFound("image not found: a.example/team/app has no such thing")
Say = Callable[[str], Awaitable[None]]
MIRRORS = {"mirrored.example": ("mirror.example",)}


class Asked(NamedTuple):
    """One call of the copy: the source's image, and the places it was to go to."""

    source: str
    name: str
    targets: list[str]
    options: Options


class NamedConnection:
    """As much of a connection as is looked at without copying."""

    def __init__(self, site: RegistryTarget, warn: Callable[[str], None]) -> None:
        self.site = site
        self.host = site.host
        self.warn = warn

    def mirrors(self) -> list["NamedConnection"]:
        return [NamedConnection(RegistryTarget(host=host), self.warn) for host in MIRRORS.get(self.host, ())]


class NamedRegistries:
    """Connects to nothing and remembers to what."""

    def __init__(self, configured: Credentials | None = None, only_host: str | None = None) -> None:
        self.connections: list[NamedConnection] = []
        self.circuits = Circuits()
        self._configured = configured
        self._only_host = only_host

    def connect(self, site: RegistryTarget, *, warn: Callable[[str], None]) -> NamedConnection:
        self.connections.append(NamedConnection(site, warn))
        return self.connections[-1]

    def credentials_for(self, host: str, principal: Principal) -> Credentials | None:
        return self._configured if host == self._only_host or self._only_host is None else None


class ScriptedCopy:
    """Stands for `copy_image`. `faults` say how a copy to a host fails, one after the other; else it succeeds."""

    def __init__(self, **faults: Sequence[Fault | None]) -> None:
        self.faults = {host: list(each) for host, each in faults.items()}
        self.asked: list[Asked] = []
        self.state = TagState.COPIED
        self.digest = self.source_digest = DIGEST
        self.size_bytes = 100
        self.before_end: Callable[[Say, Tally], Any] | None = None
        self.is_stuck: set[str] = set()

    def asked_of(self, host: str) -> list[str]:
        """The names that were to be made at `host`, in that order."""
        places = (place for asked in self.asked for place in asked.targets)
        return [place.rpartition(":")[2] for place in places if place.startswith(host)]

    async def __call__(
        self,
        copier: Copier,
        source: Repository,
        name: str,
        targets: Sequence[Target],
        tallies: Sequence[Tally],
        options: Options,
        holdings: Holdings,
        *,
        ended: Ended,
        say: Say,
    ) -> None:
        places = [f"{target.repository}:{','.join(target.names)}" for target in targets]
        self.asked.append(Asked(str(source), name, places, options))
        for index, target in enumerate(targets):
            await self._copy_one(say, target, tallies[index], lambda outcome, index=index: ended(index, outcome))

    async def _copy_one(self, say: Say, target: Target, tally: Tally, end: Callable[[Outcome], Any]) -> None:
        host = target.repository.host
        tally.total_bytes = tally.sent_bytes = self.size_bytes
        if self.before_end:
            await self.before_end(say, tally)
        if host in self.is_stuck:
            await asyncio.Event().wait()
        fault = faults.pop(0) if (faults := self.faults.get(host)) else None
        state = TagState.WANTED if fault else self.state
        tags = dict.fromkeys(target.names, state)
        digest, source_digest = (None, None) if fault is GONE else (self.digest, self.source_digest)
        await end(Outcome(tags=tags, digest=digest, source_digest=source_digest, tally=tally, seconds=0.5, fault=fault))


class DistributionBench(Bench):
    """`kind` is the real one; its registries and copies are scripted."""

    registries: NamedRegistries
    copy: ScriptedCopy
    claim: Claim

    def __init__(self, store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(store)
        self._monkeypatch = monkeypatch

    def kind(
        self,
        copy: ScriptedCopy,
        configured: Credentials | None = None,
        configured_host: str | None = None,
        **settings: Any,
    ) -> DistributeKind:
        """`configured` is the login of every host, or of `configured_host` alone."""
        self.copy = copy
        self._monkeypatch.setattr(copies_module, "copy_image", copy)
        self.registries = NamedRegistries(configured, configured_host)
        shared: dict[str, Any] = {"registry": self.registries, "copier": None}
        return DistributeKind(**shared, settings=DistributeSettings(**settings))

    async def submit(self, kind: DistributeKind, spec: Json) -> Enqueued:
        accepted = kind.parse(spec)
        job = NewJob(kind=kind.name, spec=accepted.spec, secrets=accepted.secrets, uuid=uuid7())
        return await self.store.enqueue(job, queue_max=10)

    async def run(self, kind: DistributeKind, spec: Json, **options: Any) -> Job:
        """The job once it has ended."""
        made = await self.submit(kind, spec)
        async with self.running(kind, **options):  # type: ignore[arg-type]
            return await self.ended(made.uuid)

    async def pushes(self, made: Enqueued, count: int) -> list[Push]:
        """The pushes of a job as soon as there are `count`."""
        async with asyncio.timeout(END_TIMEOUT_S):
            while len(pushes := await self.store.pushes(made.id)) < count:
                await asyncio.sleep(0.005)
        return pushes

    async def endpoints(self, job: Job) -> Endpoints:
        """What became of the endpoints of `job`."""
        return endpoints(job, await self.store.pushes(job.id))
