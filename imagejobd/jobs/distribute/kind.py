"""Bounds on what copies may take at once, and how long they may last.

The registries of one job: connected once each, and their logins kept out of everything the job tells.

What a distribution works with: the registries, the blobs in flight over all jobs, and the settings of this kind.

The `distribute` kind: images from one registry to many, read once, without the engine.

It leaves nothing behind but what it was asked for: tags move last, and spool files end with the blobs in flight.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterable, Collection, Mapping
from typing import Any

import msgspec

from imagejobd.jobs.distribute import spec as specs
from imagejobd.jobs.distribute.copies import Reporter, copy_images, find_images
from imagejobd.jobs.distribute.fields import parse_endpoint
from imagejobd.jobs.distribute.registries import Registries, Tools
from imagejobd.jobs.distribute.spec import DistributeSpec
from imagejobd.jobs.distribute.table import CopyTable, records_of
from imagejobd.model.circuit import peer_name
from imagejobd.model.errors import ErrorCode, NotFound, Permanent, Temporary, invalid
from imagejobd.model.job import Job, Json, NewJob
from imagejobd.model.kind import Accepted, JobContext, Upload
from imagejobd.model.reference import is_digest
from imagejobd.model.secrets import Redactor
from imagejobd.registry.content.repository import Repository

PREFLIGHT_TIMEOUT_S = 10.0
# Warnings of registries that wait to be logged; a registry that has more to say is not worth more memory.
WARNINGS_MAX = 100
# What a client can be told at once, and has to change. All else the job finds out, with more patience.
TOLD_AT_ONCE = frozenset({ErrorCode.NOT_FOUND, ErrorCode.DENIED, ErrorCode.EGRESS})


class DistributeKind:
    """Implements `model.work.Kind`."""

    name = "distribute"
    uses_engine = False

    def __init__(self, tools: Tools) -> None:
        self._tools = tools

    async def receive(self, body: AsyncIterable[bytes]) -> Upload:
        raise _no_file()

    def release(self, upload: Upload) -> None:
        """There are no uploads."""

    def parse(self, spec: Json, upload: Upload | None = None) -> Accepted:
        if upload is not None:
            raise _no_file()
        return specs.parse(spec, copies_max=self._tools.settings.copies_max)

    async def preflight(self, job: NewJob) -> None:
        """Ask the source for its one image. Raises `Permanent(not_found | denied | egress)`; what cannot be told within
        `PREFLIGHT_TIMEOUT_S` is the job's to find out, and so is everything about several images."""
        spec = msgspec.convert(job.spec, DistributeSpec)
        if spec.source.ref is None or spec.source.repository is None:
            return
        registries = Registries(self._tools.registry, spec, job.secrets, job.principal, _unheard)
        redact = Redactor(registries.secret_words())
        try:
            async with asyncio.timeout(PREFLIGHT_TIMEOUT_S):
                await _find(registries.source(spec.source.repository), spec.source.ref)
        except Permanent as fault:
            if fault.code in TOLD_AT_ONCE:
                raise Permanent(fault.code, redact(fault.message)) from None
        except (Temporary, TimeoutError):
            pass

    def hosts(self, job: Job) -> Collection[str]:
        """The source; the targets are done one by one, as they answer."""
        source = parse_endpoint(msgspec.convert(job.spec, DistributeSpec).source.endpoint, "source.endpoint")
        return (peer_name(source.host, source.scheme),)

    async def run(self, ctx: JobContext) -> Json:
        spec = msgspec.convert(ctx.job.spec, DistributeSpec)
        warnings: deque[str] = deque(maxlen=WARNINGS_MAX)
        registries = Registries(self._tools.registry, spec, ctx.secrets, ctx.job.principal, warnings.append)
        words = registries.secret_words()
        for word in words:
            ctx.add_secret(word)
        images = await find_images(self._tools, ctx, spec, registries)
        table = CopyTable(spec, images, records_of(ctx.checkpoint))
        reporter = Reporter(ctx, table, Redactor(words), warnings)
        await copy_images(self._tools, ctx, table, registries, reporter)
        if fault := table.fault(self._tools.registry.circuits.is_open):
            raise fault
        return table.result()

    async def leftovers(self) -> set[str]:
        """Spool files have no owner: they go with their flight, and at boot."""
        return set()

    async def discard(self, uuid: str, checkpoint: Mapping[str, Any]) -> None:
        """What targets have is theirs."""


async def _find(repository: Repository, name: str) -> None:
    if await repository.head_manifest(name) is None:
        mark = "@" if is_digest(name) else ":"
        raise NotFound(f"Image not found: {repository}{mark}{name}")


def _unheard(line: str) -> None:
    """The job will hear the same."""


def _no_file() -> Permanent:
    return invalid("a distribution takes no file: it names registries and images")
