"""Registry credentials in the forms that the engine takes them: base64url JSON in a header.

A header that the engine cannot decode is no error to it: it goes on anonymously. So one is always sent, well formed.

Pushing an image. Success is proved by the digest that the engine reports, never by the end of the stream.

Every refusal, even by the registry, comes inside an HTTP 200 answer. Only one tag is pushed at a time: without
`tag` the engine would push them all.
"""

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec

from imagejobd.engine import errors
from imagejobd.engine.client import Engine
from imagejobd.engine.images import image_path
from imagejobd.engine.stream import Message, Transfer, registry_messages, transfer
from imagejobd.model.errors import ErrorCode, invalid
from imagejobd.model.reference import ImageReference, is_digest
from imagejobd.model.secrets import Credentials

# `v1: digest: sha256:… size: 739`, all that the containerd image store says.
_DIGEST_STATUS = re.compile(r"(?P<tag>\S+): digest: (?P<digest>\S+) size: (?P<size>\d{1,18})")


class Pushed(msgspec.Struct, frozen=True):
    """The registry took the manifest: its digest there, and its own size in bytes."""

    digest: str
    size: int


class _Aux(msgspec.Struct, frozen=True):
    tag: str = msgspec.field(name="Tag", default="")
    digest: str = msgspec.field(name="Digest", default="")
    size: int = msgspec.field(name="Size", default=0)


_aux_decoder = msgspec.json.Decoder(_Aux)

PushEvent = Transfer | Pushed


async def push(
    engine: Engine, reference: ImageReference, credentials: Credentials | None
) -> AsyncGenerator[PushEvent, None]:
    """Push `reference` (with a tag) to its registry; the last event is `Pushed`.

    Read it under `contextlib.aclosing`: closing it stops the upload. Raises `Permanent(denied)`,
    `Permanent(not_found)` for a tag that the engine does not have, `Permanent(push_failed)`,
    `Temporary(registry_unavailable)` and `Temporary(engine_unavailable)`, also when no digest was told.
    """
    tag = reference.tag
    if tag is None:
        raise invalid(f"cannot push {reference}: it has no tag")
    judge = errors.of_registry(f"pushing {reference}", ErrorCode.PUSH_FAILED)
    pushed: Pushed | None = None
    told = registry_messages(
        engine,
        f"{image_path(reference.repository)}/push",
        [("tag", tag)],
        host=reference.host,
        credentials=credentials,
        judge=judge,
    )
    async with aclosing(told):
        async for message in told:
            pushed = _pushed(message, tag) or pushed
            if message.detail is not None and message.id:
                yield transfer(message)
    if pushed is None:
        raise errors.ended_early(f"the push of {reference} told no digest")
    yield pushed


def _pushed(message: Message, tag: str) -> Pushed | None:
    if message.aux:
        aux = _decode_aux(message.aux)
        return Pushed(aux.digest, aux.size) if aux.tag == tag and is_digest(aux.digest) else None
    match = _DIGEST_STATUS.fullmatch(message.status)
    if match and match["tag"] == tag and is_digest(match["digest"]):
        return Pushed(match["digest"], int(match["size"]))
    return None


def _decode_aux(aux: msgspec.Raw) -> _Aux:
    """Newer engines send other things here too (which platforms were pushed): those count as nothing."""
    try:
        return _aux_decoder.decode(aux)
    except msgspec.ValidationError:
        return _Aux()
