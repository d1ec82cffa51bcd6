"""Images in the engine: look, name, unname, pull.

Images are removed by name only, never by id or by force: identical builds share an id, and taking one job's name away
must not take another's image. The engine drops an image itself when its last name goes.

Exporting an image as the tar that `docker save` gives.

By id, so that the archive names none of the engine's own tags. The engine reports a failure in the middle by an error
behind what it has sent, or just ends: only a tar with its end is whole.
"""

import fnmatch
import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any
from urllib.parse import quote

import msgspec

from imagejobd.engine import errors
from imagejobd.engine.client import Engine
from imagejobd.engine.stream import Transfer, registry_messages, transfer
from imagejobd.model.errors import ErrorCode, Fault, NotFound, Temporary
from imagejobd.model.reference import ImageReference, normalize
from imagejobd.model.secrets import Credentials

# The last line of a pull: `Status: Downloaded newer image for …` or `Status: Image is up to date for …`.
_PULLED_STATUS = "Status: "

LIST_TRIES = 10

# What the engine answers when two names of one image are taken away at once: both went, and the image with them.
_DELETED_MEANWHILE = "unrecognized image ID"


class ImageConfig(msgspec.Struct, frozen=True):
    """What an image says of how it is to be run and built on; absent things are null or empty."""

    user: str = msgspec.field(name="User", default="")
    volumes: dict[str, Any] | None = msgspec.field(name="Volumes", default=None)
    on_build: list[str] | None = msgspec.field(name="OnBuild", default=None)


class ImageInfo(msgspec.Struct, frozen=True):
    """An image as the engine has it. `tags` are `repository:tag`, `digests` `repository@sha256:…`."""

    id: str = msgspec.field(name="Id")
    tags: list[str] | None = msgspec.field(name="RepoTags", default=None)
    digests: list[str] | None = msgspec.field(name="RepoDigests", default=None)
    size_bytes: int = msgspec.field(name="Size", default=0)
    os: str = msgspec.field(name="Os", default="")
    architecture: str = msgspec.field(name="Architecture", default="")
    variant: str = msgspec.field(name="Variant", default="")
    config: ImageConfig = msgspec.field(name="Config", default=ImageConfig())

    def is_for(self, platform: str) -> bool:
        """Whether it is the image of `platform`; what it does not say of itself fits."""
        wanted = normalize(platform)
        os, _, architecture = wanted.partition("/")
        own = "/".join(filter(None, (self.os or os, self.architecture or architecture, self.variant)))
        return normalize(own) == wanted


async def inspect(engine: Engine, reference: ImageReference | str) -> ImageInfo | None:
    """The image of that name or id; None when the engine does not have it."""
    try:
        return await engine.request_json("GET", f"{image_path(reference)}/json", ImageInfo)
    except NotFound:
        return None


async def find(engine: Engine, reference: ImageReference) -> ImageInfo | None:
    """The image of exactly that name; the engine would also take a name for the beginning of an id."""
    image = await inspect(engine, reference)
    has_name = image is not None and str(reference) in (*(image.tags or ()), *(image.digests or ()))
    return image if has_name else None


async def tag(engine: Engine, source: ImageReference | str, target: ImageReference) -> None:
    """Give the image `source` (name or id) the name `target`, which must have a tag; moves it there when it is taken.

    Raises `Permanent(not_found)` when there is no such image.
    """
    await engine.request(
        "POST", f"{image_path(source)}/tag", params=[("repo", target.repository), ("tag", target.tag or "latest")]
    )


async def remove(engine: Engine, reference: ImageReference) -> bool:
    """Take this one name away; True when it was there.

    Raises `Temporary(conflict)` while a container needs the image under this name: remove the container first.
    """
    try:
        await engine.request("DELETE", image_path(reference))
    except NotFound:
        return False
    except Temporary as fault:
        if _DELETED_MEANWHILE in fault.message:
            return True
        if fault.code is ErrorCode.CONFLICT:
            raise Temporary(fault.code, f"cannot remove image {reference} yet: {fault.message}") from fault
        raise
    return True


