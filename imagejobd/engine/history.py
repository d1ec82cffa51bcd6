"""BuildKit's history of builds, which keeps the arguments and all output of each, for days, where nothing prunes it.

Docker 20.10 keeps none. A record is known for a job's by a build argument that no Dockerfile asks for: it stands there
however the build ended, and changes nothing in image or cache. (The name of the image, an attribute of the exporter, is
not in the records of Docker 26.) The engine's API does not offer the history; BuildKit's own service does.
"""

import asyncio
import functools
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress

import msgspec
import structlog
from h2.exceptions import H2Error

from imagejobd.engine import errors, grpc
from imagejobd.engine.client import Engine
from imagejobd.engine.protobuf import MalformedRecord, as_bytes, as_int, as_text, encoded, fields
from imagejobd.model.errors import NotFound, Permanent

log = structlog.get_logger("imagejobd.engine")

# For all that is asked over one connection.
CONTROL_TIMEOUT_S = 10.0
# A build that was stopped is recorded a moment later; one that takes longer is found the next time.
ENDING_TRIES = 10
ENDING_INTERVAL_S = 0.1
# Names the images of a build, as `repository:tag` with commas between them.
IMAGES_ARG = "IMAGEJOBD_IMAGES"


class _Build(msgspec.Struct, frozen=True):
    """A record: its id, the repositories that its image was named in, and whether the build still goes on."""

    ref: str
    repositories: frozenset[str]
    is_active: bool


@asynccontextmanager
async def control(engine: Engine) -> AsyncIterator[grpc.Client]:
    """BuildKit's own service (`moby.buildkit.v1.Control`) over an upgraded `POST /grpc`, within `CONTROL_TIMEOUT_S`.

    Raises `Permanent(not_found)` where there is no such endpoint or method, another `Permanent` where the engine
    refuses, and `Temporary(engine_unavailable)`, also for a `MalformedRecord` that is found in the block.
    """
    try:
        async with engine.upgrade("grpc", "h2c", timeout_s=CONTROL_TIMEOUT_S) as connection:
            yield grpc.Client(connection, "moby.buildkit.v1.Control")
    except (H2Error, MalformedRecord) as error:
        raise errors.ended_early(f"BuildKit's answer is not what an engine says ({error})") from error


async def list_history(engine: Engine) -> set[str]:
    """The repositories (`model/ownership.py`) that ended builds in the history, of all installations, were to name
    images in.

    Raises as `delete_history` does, and is empty where that does nothing.
    """
    try:
        async with control(engine) as service:
            builds = await _builds(service)
    except Permanent as fault:
        if not isinstance(fault, NotFound):
            _warn_refused(engine.host, fault.message)
        return set()
    return {repository for build in builds if not build.is_active for repository in build.repositories}


async def delete_history(engine: Engine, *repositories: str) -> int:
    """Delete the records, with their logs, of builds that were to name an image in one of these; returns how many.

    A build that still goes on is waited for a moment. Docker 26 removes a log's file, which nobody can reach any more,
    with the next pruning of the build cache. Does nothing on an engine that has no history, or that keeps it from us.
    Raises `Temporary(engine_unavailable)`.
    """
    deleted: set[str] = set()
    try:
        async with control(engine) as service:
            for _ in range(ENDING_TRIES):
                builds = [build for build in await _builds(service) if not build.repositories.isdisjoint(repositories)]
                # One that somebody reads goes only when he has done, and is listed until then.
                for ref in {build.ref for build in builds if not build.is_active} - deleted:
                    await _delete(service, ref)
                    deleted.add(ref)
                if not any(build.is_active for build in builds):
                    break
                await asyncio.sleep(ENDING_INTERVAL_S)
    except Permanent as fault:
        if not isinstance(fault, NotFound):
            _warn_refused(engine.host, fault.message)
    return len(deleted)


async def _builds(service: grpc.Client) -> list[_Build]:
    """Everything in the history, and the builds that go on."""
    # BuildHistoryRequest: 3 is EarlyExit. Without it the engine goes on to report what changes.
    async with aclosing(service.call("ListenBuildHistory", encoded(3, True))) as events:
        return [_build(event) async for event in events]


async def _delete(service: grpc.Client, ref: str) -> None:
    # UpdateBuildHistoryRequest: 1 is Ref, 3 is Delete.
    request = encoded(1, ref.encode()) + encoded(3, True)
    with suppress(NotFound):
        async with aclosing(service.call("UpdateBuildHistory", request)) as answer:
            async for _ in answer:
                pass


def _build(event: bytes) -> _Build:
    """BuildHistoryEvent: 1 is the type, of which 0 is STARTED; 2 is the BuildHistoryRecord.

    Of that 1 is the Ref and 3 an entry of the FrontendAttrs: key and value.
    """
    outer = dict(fields(event))
    record = list(fields(as_bytes(outer.get(2, b""))))
    entries = [dict(fields(as_bytes(value))) for number, value in record if number == 3]
    attributes = {as_text(entry.get(1, b"")): as_text(entry.get(2, b"")) for entry in entries}
    images = attributes.get(f"build-arg:{IMAGES_ARG}", "").split(",")
    return _Build(
        ref=as_text(dict(record).get(1, b"")),
        repositories=frozenset(image.rpartition(":")[0] for image in images if image),
        is_active=as_int(outer.get(1, 0)) == 0,
    )


@functools.cache
def _warn_refused(host: str, fault: str) -> None:
    log.warning("the engine keeps the logs of builds: it does not let us delete its history", host=host, error=fault)
