"""A process that enqueues, claims and finishes as fast as it can, and prints each answer it got; made to be killed."""

import asyncio
import os
import sys
from pathlib import Path

from imagejobd import logs
from imagejobd.model.job import NewJob, State, uuid7
from imagejobd.store.protocol import Capacity, Ending, Store
from imagejobd.store.sqlite.store import SqliteStore
from imagejobd.store.vault import KEY_BYTES, Vault

CALLERS = 20


def say(word: str, uuid: str) -> None:
    """One write per line, so that a kill never cuts one."""
    os.write(sys.stdout.fileno(), f"{word} {uuid}\n".encode())


async def submit(store: Store) -> None:
    while True:
        say("accepted", (await store.enqueue(NewJob(kind="build", spec={}), queue_max=10**6)).uuid)


async def ctx(store: Store, worker: str) -> None:
    while True:
        for claim in await store.claim(worker, Capacity({"build": 5}, 10**6)):
            say("claimed", claim.job.uuid)
            await store.checkpoint(claim, {"claimed_by": worker})
            if claim.job.id % 3:
                await store.finish(claim, Ending(State.SUCCEEDED))
                say("finished", claim.job.uuid)


async def main() -> None:
    logs.configure()
    opening = SqliteStore.open(Path(sys.argv[1]), vault=Vault(bytes(KEY_BYTES)))
    async with opening as store, asyncio.TaskGroup() as group:
        for _ in range(CALLERS):
            group.create_task(submit(store))
        group.create_task(ctx(store, uuid7()))


if __name__ == "__main__":
    asyncio.run(main())