async def list_tags(engine: Engine, *patterns: str) -> list[str]:
    """All names (`repository:tag`) whose repository is one of `patterns`, in which a `*` stands for anything; sorted.

    On the containerd store a list of all images takes long, and any list fails when an image in it goes meanwhile: then
    it is asked for again. Raises `Temporary(conflict)` when that happens `LIST_TRIES` times.
    """
    listed = await _listed(engine, patterns)
    names = {name for image in listed for name in image.tags or ()}
    # Some engines give all names of an image of which one fits.
    return sorted(
        name for name in names if any(fnmatch.fnmatchcase(name.rpartition(":")[0], pattern) for pattern in patterns)
    )


async def _listed(engine: Engine, patterns: Sequence[str]) -> list[ImageInfo]:
    params = [("filters", msgspec.json.encode({"reference": patterns}).decode())]
    for _ in range(LIST_TRIES):
        try:
            return await engine.request_json("GET", "images/json", list[ImageInfo], params=params)
        except NotFound as fault:
            why = fault.message
    raise Temporary(ErrorCode.CONFLICT, f"the engine's images change while they are listed: {why}")


async def pull(
    engine: Engine, reference: ImageReference, credentials: Credentials | None, *, platform: str = ""
) -> AsyncGenerator[Transfer, None]:
    """Pull one image; it is there when the iteration ends. Nothing is transferred when it was up to date.

    Read it under `contextlib.aclosing`: closing it stops the download. Raises `Permanent(denied | not_found |
    fetch_failed)`, `Temporary(registry_unavailable)` and `Temporary(engine_unavailable)`.
    """
    judge = errors.of_registry(f"pulling {reference}", ErrorCode.FETCH_FAILED)
    params = [("fromImage", reference.repository), ("tag", reference.digest or reference.tag or "latest")]
    is_done = False
    told = registry_messages(
        engine,
        "images/create",
        params + ([("platform", platform)] if platform else []),
        host=reference.host,
        credentials=credentials,
        judge=judge,
    )
    async with aclosing(told):
        async for message in told:
            is_done = is_done or message.status.startswith(_PULLED_STATUS)
            if message.detail is not None and message.id:
                yield transfer(message)
    if not is_done:
        raise errors.ended_early(f"the pull of {reference} did not say that it was done")


def image_path(reference: ImageReference | str) -> str:
    """The engine's path of an image. Slashes of its name stay: the engine's routes take them."""
    return f"images/{quote(str(reference), safe='/:@')}"


# POSIX pax: two blocks of zeros.
_END_BYTES = 1024
# With status 500 and the path of a file, when an id is asked for (read on 20.10).
_ABSENT = re.compile(r"failed to get digest sha256:[0-9a-f]{64}: .*no such file")


class _Error(msgspec.Struct, frozen=True):
    """What the engine appends when it fails after the beginning."""

    error: str = ""


async def export(engine: Engine, image_id: str) -> AsyncGenerator[bytes, None]:
    """The blocks of the tar as they arrive; the image was whole when the iteration ends.

    Read it under `contextlib.aclosing`: closing it ends the export. Raises `Permanent(not_found)` when there is no such
    image, and `Temporary(engine_unavailable)`, also after `idle_timeout_s` of silence and for a tar without its end.
    """
    tail = b""
    idle_timeout_s = engine.settings.idle_timeout_s
    path = f"{image_path(image_id)}/get"
    async with engine.exchange("GET", path, judge=_judge, idle_timeout_s=idle_timeout_s) as reply:
        async for block in reply.blocks:
            tail = (tail + block[-_END_BYTES:])[-_END_BYTES:]
            yield block
    if tail != bytes(_END_BYTES):
        raise errors.ended_early(f"the export of {image_id} has no end{_told(tail)}")


def _judge(status: int, message: str) -> Fault:
    if _ABSENT.search(message):
        return NotFound("the Docker Engine does not have that image")
    return errors.of_engine(status, message)


def _told(tail: bytes) -> str:
    """What the engine says of why, where it does."""
    try:
        said = msgspec.json.decode(tail[tail.rfind(b'{"errorDetail"') :].strip(), type=_Error)
    except errors.UNDECODABLE:
        return ""
    return f": {said.error[: errors.MESSAGE_MAX_CHARS]}"
