"""The fetching phase: the context that `tar_url` names, checked and in the content store."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec

from imagejobd.building.context import Context, take_in
from imagejobd.kinds.build.fetch import FetchBounds, fetched
from imagejobd.kinds.build.spec import TAR_URL, BuildSpec
from imagejobd.kinds.build.tools import Tools
from imagejobd.model.failpoint import failpoint
from imagejobd.model.work import Work


async def fetch_context(tools: Tools, work: Work, spec: BuildSpec) -> Context:
    """The context of a build; one that an earlier attempt fetched is used again."""
    if spec.tar_url is None:
        return Context(spec.context, spec.dockerfile or "")
    blobs = tools.building.blobs
    kept = work.checkpoint.get("context")
    if kept is not None and blobs.exists(kept["digest"]):
        return Context(**kept)
    async with work.phase("fetching", timeout_s=tools.settings.fetch_timeout_s):
        await work.log(f"fetching {spec.tar_url}\n")
        secret = work.secrets.get(TAR_URL)
        async with aclosing(_body(tools, work, secret.reveal() if secret else spec.tar_url)) as body:
            settings = tools.settings
            context = await take_in(blobs, body, settings.bounds, upload_max_bytes=settings.upload_max_bytes)
        digest = str(context.digest)
        try:
            await work.save(blobs=[digest], context=msgspec.to_builtins(context))
        finally:
            blobs.release(digest)
    failpoint("after_fetch")
    return context


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
        bounds=bounds,
        progress=lambda received, total: work.progress(fetched_bytes=received, total_bytes=total),
    )
