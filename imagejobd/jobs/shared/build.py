"""What the phases of building work with: the adapters of the floor below.

The building phase: bases held, context streamed to the engine, progress told, the image named for this job.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, contextmanager
from pathlib import Path

import msgspec

from imagejobd.archive import dockerfile_context, index
from imagejobd.dockerfile import Base, Plan
from imagejobd.dockerfile.policy import Policy
from imagejobd.engine import images
from imagejobd.engine.base_images import BaseImages, PullPolicy
from imagejobd.engine.build import BuildRequest, build
from imagejobd.engine.client import Engine
from imagejobd.engine.settings import Network
from imagejobd.engine.stream import BuildEvent, Built, Step
from imagejobd.engine.tag_lease import Known, TagLeases
from imagejobd.jobs.shared.access import EngineEgress, RegistryAccess
from imagejobd.jobs.shared.console import Console
from imagejobd.jobs.shared.context import Context
from imagejobd.model.errors import ENGINE, ErrorCode, NotFound, Temporary
from imagejobd.model.failpoint import failpoint
from imagejobd.model.job import OPERATOR, uuid7
from imagejobd.model.kind import JobContext
from imagejobd.model.ownership import job_repository, pin_repository
from imagejobd.model.reference import ImageReference
from imagejobd.model.secrets import Credentials
from imagejobd.registry.client import RegistryClient
from imagejobd.store.blobs import BlobStore, storage_faults


class BuildTools(msgspec.Struct, frozen=True, kw_only=True):
    """One set for all kinds that build; stateless but for what the adapters hold."""

    engine: Engine
    bases: BaseImages
    registry: RegistryClient
    egress: EngineEgress
    blobs: BlobStore
    policy: Policy
    leases: TagLeases
    # Which of some UUIDs are jobs of this daemon's.
    known: Known
    # Who shares steps and cache mounts with a tenant, as a name; "" is everybody.
    cache_scope: Callable[[str], str]

    def access(self, ctx: JobContext, *, own_host: str = "", own: Credentials | None = None) -> RegistryAccess:
        """What the job's submitter may do at registries; `own` are the credentials of the request, for `own_host`."""
        return RegistryAccess(self.registry, self.egress, ctx, ctx.job.principal, own_host=own_host, own=own)

    def operators_access(self, ctx: JobContext) -> RegistryAccess:
        """What the operator may do, for what the configuration orders, whoever's job it is."""
        return RegistryAccess(self.registry, self.egress, ctx, OPERATOR)


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


async def build_image(
    tools: BuildTools, ctx: JobContext, options: BuildOptions, context: Context, access: RegistryAccess
) -> BuiltImage:
    """Build, or find what an earlier attempt built where the engine still has it."""
    kept = await _kept(tools, ctx)
    if kept is not None:
        return kept
    async with ctx.phase("building", timeout_s=options.timeout_s):
        tag = f"{job_repository(tools.engine.installation, ctx.job.uuid)}:{ctx.job.attempt}"
        with _context_file(tools, context) as path:
            image = BuiltImage(tag, await _build(tools, ctx, options, context.dockerfile, path, tag, access))
        failpoint("after_build")
        # What an earlier build pushed is no longer this job's image: digests of two builds must not mix.
        await ctx.save(built=msgspec.to_builtins(image), pushed={})
    return image


async def _kept(tools: BuildTools, ctx: JobContext) -> BuiltImage | None:
    kept = ctx.checkpoint.get("built")
    if kept is None:
        return None
    info = await images.inspect(tools.engine, kept["tag"])
    return BuiltImage(**kept) if info is not None and info.id == kept["id"] else None


@contextmanager
def _context_file(tools: BuildTools, context: Context) -> Iterator[Path]:
    """The tar to send: the checked one, or one that holds just the Dockerfile."""
    if context.digest is not None:
        if not tools.blobs.exists(context.digest):
            raise NotFound("the context is no longer in the content store; submit the job again")
        yield tools.blobs.path(context.digest)
        return
    with tools.blobs.spool_file() as path:
        with storage_faults():
            path.write_bytes(dockerfile_context(context.dockerfile))
        yield path


