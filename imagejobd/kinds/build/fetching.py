"""The fetching phase: the context that `tar_url` names, checked and in the content store."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec

from imagejobd.building.context import Context, take_in
from imagejobd.kinds.build.fetch import FetchBounds, fetched, parse_url
from imagejobd.kinds.build.spec import TAR_URL, BuildSpec
from imagejobd.kinds.build.tools import Tools
from imagejobd.model.failpoint import failpoint
from imagejobd.model.work import Work
from imagejobd.registry.faults import Unanswered
from imagejobd.registry.http.address import host_of


async def fetch_context(tools: Tools, work: Work, spec: BuildSpec) -> Context:
    """The context of a build; one that an earlier attempt fetched is used again."""
    if spec.tar_url is None:
        return Context(spec.context, spec.dockerfile or "")
    blobs = tools.building.blobs
    kept = work.checkpoint.get("context")
    if kept is not None and blobs.exists(kept["digest"]):
        return Context(**kept)
    host = host_of(parse_url(spec.tar_url))
    async with work.phase("fetching", timeout_s=tools.settings.fetch_timeout_s, waits_for=host):
        await work.log(f"fetching {spec.tar_url}\n")
        secret = work.secrets.get(TAR_URL)
        context = await _take_in(tools, work, secret.reveal() if secret else spec.tar_url)
        digest = str(context.digest)
        try:
            await work.save(blobs=[digest], context=msgspec.to_builtins(context))
        finally:
            blobs.release(digest)
    failpoint("after_fetch")
    return context


async def _take_in(tools: Tools, work: Work, url: str) -> Context:
    settings = tools.settings
    try:
        async with aclosing(_body(tools, work, url)) as body:
            return await take_in(
                tools.building.blobs, body, settings.bounds, upload_max_bytes=settings.upload_max_bytes
            )
    except Unanswered as fault:
        raise await tools.building.registry.blamed(fault, fault.silent) from None


def _body(tools: Tools, work: Work, url: str) -> AsyncGenerator[bytes, None]:
    settings = tools.settings
    bounds = FetchBounds(
        max_bytes=settings.upload_max_bytes,
        idle_s=settings.fetch_idle_s,
        redirects_max=settings.fetch_redirects_max,
    )
    return fetched(
        url,
        egress=tools.egress,
        circuits=tools.building.registry.circuits,
        bounds=bounds,
        progress=lambda received, total: work.progress(fetched_bytes=received, total_bytes=total),
    )
