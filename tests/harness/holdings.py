"""What an engine holds, asked through its API: to prove that jobs have left nothing in it."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from harness.engine import PrivateEngine
from imagejobd.engine.buildkit import list_history
from imagejobd.engine.client import Engine
from imagejobd.engine.settings import EngineSettings

LABEL = "imagejobd.job"
# Between installation and time in the names of the notes of daemons that work, which are no job's.
ALIVE = "-alive-"


class Held(NamedTuple):
    """A container, a volume (an anonymous one too), an image by one of its names, or a build that BuildKit's history
    has; `owner` is the job in its label."""

    sort: str
    name: str
    owner: str


def holdings(engine: PrivateEngine) -> set[Held]:
    """All that there is, but for the notes of daemons that work."""
    return {*_containers(engine), *_volumes(engine), *_images(engine), *_builds(engine)}


def holdings_of(engine: PrivateEngine, uuid: str) -> list[Held]:
    """What is named after this job or has its label."""
    return [held for held in holdings(engine) if uuid in held.name or held.owner == uuid]


def _containers(engine: PrivateEngine) -> Iterator[Held]:
    for found in engine.ask("/containers/json?all=1"):
        yield Held("container", f"{found['Names'][0].lstrip('/')} of {found['Image']}", _owner(found))


def _volumes(engine: PrivateEngine) -> Iterator[Held]:
    for found in engine.ask("/volumes")["Volumes"] or ():
        if ALIVE not in found["Name"]:
            yield Held("volume", found["Name"], _owner(found))


def _images(engine: PrivateEngine) -> Iterator[Held]:
    listed = engine.ask("/images/json?all=1")
    while not isinstance(listed, list):
        # The containerd store answers 404 when an image goes as it makes the list.
        listed = engine.ask("/images/json?all=1")
    for found in listed:
        for name in found["RepoTags"] or [found["Id"]]:
            yield Held("image", name, _owner(found))


def _builds(engine: PrivateEngine) -> Iterator[Held]:
    async def listed() -> set[str]:
        async with Engine(EngineSettings(host=engine.host)) as client:
            return await list_history(client)

    # In a thread: the caller may be a coroutine itself.
    with ThreadPoolExecutor(1) as thread:
        for name in thread.submit(asyncio.run, listed()).result():
            yield Held("build", name, "")


def _owner(found: dict[str, Any]) -> str:
    return str((found["Labels"] or {}).get(LABEL, ""))
