"""The building phase: bases held, context streamed to the engine, progress told, the image named for this job."""

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, contextmanager
from pathlib import Path

import msgspec

from imagejobd.archive import dockerfile_context, index
from imagejobd.building.access import RegistryAccess
from imagejobd.building.console import Console
from imagejobd.building.context import Context
from imagejobd.building.tools import BuildTools
from imagejobd.engine import images
from imagejobd.engine.bases import PullPolicy
from imagejobd.engine.build import BuildRequest, build
from imagejobd.engine.events import BuildEvent, Built, Step
from imagejobd.engine.settings import Network
from imagejobd.model.dockerfile import Base, Plan
from imagejobd.model.errors import ENGINE, ErrorCode, Permanent, Temporary
from imagejobd.model.failpoint import failpoint
from imagejobd.model.ids import uuid7
from imagejobd.model.reference import ImageReference
from imagejobd.model.reserved import held_repository, job_repository
from imagejobd.model.work import Work
from imagejobd.store.blobs import storage_faults


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
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
    tools: BuildTools, work: Work, recipe: Recipe, context: Context, access: RegistryAccess
) -> BuiltImage:
    """Build, or find what an earlier attempt built where the engine still has it."""
    kept = await _kept(tools, work)
    if kept is not None:
        return kept
    async with work.phase("building", timeout_s=recipe.timeout_s):
        tag = f"{job_repository(tools.engine.installation, work.job.uuid)}:{work.job.attempt}"
        with _context_file(tools, context) as path:
            image = BuiltImage(tag, await _build(tools, work, recipe, context.dockerfile, path, tag, access))
        failpoint("after_build")
        # What an earlier build pushed is no longer this job's image: digests of two builds must not mix.
        await work.save(built=msgspec.to_builtins(image), pushed={})
    return image


async def _kept(tools: BuildTools, work: Work) -> BuiltImage | None:
    kept = work.checkpoint.get("built")
    if kept is None:
        return None
    info = await images.inspect(tools.engine, kept["tag"])
    return BuiltImage(**kept) if info is not None and info.id == kept["id"] else None


@contextmanager
def _context_file(tools: BuildTools, context: Context) -> Iterator[Path]:
    """The tar to send: the checked one, or one that holds just the Dockerfile."""
    if context.digest is not None:
        if not tools.blobs.exists(context.digest):
            raise Permanent(ErrorCode.NOT_FOUND, "the context is no longer in the content store; submit the job again")
        yield tools.blobs.path(context.digest)
        return
    with tools.blobs.spool_file() as path:
        with storage_faults():
            path.write_bytes(dockerfile_context(context.dockerfile))
        yield path


async def _build(
    tools: BuildTools,
    work: Work,
    recipe: Recipe,
    dockerfile: str,
    context: Path,
    tag: str,
    access: RegistryAccess,
) -> str:
    settings = tools.engine.settings
    plan = await _plan(tools, recipe, dockerfile)
    recipe = msgspec.structs.replace(recipe, platform=plan.platform)
    await tools.egress.check_dockerfile(dockerfile)
    async with AsyncExitStack() as held:
        names: dict[Base, str] = {}
        # Triggers of a base may copy from a stage that nothing else needs, whose bases have triggers in turn.
        while bases := [base for base in plan.images() if base not in names]:
            names |= await _hold(tools, work, recipe, bases, held, access)
            plan.include(await _trigger_stages(tools, bases, names))
        request = BuildRequest(
            context=context,
            entries=await asyncio.to_thread(index, context),
            dockerfile=plan.printed({base.key: name for base, name in names.items()}),
            # Not the job's: after a crash the engine may still be ending the build of the attempt before.
            build_id=uuid7(),
            builder=settings.builder,
            network=recipe.network or settings.network,
            tags=(tag,),
            target=recipe.target,
            build_args=recipe.build_args | recipe.own_args,
            labels=recipe.labels,
            platform=recipe.platform,
            no_cache=recipe.nocache,
            bases=_known_names(plan, names),
            cache_scope=tools.cache_scope(work.job.tenant),
        )
        return await _run_build(tools, work, request)


def _known_names(plan: Plan, names: Mapping[Base, str]) -> dict[str, str]:
    """All images that the engine may resolve, each with what the user calls it."""
    known = {name: str(base.reference) for base, name in names.items()}
    if plan.frontend:
        known[str(ImageReference.parse(plan.frontend))] = plan.frontend
    return known


async def _plan(tools: BuildTools, recipe: Recipe, dockerfile: str) -> Plan:
    engine = await tools.engine.ping()
    builder = tools.engine.settings.builder
    return await asyncio.to_thread(
        tools.policy.plan,
        dockerfile,
        build_args=recipe.build_args,
        own_args=recipe.own_args,
        target=recipe.target,
        platform=recipe.platform,
        host_platform=f"{engine.os}/{engine.architecture}",
        all_stages=builder == "classic",
        knows_heredocs=engine.knows_heredocs(builder),
    )


async def _hold(
    tools: BuildTools,
    work: Work,
    recipe: Recipe,
    bases: Sequence[Base],
    stack: AsyncExitStack,
    access: RegistryAccess,
) -> dict[Base, str]:
    """Have `bases` in the engine until the `stack` is left; the literal name of each."""
    wanted = [(base.reference, base.platform or recipe.platform) for base in bases]
    held = await stack.enter_async_context(
        tools.bases.hold(
            wanted,
            repository=held_repository(tools.engine.installation, work.job.uuid),
            policy=recipe.pull,
            credentials=access.credentials_at(base.reference.host for base in bases),
            pulling=access.pull,
        )
    )
    for reference in held.pulled:
        await work.log(f"pulled base {reference}\n")
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


async def _run_build(tools: BuildTools, work: Work, request: BuildRequest) -> str:
    """Run the build, write its log and progress; the image id."""
    console = Console()
    async with aclosing(build(tools.engine, request)) as events:
        async for event in events:
            if text := console.render(event):
                await work.log(text)
            if isinstance(event, Built):
                return event.image_id
            _show(work, event)
    raise Temporary(ErrorCode.ENGINE_UNAVAILABLE, "the build ended without an image", peer=ENGINE)


def _show(work: Work, event: BuildEvent) -> None:
    if isinstance(event, Step) and event.state == "started":
        work.progress(step=event.number, step_name=event.name)
