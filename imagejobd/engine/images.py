"""Images in the engine: look, name, unname, pull, push, export.

Images are removed by name only, never by id or by force: identical builds share an id, and taking one job's name away
must not take another's image. The engine drops an image itself when its last name goes.

The end of a transfer does not say that it worked: a pull has a last status, a push reports the digest that the
registry has, and a tar has an end of its own. Every refusal, even by the registry, comes inside an HTTP 200 answer.
"""

import base64
import fnmatch
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any
from urllib.parse import quote

import msgspec

from imagejobd.engine import errors
from imagejobd.engine.client import Engine, Params, filters
from imagejobd.engine.stream import Message, Transfer, messages
from imagejobd.model.errors import ErrorCode, Fault, NotFound, Temporary, invalid
from imagejobd.model.reference import HUB_HOST, ImageReference, is_digest, normalize
from imagejobd.model.secrets import Credentials

LIST_TRIES = 10

# The name under which the engine, for historical reasons, looks for the Hub's credentials.
_HUB_SERVER = "https://index.docker.io/v1/"
# The last line of a pull: `Status: Downloaded newer image for …` or `Status: Image is up to date for …`.
_PULLED_STATUS = "Status: "
# `v1: digest: sha256:… size: 739`, all that the containerd image store says of a push.
_DIGEST_STATUS = re.compile(r"(?P<tag>\S+): digest: (?P<digest>\S+) size: (?P<size>\d{1,18})")
# POSIX pax: two blocks of zeros.
_TAR_END_BYTES = 1024
# What the engine answers when two names of one image are taken away at once: both went, and the image with them.
_DELETED_MEANWHILE = "unrecognized image ID"
# With status 500 and the path of a file, when an id is asked for (read on 20.10).
_ABSENT = re.compile(r"failed to get digest sha256:[0-9a-f]{64}: .*no such file")


class ImageConfig(msgspec.Struct, frozen=True):
    """What an image says of how it is to be run and built on; absent things are null or empty."""

    user: str = msgspec.field(name="User", default="")
    volumes: dict[str, Any] | None = msgspec.field(name="Volumes", default=None)
    on_build: list[str] | None = msgspec.field(name="OnBuild", default=None)


class _RootFs(msgspec.Struct, frozen=True):
    layers: list[str] | None = msgspec.field(name="Layers", default=None)


class ImageInfo(msgspec.Struct, frozen=True):
    """An image as the engine has it. `tags` are `repository:tag`, `digests` `repository@sha256:…`, `layers` the diff
    ids of what it is made of, from the lowest."""

    id: str = msgspec.field(name="Id")
    tags: list[str] | None = msgspec.field(name="RepoTags", default=None)
    digests: list[str] | None = msgspec.field(name="RepoDigests", default=None)
    size_bytes: int = msgspec.field(name="Size", default=0)
    os: str = msgspec.field(name="Os", default="")
    architecture: str = msgspec.field(name="Architecture", default="")
    variant: str = msgspec.field(name="Variant", default="")
    config: ImageConfig = msgspec.field(name="Config", default=ImageConfig())
    root_fs: _RootFs = msgspec.field(name="RootFS", default=_RootFs())

    @property
    def layers(self) -> list[str]:
        return self.root_fs.layers or []

    def is_for(self, platform: str) -> bool:
        """Whether it is the image of `platform`; what it does not say of itself fits."""
        target = normalize(platform)
        os, _, architecture = target.partition("/")
        platform = "/".join(filter(None, (self.os or os, self.architecture or architecture, self.variant)))
        return normalize(platform) == target


class Pushed(msgspec.Struct, frozen=True):
    """The registry took the manifest: its digest there, and its own size in bytes.

    `parts` has the last status of each part by its short id: the beginning of a layer's diff id, or of a blob's digest
    with the containerd image store.
    """

    digest: str
    size: int
    parts: dict[str, str] = {}


class _PushAux(msgspec.Struct, frozen=True):
    tag: str = msgspec.field(name="Tag", default="")
    digest: str = msgspec.field(name="Digest", default="")
    size: int = msgspec.field(name="Size", default=0)


_aux_decoder = msgspec.json.Decoder(_PushAux)


async def inspect(engine: Engine, reference: ImageReference | str) -> ImageInfo | None:
    """The image of that name or id; None when the engine does not have it."""
    try:
        return await engine.request_json("GET", f"{_path(reference)}/json", ImageInfo)
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
        "POST", f"{_path(source)}/tag", params=[("repo", target.repository), ("tag", target.tag or "latest")]
    )


async def remove(engine: Engine, reference: ImageReference) -> bool:
    """Take this one name away; True when it was there.

    Raises `Temporary(conflict)` while a container needs the image under this name: remove the container first.
    """
    try:
        await engine.request("DELETE", _path(reference))
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
    for _ in range(LIST_TRIES):
        try:
            listed = await engine.request_json(
                "GET", "images/json", list[ImageInfo], params=[filters(reference=patterns)]
            )
        except NotFound as fault:
            why = fault.message
        else:
            names = {name: name.rpartition(":")[0] for image in listed for name in image.tags or ()}
            # Some engines give all names of an image of which one fits.
            return sorted(name for name in names if any(fnmatch.fnmatchcase(names[name], one) for one in patterns))
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
    if platform:
        params.append(("platform", platform))
    is_done = False
    async with aclosing(_transfer(engine, "images/create", params, reference.host, credentials, judge)) as progress:
        async for message in progress:
            is_done = is_done or message.status.startswith(_PULLED_STATUS)
            if message.detail is not None and message.id:
                yield message.transfer()
    if not is_done:
        raise errors.ended_early(f"the pull of {reference} did not say that it was done")


