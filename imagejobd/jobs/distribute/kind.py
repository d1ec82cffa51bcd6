"""The `distribute` kind: images from one registry to many, read once, without the engine.

It leaves nothing behind but what it was asked for: tags move last, and spool files end with the blobs in flight.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterable, Collection, Iterable

import msgspec

from imagejobd.jobs.distribute import spec as specs
from imagejobd.jobs.distribute.copies import Copies, Registries, Reporter
from imagejobd.jobs.distribute.spec import DistributeSettings, DistributeSpec, Image
from imagejobd.jobs.distribute.table import TAGS, CopyTable, images_of
from imagejobd.jobs.distribute.tags import select
from imagejobd.model.circuit import peer_name
from imagejobd.model.errors import ErrorCode, NotFound, Permanent, Temporary, invalid
from imagejobd.model.job import Job, Json, NewJob
from imagejobd.model.kind import Accepted, JobContext, JobKind, Upload
from imagejobd.model.reference import ImageReference, is_digest
from imagejobd.model.secrets import Redactor, Secret
from imagejobd.registry.client import RegistryClient
from imagejobd.registry.copy.transfer import Copier

PREFLIGHT_TIMEOUT_S = 10.0
# Copying that brings nothing to any target for so long is tried again. The registry client gives up a single transfer
# that stalls long before: this is for what nobody has thought of.
STALL_TIMEOUT_S = 3600.0
TAGS_PER_PROGRESS = 1_000
# Warnings of registries that wait to be logged; a registry that has more to say is not worth more memory.
WARNINGS_MAX = 100
# What a client has to change, and can hear at once. All else the job finds out, with more tries.
PREFLIGHT_CODES = frozenset({ErrorCode.NOT_FOUND, ErrorCode.DENIED, ErrorCode.EGRESS})


class DistributeKind(JobKind):
    """All jobs share `copier`."""

    name = "distribute"
    # Both phases end by themselves once they make no progress.
    has_job_timeout = False

    def __init__(self, registry: RegistryClient, copier: Copier, settings: DistributeSettings) -> None:
        self._registry = registry
        self._copier = copier
        self._settings = settings

    async def receive(self, body: AsyncIterable[bytes], spec: Json) -> Upload:
        raise invalid("a distribution takes no file: it names registries and images")

    def parse(self, spec: Json, upload: Upload | None = None) -> Accepted:
        return specs.parse(spec, copies_max=self._settings.copies_max)

    async def preflight(self, job: NewJob) -> None:
        """Ask the source for its one image. Raises `Permanent(not_found | denied | egress)`; what the source does not
        say within `PREFLIGHT_TIMEOUT_S` is the job's to find out, and so is everything about several images."""
        spec = msgspec.convert(job.spec, DistributeSpec)
        name, path = spec.source.ref, spec.source.repository
        if name is None or path is None:
            return
        # The job will hear the same warnings.
        registries = Registries(self._registry, spec, job.secrets, job.principal, warn=lambda line: None)
        try:
            async with asyncio.timeout(PREFLIGHT_TIMEOUT_S):
                repository = registries.source(path)
                if await repository.head_manifest(name) is None:
                    raise NotFound(f"Image not found: {repository}{'@' if is_digest(name) else ':'}{name}")
        except Permanent as fault:
            if fault.code in PREFLIGHT_CODES:
                raise fault.with_message(Redactor(registries.secret_words())(fault.message)) from None
        except (Temporary, TimeoutError):
            pass

    def hosts(self, job: Job) -> Collection[str]:
        """The source; the targets are done one by one, as they answer."""
        source = msgspec.convert(job.spec, DistributeSpec).source.registry
        return (peer_name(source.host, source.scheme),)

    def images(self, job: NewJob) -> Iterable[ImageReference]:
        return specs.references(msgspec.convert(job.spec, DistributeSpec))

    def read_secrets(self, spec: Json, values: Json) -> dict[str, Secret]:
        return specs.read_auths(values)

    async def run(self, ctx: JobContext) -> Json:
        spec = msgspec.convert(ctx.job.spec, DistributeSpec)
        warnings: deque[str] = deque(maxlen=WARNINGS_MAX)
        registries = Registries(self._registry, spec, ctx.secrets, ctx.job.principal, warn=warnings.append)
        for word in registries.secret_words():
            ctx.add_secret(word)
        images = await _find_images(ctx, spec, registries, self._settings)
        table = CopyTable(spec, images, await ctx.pushes(), after_crash=ctx.job.crashes > 0)
        reporter = Reporter(ctx, table, warnings)
        circuits = self._registry.circuits
        copies = Copies(table, registries, reporter, circuits, self._copier)
        async with ctx.phase("copying", timeout_s=STALL_TIMEOUT_S, waits_for=copies.endpoints()):
            await copies.run()
        if fault := table.fault(circuits.is_open):
            raise fault
        return table.result()


async def _find_images(
    ctx: JobContext, spec: DistributeSpec, registries: Registries, settings: DistributeSettings
) -> tuple[Image, ...]:
    """The images to copy. The tags that match a filter are listed once, and stay the same for all attempts.

    Raises `Permanent(not_found)` when no tag matches, `Permanent(too_large)` when too many do.
    """
    tag_filter, path = spec.source.tags, spec.source.repository
    if tag_filter is not None and path is not None and TAGS not in ctx.checkpoint:
        repository = registries.source(path)
        async with ctx.phase("listing", timeout_s=settings.listing_timeout_s, waits_for=spec.source.endpoint):
            tags: list[str] = []
            async for tag in repository.tags():
                tags.append(tag)
                if len(tags) % TAGS_PER_PROGRESS == 0:
                    ctx.progress(tags_listed=len(tags))
            # In a thread: a hundred thousand tags take more time than the loop may stand still.
            matches = await asyncio.to_thread(select, tags, tag_filter)
            verb = "matches" if len(matches) == 1 else "match"
            summary = f"{len(matches)} of {len(tags)} tags of {repository} {verb} source.tags"
            await ctx.log(f"{summary}\n")
            if not matches:
                raise NotFound(summary)
            count = len(matches) * len(spec.targets)
            if count > settings.copies_max:
                limit = f"the limit is kinds.distribute.copies_max = {settings.copies_max}"
                raise Permanent(ErrorCode.TOO_LARGE, f"{summary}, which makes {count} copies; {limit}")
            await ctx.save(**{TAGS: matches})
    return images_of(spec, ctx.checkpoint)
