"""Bringing blobs to the targets that lack them: asked for, mounted where they lie next door, else sent.

Every target goes at its own pace and fails by itself. What they share is the read of each blob.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Sequence
from contextlib import closing

from imagejobd.model.concurrency import bounded
from imagejobd.model.errors import ErrorCode, Fault, Temporary
from imagejobd.model.failpoint import failpoint
from imagejobd.registry.blobs import Put, put_blob
from imagejobd.registry.copy.boarding import Boarding
from imagejobd.registry.copy.copying import Copying
from imagejobd.registry.copy.flight import Reader
from imagejobd.registry.copy.leg import Leg
from imagejobd.registry.manifest import Descriptor

# Blobs that one target asks about or takes at once: more than images have, so that all of them meet the others' reads.
ASTIR_MAX = 128
TRIES_MAX = 4
BACKOFF_FIRST_S = 0.5
# A registry that wants to be left alone for longer gets the job back later.
BACKOFF_MAX_S = 20.0
# Another copy may be bringing the same blob there; one that gets nowhere must not hold up this one.
TURN_PATIENCE_S = 60.0


class Freight:
    """The blobs of the legs that go together. `is_dry_run` only asks."""

    def __init__(self, copying: Copying, legs: Sequence[Leg], *, is_dry_run: bool = False) -> None:
        self._copying = copying
        self._is_dry_run = is_dry_run
        self._under_way = dict.fromkeys(legs)
        self._boardings: dict[str, Boarding] = {}

    async def deliver(self, leg: Leg) -> None:
        """Bring the leg all its blobs, the largest first: they take longest, and the small ones fill the gaps.

        Raises its first fault, when everything else for this leg has been stopped.
        """
        blobs = sorted(leg.blobs.values(), key=lambda blob: (-blob.size, blob.digest))
        leg.tally.total_bytes = max(leg.tally.total_bytes, sum(blob.size for blob in blobs))
        try:
            await bounded(blobs, lambda blob: self._carry(blob, leg), at_once=ASTIR_MAX)
        finally:
            del self._under_way[leg]
            for boarding in self._boardings.values():
                boarding.forget(leg)

    async def _carry(self, blob: Descriptor, leg: Leg) -> None:
        """Make one blob be there. Of two copies that bring it to one registry the second finds or mounts it."""
        boarding = self._boarding(blob)
        turn = (leg.repository.host, blob.digest)
        if self._copying.turns.is_taken(turn):
            boarding.forget(leg)
        try:
            async with self._copying.turns.take(turn, grace_s=TURN_PATIENCE_S):
                if await self._has(blob, leg):
                    leg.count(blob, "skipped_bytes")
                elif not self._is_dry_run:
                    await self._put_patiently(blob, leg, boarding)
        finally:
            boarding.forget(leg)

    async def _has(self, blob: Descriptor, leg: Leg) -> bool:
        if leg.is_distrusted or not await leg.repository.has_blob(blob.digest, blob.size):
            return False
        self._copying.holdings.note(leg.repository, blob.digest)
        return True

    async def _put_patiently(self, blob: Descriptor, leg: Leg, boarding: Boarding) -> None:
        tries = 0
        while True:
            tries += 1
            try:
                put = await self._put(blob, leg, boarding)
                break
            except Fault as fault:
                wait_s = _wait_s(fault, tries)
                if wait_s is None:
                    raise
                await self._copying.tell(f"{leg.repository}: {fault.message}; trying again")
            await asyncio.sleep(wait_s)
        leg.count(blob, "mounted_bytes" if put is Put.MOUNTED else "sent_bytes")
        self._copying.holdings.note(leg.repository, blob.digest)
        failpoint("after_blob")

    async def _put(self, blob: Descriptor, leg: Leg, boarding: Boarding) -> Put:
        sent = 0
        readers: list[Reader] = []

        async def body() -> AsyncGenerator[bytes, None]:
            nonlocal sent
            leg.tally.sent_bytes -= sent
            sent = 0
            reader = readers.pop() if readers else self._copying.flights.board(self._copying.source, blob, 1)[0]
            with closing(reader):
                async for chunk in reader:
                    sent += len(chunk)
                    leg.tally.sent_bytes += len(chunk)
                    yield chunk

        mount_from = None if leg.is_distrusted else self._copying.holdings.elsewhere(leg.repository, blob.digest)
        # Before there is a place in the registry's lane: a reader that has to wait for one is spooled, not left behind.
        with closing(await boarding.take(leg)) as reader:
            readers.append(reader)
            try:
                return await put_blob(leg.repository, blob, body, mount_from=mount_from)
            except BaseException:
                # What did not arrive was not sent, as far as people care.
                leg.tally.sent_bytes -= sent
                raise

    def _boarding(self, blob: Descriptor) -> Boarding:
        """Where those who need `blob` meet; made when the first of them comes."""
        if blob.digest not in self._boardings:
            legs = [leg for leg in self._under_way if blob.digest in leg.blobs]
            self._copying.holdings.note(self._copying.source, blob.digest)
            self._boardings[blob.digest] = Boarding(
                lambda readers: self._copying.flights.board(self._copying.source, blob, readers), legs
            )
        return self._boardings[blob.digest]


def _wait_s(fault: Fault, tries: int) -> float | None:
    """How long to wait before the next try; None where another one is no use now."""
    if tries >= TRIES_MAX:
        return None
    if isinstance(fault, Temporary):
        wait_s = BACKOFF_FIRST_S * 2 ** (tries - 1) * random.uniform(0.5, 1.0)  # noqa: S311
        wait_s = max(wait_s, fault.retry_after_s or 0.0)
        return wait_s if wait_s <= BACKOFF_MAX_S else None
    # Bytes may have been bent on their way: worth one more read.
    return 0.0 if fault.code is ErrorCode.COPY_FAILED and tries == 1 else None
