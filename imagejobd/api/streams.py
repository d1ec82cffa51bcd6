"""Answers that go on while a job does: followed by many clients for the price of one read, and taken up again where
they broke off. The framing is that of server-sent events (WHATWG HTML, §9.2).

aiohttp-sse has a task for each connection, encodes every event for each of them, and waits without end for a client
that does not read. Here a piece of a stream is read and encoded once for all who are at the same place.
"""

import asyncio
import copy
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable, Iterator
from contextlib import aclosing, contextmanager, suppress
from functools import partial

import msgspec
from aiohttp import hdrs, web

from imagejobd.api.intake import Intake
from imagejobd.api.wire import busy, number, send
from imagejobd.model.errors import Fault, NotFound
from imagejobd.model.job import Job
from imagejobd.store.protocol import Store, job_topic

# Clients that follow something or wait for a job's end, each of which may hold two pieces of a stream in memory.
FOLLOWERS_MAX = 1000
# Those of one tenant, so that others find room.
FOLLOWERS_OF_TENANT_MAX = 750
# A follower wakes up with every commit; this only bounds how late it is noticed that its client has gone, or that the
# daemon closes.
FOLLOW_POLL_S = 1.0
# Proxies cut connections on which nothing happens.
KEEP_ALIVE_S = 15.0
KEEP_ALIVE = b": keep-alive\n\n"
# A browser whose stream was cut asks again after so many milliseconds.
BEGIN = b"retry: 1000\n\n"
STREAM_HEADERS = {
    hdrs.CONTENT_TYPE: "text/event-stream; charset=utf-8",
    hdrs.CACHE_CONTROL: "no-cache",
    "X-Accel-Buffering": "no",
}


class Piece(msgspec.Struct, frozen=True):
    """What comes next in a stream, perhaps nothing yet; `cursor` is where it goes on. There may be more to read at
    once, or this is the end."""

    data: bytes
    cursor: int
    has_more: bool = False
    is_last: bool = False


# Reads a stream from a cursor on.
Read = Callable[[int], Awaitable[Piece]]


