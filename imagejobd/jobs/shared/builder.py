"""Images built in the engine for jobs: built, pushed, proved in their registry, and removed again.

A built image lives in the engine under `imagejobd/<installation>/<uuid>:<attempt>`. A user's own tag is put on it only
while it is pushed, nobody else builds on it meanwhile, and what the tag named before it names again afterwards, also
after a crash. However a job ends, the engine holds nothing of it but the build cache. Nothing is removed by id or by
force: identical builds share an image id, and an operator may have tagged the same image.
"""

import asyncio
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import structlog

from imagejobd.archive import dockerfile_context, index
from imagejobd.dockerfile import Base, Plan
from imagejobd.dockerfile.policy import Policy
from imagejobd.engine import images
from imagejobd.engine.base_images import BaseImages, PullPolicy
from imagejobd.engine.build import BuildRequest, build, prune_build_cache
from imagejobd.engine.buildkit import delete_history, list_history
from imagejobd.engine.classic import remove_remains
from imagejobd.engine.client import Engine
from imagejobd.engine.leases import Known, TagLeases
from imagejobd.engine.settings import Network
from imagejobd.engine.stream import Built, Step
from imagejobd.jobs.shared.access import EngineEgress, RegistryAccess
from imagejobd.jobs.shared.console import Console
from imagejobd.jobs.shared.context import Context
from imagejobd.jobs.shared.progress import StepCount
from imagejobd.jobs.shared.push import Pusher
from imagejobd.model.entry import Entry
from imagejobd.model.errors import ENGINE, ClaimLost, ErrorCode, Fault, NotFound, Temporary
from imagejobd.model.failpoint import failpoint
from imagejobd.model.job import OPERATOR, uuid7
from imagejobd.model.kind import JobContext, JobKind, Upload
from imagejobd.model.ownership import (
    Owner,
    PulledBases,
    job_repository,
    owner_of_repository,
    pin_repository,
    repositories_of,
    repository_patterns,
)
from imagejobd.model.reference import ImageReference
from imagejobd.model.secrets import Credentials
from imagejobd.registry.client import RegistryClient
from imagejobd.store.content import ContentStore
from imagejobd.store.files import storage_faults

PRUNE_EVERY_S = 1800.0

log = structlog.get_logger("imagejobd.jobs")


class BuildOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to build, apart from what.

    `own_args` are the service's own build args, beside those of a request. `pull` says when bases are pulled; `network`
    None is as `[engine]` has it.
    """

    timeout_s: float
    build_args: dict[str, str] = {}
    own_args: dict[str, str] = {}
    target: str = ""
    labels: dict[str, str] = {}
    platform: str = ""
    nocache: bool = False
    pull: PullPolicy = "missing"
    network: Network | None = None


class BuiltImage(msgspec.Struct, frozen=True):
    """An image in the engine: the job's own tag and the engine's id."""

    tag: str
    id: str


class ImageBuilder:
    """One for all kinds that build; stateless but for what its adapters hold.

    `records` are the public bases that were pulled, `known` says which of some UUIDs are jobs of this daemon's.
    `cache_scope` is who shares steps and cache mounts with a tenant, as a name; "" is everybody.
    """

    def __init__(
        self,
        engine: Engine,
        registry: RegistryClient,
        egress: EngineEgress,
        blobs: ContentStore,
        policy: Policy,
        *,
        records: PulledBases,
        known: Known,
        cache_scope: Callable[[str], str],
    ) -> None:
        self.engine = engine
        self.registry = registry
        self.egress = egress
        self.blobs = blobs
        self.policy = policy
        self._known = known
        self._leases = TagLeases(engine, known)
        self._bases = BaseImages(engine, self._leases, records)
        self._pusher = Pusher(engine, self._leases)
        self._cache_scope = cache_scope

    @property
    def knows_heredocs(self) -> bool:
        """Whether the engine does, which is not asked for this: what one that has not answered yet would refuse, the
        build refuses."""
        info = self.engine.info
        return info is None or info.knows_heredocs(self.engine.settings.builder)

    def access(self, ctx: JobContext, *, login_host: str = "", login: Credentials | None = None) -> RegistryAccess:
        """What the job's submitter may do at registries; `login` is that of the request, for `login_host`."""
        return RegistryAccess(self.registry, self.egress, ctx, ctx.job.principal, login_host=login_host, login=login)

    def operators_access(self, ctx: JobContext) -> RegistryAccess:
        """What the operator may do, for what the configuration orders, whoever's job it is."""
        return RegistryAccess(self.registry, self.egress, ctx, OPERATOR)

    async def build(
        self, ctx: JobContext, options: BuildOptions, context: Context, access: RegistryAccess
    ) -> BuiltImage:
        """The building phase; what an earlier attempt built is used again where the engine still has it."""
        earlier = msgspec.convert(ctx.checkpoint.get("built"), BuiltImage | None)
        if earlier is not None:
            info = await images.inspect(self.engine, earlier.tag)
            if info is not None and info.id == earlier.id:
                return earlier
        async with ctx.phase("building", timeout_s=options.timeout_s):
            tag = f"{job_repository(self.engine.installation, ctx.job.uuid)}:{ctx.job.attempt}"
            with self._context_file(context) as path:
                image = BuiltImage(tag, await self._build(ctx, options, context, path, tag, access))
            failpoint("after_build")
            # What an earlier build pushed is no longer this job's image: digests of two builds must not mix.
            await ctx.save(built=msgspec.to_builtins(image), pushed={})
        return image

    async def push(
        self,
        ctx: JobContext,
        references: Sequence[ImageReference],
        image: BuiltImage,
        access: RegistryAccess,
        *,
        timeout_s: float,
    ) -> None:
        """The pushing phase: every reference that no earlier attempt has pushed. The checkpoint's `pushed` has the
        digests by reference."""
        failpoint("before_push")
        pushed: dict[str, str] = dict(ctx.checkpoint.get("pushed", {}))
        hosts = ", ".join(sorted({reference.host for reference in references}))
        async with ctx.phase("pushing", timeout_s=timeout_s, waits_for=hosts):
            for number, reference in enumerate(references):
                if str(reference) not in pushed:
                    pushed[str(reference)] = await self._pusher.push(ctx, number, reference, image.id, access)
                    await ctx.save(pushed=pushed)

    async def purge(self, uuid: str) -> None:
        """Remove everything of a job from the engine: the names of its image, those of bases that a crash has left
        held, and what was said as it was built. Safe to repeat; what is gone already is fine."""
        repositories = repositories_of(self.engine.installation, uuid)
        for tag in await images.list_tags(self.engine, *repositories):
            await images.remove(self.engine, ImageReference.parse(tag))
        await delete_history(self.engine, *repositories)

    async def leftovers(self) -> set[str]:
        """UUIDs of all jobs of ours that an image in the engine, or a record of a build, still belongs to."""
        await self._leases.sweep()
        await remove_remains(self.engine)
        tags = await images.list_tags(self.engine, *repository_patterns(self.engine.installation))
        repositories = {tag.rpartition(":")[0] for tag in tags} | await list_history(self.engine)
        return await self.ours(set(filter(None, map(owner_of_repository, repositories))))

    async def ours(self, owners: Collection[Owner]) -> set[str]:
        """The jobs among `owners` that are this installation's; where a name does not tell, those that the store
        knows."""
        ours = {owner.uuid for owner in owners if owner.installation == self.engine.installation}
        unmarked = {owner.uuid for owner in owners if not owner.installation} - ours
        return ours | (await self._known(unmarked) if unmarked else set())

    async def prune_loop(self) -> None:
        """Keep the engine's build cache and the public bases at their configured size, now and every half hour;
        otherwise every context, layer and base would stay for ever. Running builds keep what they use."""
        while True:
            try:
                freed_bytes = await prune_build_cache(self.engine, self.engine.settings.build_cache_keep_bytes)
                if freed_bytes:
                    log.info("pruned the build cache", freed_bytes=freed_bytes)
                await self._bases.prune()
            except Fault as fault:
                # The daemon's log already says so of an engine that is away.
                if not (isinstance(fault, Temporary) and fault.peer == ENGINE):
                    log.warning("cannot prune the build cache and the bases now", error=fault.message)
            await asyncio.sleep(PRUNE_EVERY_S)

    @contextmanager
    def _context_file(self, context: Context) -> Iterator[Path]:
        """The tar to send: the checked one, or one that holds just the Dockerfile."""
        if context.digest is not None:
            if not self.blobs.exists(context.digest):
                why = "the context is no longer in the content store; submit the job again"
                raise NotFound(why)
            yield self.blobs.path(context.digest)
            return
        with self.blobs.spool_file() as path:
            with storage_faults():
                path.write_bytes(dockerfile_context(context.dockerfile))
            yield path

    async def _build(
        self, ctx: JobContext, options: BuildOptions, context: Context, tar: Path, tag: str, access: RegistryAccess
    ) -> str:
        settings = self.engine.settings
        plan = await self._plan(options, context.dockerfile)
        options = msgspec.structs.replace(options, platform=plan.platform)
        await self.egress.check_dockerfile(context.dockerfile)
        async with AsyncExitStack() as held:
            names: dict[Base, str] = {}
            # Triggers of a base may copy from a stage that nothing else needs, whose bases have triggers in turn.
            while bases := [base for base in plan.images() if base not in names]:
                names |= await self._hold(ctx, options, bases, held, access)
                plan.include(await self._trigger_stages(bases, names))
            # All images that the engine may resolve, each with what the user calls it.
            resolvable = {name: str(base.reference) for base, name in names.items()}
            if plan.frontend:
                resolvable[str(ImageReference.parse(plan.frontend))] = plan.frontend
            request = BuildRequest(
                context=tar,
                entries=await _indexed(tar, context.dockerfile_path),
                dockerfile=plan.printed({base.key: name for base, name in names.items()}),
                # Not the job's: after a crash the engine may still be ending the build of the attempt before.
                build_id=uuid7(),
                builder=settings.builder,
                network=options.network or settings.network,
                tags=(tag,),
                target=options.target,
                build_args=options.build_args | options.own_args,
                labels=options.labels,
                platform=options.platform,
                no_cache=options.nocache,
                bases=resolvable,
                cache_scope=self._cache_scope(ctx.job.tenant),
            )
            return await self._run_build(ctx, request)

    async def _plan(self, options: BuildOptions, dockerfile: str) -> Plan:
        engine = await self.engine.ping()
        builder = self.engine.settings.builder
        return await asyncio.to_thread(
            self.policy.plan,
            dockerfile,
            build_args=options.build_args,
            own_args=options.own_args,
            target=options.target,
            platform=options.platform,
            host_platform=f"{engine.os}/{engine.architecture}",
            all_stages=builder == "classic",
            knows_heredocs=engine.knows_heredocs(builder),
        )

    async def _hold(
        self,
        ctx: JobContext,
        options: BuildOptions,
        bases: Sequence[Base],
        stack: AsyncExitStack,
        access: RegistryAccess,
    ) -> dict[Base, str]:
        """Have `bases` in the engine until the `stack` is left; the literal name of each."""
        held = await stack.enter_async_context(
            self._bases.pin(
                [(base.reference, base.platform or options.platform) for base in bases],
                repository=pin_repository(self.engine.installation, ctx.job.uuid),
                policy=options.pull,
                credentials=access.credentials_at(base.reference.host for base in bases),
                pulling=access.pull,
            )
        )
        for reference in held.pulled:
            await ctx.log(f"pulled base {reference}\n")
        return dict(zip(bases, held.names, strict=True))

    async def _trigger_stages(self, bases: Iterable[Base], names: Mapping[Base, str]) -> set[int]:
        """Judge the ONBUILD instructions of the images of FROM, which become part of the build though no Dockerfile
        shows them; the stages that they copy from."""
        stages: set[int] = set()
        for base in bases:
            if base.instruction != "FROM":
                continue
            info = await images.inspect(self.engine, names[base])
            if info is None:
                why = f"base image {base.reference} was removed from the engine meanwhile"
                raise Temporary(ErrorCode.CONFLICT, why)
            if info.config.on_build:
                stages |= self.policy.check_triggers(base, info.config.on_build)
                await self.egress.check_triggers(str(base.reference), info.config.on_build)
        return stages

    async def _run_build(self, ctx: JobContext, request: BuildRequest) -> str:
        """Run the build, write its log and progress; the image id."""
        console, steps = Console(), StepCount()
        async with aclosing(build(self.engine, request)) as events:
            async for event in events:
                if text := console.render(event):
                    await ctx.log(text)
                match event:
                    case Built():
                        return event.image_id
                    case Step():
                        ctx.progress(**steps.count(event))
        raise Temporary(ErrorCode.ENGINE_UNAVAILABLE, "the build ended without an image", peer=ENGINE)