async def push(
    engine: Engine, reference: ImageReference, credentials: Credentials | None
) -> AsyncGenerator[Transfer | Pushed, None]:
    """Push `reference` (with a tag: without, the engine would push them all) to its registry; ends with `Pushed`.

    Read it under `contextlib.aclosing`: closing it stops the upload. Raises `Permanent(denied)`,
    `Permanent(not_found)` for a tag that the engine does not have, `Permanent(push_failed)`,
    `Temporary(registry_unavailable)` and `Temporary(engine_unavailable)`, also when no digest was reported.
    """
    if reference.tag is None:
        raise invalid(f"cannot push {reference}: it has no tag")
    judge = errors.of_registry(f"pushing {reference}", ErrorCode.PUSH_FAILED)
    path, params = f"{_path(reference.repository)}/push", [("tag", reference.tag)]
    pushed: Pushed | None = None
    parts: dict[str, str] = {}
    async with aclosing(_transfer(engine, path, params, reference.host, credentials, judge)) as progress:
        async for message in progress:
            pushed = _pushed(message, reference.tag) or pushed
            if message.detail is not None and message.id:
                parts[message.id] = message.status
                yield message.transfer()
    if pushed is None:
        raise errors.ended_early(f"the push of {reference} named no digest")
    yield msgspec.structs.replace(pushed, parts=parts)


async def export(engine: Engine, image_id: str) -> AsyncGenerator[bytes, None]:
    """The tar that `docker save` gives, in blocks as they arrive; the image was whole when the iteration ends.

    By id, so that the archive names none of the engine's own tags. Read it under `contextlib.aclosing`: closing it ends
    the export. Raises `Permanent(not_found)` when there is no such image, and `Temporary(engine_unavailable)`, also
    after `idle_timeout_s` of silence and for a tar without its end.
    """
    tail = b""
    idle_timeout_s = engine.settings.idle_timeout_s
    async with engine.exchange(
        "GET", f"{_path(image_id)}/get", judge=_of_export, idle_timeout_s=idle_timeout_s
    ) as reply:
        async for block in reply.blocks:
            tail = (tail + block[-_TAR_END_BYTES:])[-_TAR_END_BYTES:]
            yield block
    if tail != bytes(_TAR_END_BYTES):
        raise errors.ended_early(f"the export of {image_id} has no end{_export_error(tail)}")


def _path(reference: ImageReference | str) -> str:
    """The engine's path of an image. Slashes of its name stay: the engine's routes take them."""
    return f"images/{quote(str(reference), safe='/:@')}"


async def _transfer(
    engine: Engine, path: str, params: Params, host: str, credentials: Credentials | None, judge: errors.Judge
) -> AsyncGenerator[Message, None]:
    """All messages of the pull or push that a POST to `path` starts, with `credentials` for the registry `host`.

    Closing it ends the transfer, as `idle_timeout_s` of silence do.
    """
    # A header that the engine cannot decode is no error to it, it goes on anonymously: one is always sent, well formed.
    login = {}
    if credentials is not None:
        server = _HUB_SERVER if host == HUB_HOST else host
        password = credentials.password.reveal()
        login = {"username": credentials.username, "password": password, "serveraddress": server}
    headers = {"X-Registry-Auth": base64.urlsafe_b64encode(msgspec.json.encode(login)).decode()}
    idle_timeout_s = engine.settings.idle_timeout_s
    async with engine.exchange(
        "POST", path, params=params, headers=headers, judge=judge, idle_timeout_s=idle_timeout_s
    ) as reply:
        async for batch in messages(reply.blocks, judge):
            for message in batch:
                yield message


def _pushed(message: Message, tag: str) -> Pushed | None:
    if message.aux:
        try:
            aux = _aux_decoder.decode(message.aux)
        except msgspec.ValidationError:
            return None  # newer engines send other things here too: which platforms were pushed
    elif match := _DIGEST_STATUS.fullmatch(message.status):
        aux = _PushAux(match["tag"], match["digest"], int(match["size"]))
    else:
        return None
    return Pushed(aux.digest, aux.size) if aux.tag == tag and is_digest(aux.digest) else None


def _of_export(status: int, message: str) -> Fault:
    if _ABSENT.search(message):
        return NotFound("the Docker Engine does not have that image")
    return errors.of_engine(status, message)


def _export_error(tail: bytes) -> str:
    """What the engine appends when it fails after the beginning, or nothing: it may just end."""
    try:
        error = msgspec.json.decode(tail[tail.rfind(b'{"errorDetail"') :].strip(), type=Message).error
    except errors.UNDECODABLE:
        return ""
    return f": {error[: errors.MESSAGE_MAX_CHARS]}"