class Streams:
    """Everybody who follows something."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._followers = Counter[str]()
        # By the place in a stream: who waits there for what comes next, and what looks for it.
        self._waiting: dict[Hashable, list[asyncio.Future[Piece]]] = {}
        self._searches: set[asyncio.Task[Piece]] = set()

    @contextmanager
    def follower(self, request: web.Request) -> Iterator[None]:
        """While one more client follows something. Raises `Temporary(queue_full)` when there are too many."""
        tenant = self._intake.caller(request).tenant
        if self._followers.total() >= FOLLOWERS_MAX:
            raise busy(f"{FOLLOWERS_MAX} clients follow logs and events, or wait for jobs")
        if self._followers[tenant] >= FOLLOWERS_OF_TENANT_MAX:
            raise busy(f"{FOLLOWERS_OF_TENANT_MAX} clients of this tenant follow logs and events, or wait for jobs")
        self._followers[tenant] += 1
        try:
            yield
        finally:
            self._followers[tenant] -= 1
            if not self._followers[tenant]:
                del self._followers[tenant]

    async def follow(
        self, request: web.Request, topic: str, cursor: int, read: Read, *, name: Hashable, keep_alive: bytes = b""
    ) -> AsyncGenerator[Piece, None]:
        """What `read` gives from `cursor` on and after each publication of `topic`, up to the last piece; `keep_alive`
        where there was nothing for a while. It ends without a last piece when the client has gone or the daemon closes.

        Those who follow the same `name` at the same place share what is read. Raises what `read` raises.
        """
        sent_at = time.monotonic()
        while not self._is_over(request):
            piece = await self._next(topic, name, cursor, read)
            cursor = piece.cursor
            if piece.data or piece.is_last:
                yield piece
                sent_at = time.monotonic()
            elif keep_alive and time.monotonic() - sent_at >= KEEP_ALIVE_S:
                yield Piece(keep_alive, cursor)
                sent_at = time.monotonic()
            if piece.is_last:
                return

    async def send_events(
        self, request: web.Request, topic: str, cursor: int, read: Read, *, name: Hashable
    ) -> web.StreamResponse:
        """Answer with what `follow` gives, whose pieces are server-sent events.

        Raises `Temporary(queue_full)` as `follower` does, `Permanent(timeout)` for a client that does not read, and
        what `read` raises; both cut the answer.
        """
        idle_s = self._intake.server.body_idle_s
        with self.follower(request):
            response = web.StreamResponse(headers=STREAM_HEADERS)
            await response.prepare(request)
            await send(response, BEGIN, idle_s=idle_s)
            async with aclosing(self.follow(request, topic, cursor, read, name=name, keep_alive=KEEP_ALIVE)) as pieces:
                async for piece in pieces:
                    await send(response, piece.data, idle_s=idle_s)
            await response.write_eof()
        return response

    async def ended(self, request: web.Request, job: Job, timeout_s: float) -> Job:
        """The job when it has ended, or as it is when the time is over, the client has gone or the daemon closes.

        Raises `Temporary(queue_full)` as `follower` does.
        """

        async def look(cursor: int) -> Piece:
            return Piece(b"", cursor, is_last=(await latest_job(self._intake.store, job)).state.is_final)

        with self.follower(request), suppress(TimeoutError):
            async with (
                asyncio.timeout(timeout_s),
                aclosing(self.follow(request, job_topic(job.id), 0, look, name="end")) as looks,
            ):
                await anext(looks, None)
        return await latest_job(self._intake.store, job)

    def _next(self, topic: str, name: Hashable, cursor: int, read: Read) -> asyncio.Future[Piece]:
        """What comes next at this place: looked for once for all who are there, of whom none has a task or a timer."""
        place = (topic, name, cursor)
        future = asyncio.get_running_loop().create_future()
        if place not in self._waiting:
            self._waiting[place] = []
            search = asyncio.create_task(self._search(topic, cursor, read))
            self._searches.add(search)
            search.add_done_callback(partial(self._hand_over, place))
        self._waiting[place].append(future)
        return future

    async def _search(self, topic: str, cursor: int, read: Read) -> Piece:
        """The next piece that has something, or one that has nothing after `FOLLOW_POLL_S`."""
        deadline = time.monotonic() + FOLLOW_POLL_S
        with self._intake.store.watch(topic) as changes:
            while True:
                piece = await read(cursor)
                cursor = piece.cursor
                if piece.data or piece.is_last:
                    return piece
                if not piece.has_more and not await changes.changed(deadline - time.monotonic()):
                    return piece

    def _hand_over(self, place: Hashable, search: asyncio.Task[Piece]) -> None:
        self._searches.discard(search)
        for future in self._waiting.pop(place):
            if future.done():
                continue
            if search.cancelled():
                future.cancel()
            elif (failure := search.exception()) is not None:
                future.set_exception(copy.copy(failure) if isinstance(failure, Fault) else failure)
            else:
                future.set_result(search.result())

    def _is_over(self, request: web.Request) -> bool:
        """Nothing tells a handler that only waits that its client has closed the connection."""
        return self._intake.is_closing or request.transport is None or request.transport.is_closing()


async def latest_job(store: Store, job: Job) -> Job:
    """The job as it is now. Raises `NotFound` when it is no longer kept."""
    job_now = await store.get(job.uuid, tenant=None)
    if job_now is None:
        raise NotFound(f"job {job.uuid} is no longer kept (retention.history_days)")
    return job_now


def wants_events(request: web.Request) -> bool:
    """Whether a client asks for a stream of events, and not only for the head of one."""
    accept = ",".join(request.headers.getall(hdrs.ACCEPT, [])).lower()
    return request.method == hdrs.METH_GET and "text/event-stream" in accept


def last_event_id(request: web.Request) -> int | None:
    """Where a client that was cut off goes on; what its URL says of a place is of its first request."""
    last = request.headers.get("Last-Event-ID")
    return number("Last-Event-ID", last, 0) if last else None


def frame(cursor: int, event: str, data: bytes) -> bytes:
    """One server-sent event. All three kinds of line break reach the client as the same one, but for a last one, which
    does not."""
    text = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").removesuffix(b"\n")
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (cursor, event.encode(), text.replace(b"\n", b"\ndata: "))