async def _indexed(tar: Path, dockerfile_path: str | None) -> list[Entry]:
    """The index of a context, made in a thread, which ends soon after its caller was cancelled."""
    is_cancelled = threading.Event()
    try:
        return await asyncio.to_thread(index, tar, dockerfile_path, stop=is_cancelled.is_set)
    finally:
        is_cancelled.set()


class BuildingKind(JobKind):
    """A kind whose jobs build images. What they leave in the engine goes at their end, or with the sweep."""

    uses_engine = True

    def __init__(self, builder: ImageBuilder) -> None:
        self._builder = builder
        self._blobs = builder.blobs

    def release(self, upload: Upload) -> None:
        for digest in upload.blobs:
            self._blobs.release(digest)

    async def leftovers(self) -> set[str]:
        return await self._builder.leftovers()

    async def discard(self, uuid: str, checkpoint: Mapping[str, Any]) -> None:
        await self._builder.purge(uuid)

    async def purge(self, ctx: JobContext, *, timeout_s: float) -> None:
        """The purging phase. Its failing takes nothing from a result that is proved: the sweep purges later."""
        failpoint("before_purge")
        try:
            async with ctx.phase("purging", timeout_s=timeout_s):
                await self.discard(ctx.job.uuid, ctx.checkpoint)
        except ClaimLost:
            raise
        except Fault as fault:
            log.warning("could not purge; the next sweep will", job=ctx.job.uuid, error=fault.message)
        failpoint("after_purge")
