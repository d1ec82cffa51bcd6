"""The door that every API's submissions pass: callers named, uploads held while a request lasts, jobs kept durably.

Nothing is acknowledged here that is not committed. Bytes that turn out to belong to no job are left to the content
store's collection.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import msgspec
from aiohttp import web

from imagejobd.api.settings import Server
from imagejobd.model.bounds import MIB
from imagejobd.model.errors import ErrorCode, Permanent, Temporary
from imagejobd.model.job import LOCAL_TENANT, Enqueued, NewJob
from imagejobd.model.work import Accepted, Kind, Upload
from imagejobd.store.protocol import Store

DRAINING_RETRY_AFTER_S = 10.0
BUSY_RETRY_AFTER_S = 10.0
# A burst of uploads waits its turn; only what lasts longer is refused.
UPLOAD_TURN_TIMEOUT_S = 10.0
# Preflights of one kind under way at once, so that callers who name silent registries cannot gather without end: each
# may hold a manifest (4 MiB) twice while it is read.
PREFLIGHTS_MAX = 16
# JSON bodies of all requests together, while they are in memory.
JSON_TOTAL_MAX_BYTES = 256 * MIB


class Caller(msgspec.Struct, frozen=True):
    """Who asks. An anonymous caller is tenant `local`; `tenant` bounds what it may see."""

    tenant: str = LOCAL_TENANT
    client: str = ""


class Door:
    """What the API modules need of the rest of the daemon."""

    def __init__(self, store: Store, kinds: Mapping[str, Kind], server: Server, *, queue_max: int) -> None:
        self.store = store
        self.kinds = kinds
        self.server = server
        self.is_draining = False
        self._queue_max = queue_max
        self._upload_turns = asyncio.Semaphore(server.uploads_max)
        self._preflights = dict.fromkeys(kinds, 0)
        self._json_room_bytes = max(JSON_TOTAL_MAX_BYTES, server.json_max_bytes)

    def caller(self, request: web.Request) -> Caller:
        """Who sent the request."""
        return Caller()

    def admit(self) -> None:
        """Refuse new work while the daemon stops; called before a body is read."""
        if self.is_draining:
            raise Temporary(
                ErrorCode.DRAINING,
                "the daemon is stopping and takes no new jobs; try again in a moment",
                retry_after_s=DRAINING_RETRY_AFTER_S,
            )

    @asynccontextmanager
    async def uploads(self) -> AsyncIterator["Uploads"]:
        """What one request brings in: held while the block lasts, afterwards only where a job refers to it.

        Raises `Permanent(timeout)` when the block takes longer than a request may.
        """
        uploads = Uploads(self)
        limit_s = self.server.upload_timeout_s
        clock = asyncio.timeout(limit_s)
        try:
            async with clock:
                yield uploads
        except TimeoutError:
            if not clock.expired():
                raise
            message = f"the request took longer than server.upload_timeout_s = {limit_s:g} s"
            raise Permanent(ErrorCode.TIMEOUT, message) from None
        finally:
            uploads.release()

    @asynccontextmanager
    async def upload_turn(self) -> AsyncIterator[None]:
        """One of `uploads_max` turns. Raises `Temporary(queue_full)` when none comes soon."""
        try:
            async with asyncio.timeout(UPLOAD_TURN_TIMEOUT_S):
                await self._upload_turns.acquire()
        except TimeoutError:
            raise _busy(f"server.uploads_max = {self.server.uploads_max} uploads are under way") from None
        try:
            yield
        finally:
            self._upload_turns.release()

    def take_json_room(self, size_bytes: int) -> None:
        """Account for bytes of a JSON body, or give them back (negative). Raises `Temporary(queue_full)`."""
        if size_bytes > self._json_room_bytes:
            raise _busy("too many large requests are being read")
        self._json_room_bytes -= size_bytes

    async def submit(self, job: NewJob) -> Enqueued:
        """Keep a job durably, unless its kind's preflight knows that it cannot be done (see `Kind.preflight`).

        With an idempotency key nothing is asked: a repeated request must find its job whatever has changed outside.
        """
        if job.idempotency_key is None:
            await self._preflight(job)
        self.admit()
        return await self.store.enqueue(job, queue_max=self._queue_max)

    async def _preflight(self, job: NewJob) -> None:
        """Ask, where it is not too many who ask already; a kind bounds how long it does. What it could not be told, or
        what may change, is left to the job."""
        if self._preflights[job.kind] >= PREFLIGHTS_MAX:
            return
        self._preflights[job.kind] += 1
        try:
            await self.kinds[job.kind].preflight(Accepted(job.spec, job.secrets, job.blobs))
        except (Temporary, TimeoutError):
            pass
        finally:
            self._preflights[job.kind] -= 1


class Uploads:
    """The files of one request. Made by `Door.uploads`."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._received: list[tuple[Kind, Upload]] = []
        self._json_bytes = 0

    async def receive(self, kind: Kind, body: AsyncIterator[bytes]) -> Upload:
        """Give `body` to the kind that is to work on it."""
        async with self._door.upload_turn():
            upload = await kind.receive(body)
        self._received.append((kind, upload))
        return upload

    def hold_json(self, size_bytes: int) -> None:
        """Account for a piece of this request's JSON. Raises `Temporary(queue_full)` when there is too much."""
        self._door.take_json_room(size_bytes)
        self._json_bytes += size_bytes

    def release(self) -> None:
        self._door.take_json_room(-self._json_bytes)
        self._json_bytes = 0
        for kind, upload in self._received:
            kind.release(upload)
        self._received.clear()


def _busy(why: str) -> Temporary:
    return Temporary(ErrorCode.QUEUE_FULL, f"{why}; try again in a moment", retry_after_s=BUSY_RETRY_AFTER_S)


def new_job(kind: str, accepted: Accepted, caller: Caller) -> NewJob:
    return NewJob(
        kind=kind,
        spec=accepted.spec,
        secrets=accepted.secrets,
        blobs=accepted.blobs,
        tenant=caller.tenant,
        client=caller.client,
    )