async def _build(
    tools: BuildTools,
    ctx: JobContext,
    options: BuildOptions,
    dockerfile: str,
    context: Path,
    tag: str,
    access: RegistryAccess,
) -> str:
    settings = tools.engine.settings
    plan = await _plan(tools, options, dockerfile)
    options = msgspec.structs.replace(options, platform=plan.platform)
    await tools.egress.check_dockerfile(dockerfile)
    async with AsyncExitStack() as held:
        names: dict[Base, str] = {}
        # Triggers of a base may copy from a stage that nothing else needs, whose bases have triggers in turn.
        while bases := [base for base in plan.images() if base not in names]:
            names |= await _hold(tools, ctx, options, bases, held, access)
            plan.include(await _trigger_stages(tools, bases, names))
        request = BuildRequest(
            context=context,
            entries=await asyncio.to_thread(index, context),
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
            bases=_known_names(plan, names),
            cache_scope=tools.cache_scope(ctx.job.tenant),
        )
        return await _run_build(tools, ctx, request)


def _known_names(plan: Plan, names: Mapping[Base, str]) -> dict[str, str]:
    """All images that the engine may resolve, each with what the user calls it."""
    known = {name: str(base.reference) for base, name in names.items()}
    if plan.frontend:
        known[str(ImageReference.parse(plan.frontend))] = plan.frontend
    return known


async def _plan(tools: BuildTools, options: BuildOptions, dockerfile: str) -> Plan:
    engine = await tools.engine.ping()
    builder = tools.engine.settings.builder
    return await asyncio.to_thread(
        tools.policy.plan,
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
    tools: BuildTools,
    ctx: JobContext,
    options: BuildOptions,
    bases: Sequence[Base],
    stack: AsyncExitStack,
    access: RegistryAccess,
) -> dict[Base, str]:
    """Have `bases` in the engine until the `stack` is left; the literal name of each."""
    wanted = [(base.reference, base.platform or options.platform) for base in bases]
    held = await stack.enter_async_context(
        tools.bases.pin(
            wanted,
            repository=pin_repository(tools.engine.installation, ctx.job.uuid),
            policy=options.pull,
            credentials=access.credentials_at(base.reference.host for base in bases),
            pulling=access.pull,
        )
    )
    for reference in held.pulled:
        await ctx.log(f"pulled base {reference}\n")
    return dict(zip(bases, held.names, strict=True))


async def _trigger_stages(tools: BuildTools, bases: Iterable[Base], names: Mapping[Base, str]) -> set[int]:
    """Judge the ONBUILD instructions of the images of FROM, which become part of the build though no Dockerfile shows
    them; the stages that they copy from."""
    stages: set[int] = set()
    for base in bases:
        if base.instruction != "FROM":
            continue
        info = await images.inspect(tools.engine, names[base])
        if info is None:
            raise Temporary(ErrorCode.CONFLICT, f"base image {base.reference} was removed from the engine meanwhile")
        if info.config.on_build:
            stages |= tools.policy.check_triggers(base, info.config.on_build)
            await tools.egress.check_triggers(str(base.reference), info.config.on_build)
    return stages


async def _run_build(tools: BuildTools, ctx: JobContext, request: BuildRequest) -> str:
    """Run the build, write its log and progress; the image id."""
    console = Console()
    async with aclosing(build(tools.engine, request)) as events:
        async for event in events:
            if text := console.render(event):
                await ctx.log(text)
            if isinstance(event, Built):
                return event.image_id
            _show(ctx, event)
    raise Temporary(ErrorCode.ENGINE_UNAVAILABLE, "the build ended without an image", peer=ENGINE)


def _show(ctx: JobContext, event: BuildEvent) -> None:
    if isinstance(event, Step) and event.state == "started":
        ctx.progress(step=event.number, step_name=event.name)
