"""The log of a job: so far or as it grows, all of it or a part, as text or as server-sent events.

A place in it is an offset in bytes of UTF-8, which never changes: whoever was cut off, be it by a crash of the daemon,
goes on there and misses nothing.
"""

from collections.abc import AsyncIterator
from contextlib import aclosing
from http import HTTPStatus

import msgspec
from aiohttp import hdrs, web

from imagejobd.api.intake import Intake
from imagejobd.api.native import error_response
from imagejobd.api.streams import Piece, Streams, frame, last_event_id, latest_job, wants_events
from imagejobd.api.wire import byte_range, number, offer_gzip, parameters, send
from imagejobd.model.bounds import KIB
from imagejobd.model.errors import NotFound, invalid
from imagejobd.model.job import Job
from imagejobd.store.protocol import Store, job_topic

# What is read at once, as blocks that begin within so many bytes; the last of them may be as long again.
PIECE_BYTES = 64 * KIB
# A log that grew line by line has small blocks.
PIECE_BLOCKS_MAX = 1024
YES, NO = ("1", "true"), ("0", "false", "")
# What a stranger's program has printed is text, whatever it looks like, and no script for the page beside it.
TEXT_HEADERS = {
    hdrs.CONTENT_TYPE: "text/plain; charset=utf-8",
    "X-Content-Type-Options": "nosniff",
    "X-Accel-Buffering": "no",
}


def routes(intake: Intake, streams: Streams) -> list[web.RouteDef]:
    # aiohttp would send the stream to HEAD too
    return [web.get("/api/v2/jobs/{id}/log", LogApi(intake, streams).log, allow_head=False)]


class LogApi:
    def __init__(self, intake: Intake, streams: Streams) -> None:
        self._intake = intake
        self._store = intake.store
        self._streams = streams

    async def log(self, request: web.Request) -> web.StreamResponse:
        """The job's log from `offset`, or its last `tail` lines; with `follow` it goes on until the job ends.

        For `Accept: text/event-stream` as events, followed unless `follow=0`: complete lines, with the offset after
        them as `id`, and at last `end` with the job's state. As text so far also a `Range` of it.
        """
        job = await self._intake.job(request)
        query = parameters(request, "follow", "offset", "tail")
        if "offset" in query and "tail" in query:
            raise invalid("offset and tail exclude each other: the first counts bytes, the second lines from the end")
        is_stream = wants_events(request)
        is_followed = _flag("follow", query.get("follow"), default=is_stream)
        if job.log_bytes == 0 and await self._store.is_log_pruned(job.id):
            raise _gone(job)
        start = await self._start(request, query, job, is_stream=is_stream)
        if start > job.log_bytes:
            return _beyond_the_end(request, job)
        if is_stream:
            return await self._send_events(request, job, start, is_followed=is_followed)
        if is_followed:
            return await self._follow(request, job, start)
        return await self._send_text(request, job, start, takes_range=not query.keys() & {"offset", "tail"})

    async def _start(self, request: web.Request, query: dict[str, str], job: Job, *, is_stream: bool) -> int:
        last_id = last_event_id(request) if is_stream else None
        if last_id is not None:
            return last_id
        if "tail" in query:
            return await self._store.log_tail(job.id, lines=number("tail", query["tail"], 0), end=job.log_bytes)
        return number("offset", query.get("offset"), 0)

    async def _send_text(self, request: web.Request, job: Job, start: int, *, takes_range: bool) -> web.StreamResponse:
        """The log so far, or the `Range` of it that is asked for."""
        part = None
        # There is no validator that If-Range could name.
        if takes_range and hdrs.IF_RANGE not in request.headers:
            part = byte_range(request.headers.get(hdrs.RANGE, ""), job.log_bytes)
        if part is not None and not part:
            return _beyond_the_end(request, job)
        response = web.StreamResponse(headers=TEXT_HEADERS | {hdrs.ACCEPT_RANGES: "bytes"})
        span = range(start, job.log_bytes) if part is None else part
        if part is not None:
            response.set_status(HTTPStatus.PARTIAL_CONTENT)
            response.headers[hdrs.CONTENT_RANGE] = f"bytes {span.start}-{span.stop - 1}/{job.log_bytes}"
        if part is not None or not offer_gzip(request, response, len(span)):
            response.content_length = len(span)
        await response.prepare(request)
        async for data in pieces(self._store, job, span.start, span.stop):
            await send(response, data, idle_s=self._intake.server.body_idle_s)
        await response.write_eof()
        return response

    async def _follow(self, request: web.Request, job: Job, start: int) -> web.StreamResponse:
        async def read(cursor: int) -> Piece:
            # Asked before the log is read: what a job writes, it writes before it ends.
            job_now = await latest_job(self._store, job)
            data = await piece(self._store, job_now, cursor)
            end = cursor + len(data)
            is_all = end >= job_now.log_bytes
            return Piece(data, end, has_more=not is_all, is_last=is_all and job_now.state.is_final)

        is_whole = False
        with self._streams.follower(request):
            response = web.StreamResponse(headers=TEXT_HEADERS)
            await response.prepare(request)
            async with aclosing(self._streams.follow(request, job_topic(job.id), start, read, name="text")) as stream:
                async for one in stream:
                    await send(response, one.data, idle_s=self._intake.server.body_idle_s)
                    is_whole = one.is_last
        if not is_whole:
            # A text has no other way to say that it goes on elsewhere: its client must not take this for the end.
            raise ConnectionAbortedError("the daemon stops, or the client has gone")
        await response.write_eof()
        return response

    async def _send_events(
        self, request: web.Request, job: Job, start: int, *, is_followed: bool
    ) -> web.StreamResponse:
        async def read(cursor: int) -> Piece:
            job_now = await latest_job(self._store, job)
            data = await piece(self._store, job_now, cursor)
            is_all = cursor + len(data) >= job_now.log_bytes
            is_last = is_all and (job_now.state.is_final or not is_followed)
            # What is still being written of a line comes with the rest of it, unless that is too long.
            size = 0 if is_last else data.rfind(b"\n") + 1
            if size == 0 and (is_last or not is_all or len(data) >= PIECE_BYTES):
                size = len(data)
            end = cursor + size
            events = frame(end, "log", data[:size]) if size else b""
            if is_last:
                events += frame(end, "end", msgspec.json.encode({"state": job_now.state}))
            return Piece(events, end, has_more=not is_all, is_last=is_last)

        name = ("log", is_followed)
        return await self._streams.send_events(request, job_topic(job.id), start, read, name=name)


async def pieces(store: Store, job: Job, start: int, end: int) -> AsyncIterator[bytes]:
    """The bytes of a job's log from `start` to `end`, which were there when the job was read."""
    while start < end:
        data = (await piece(store, job, start))[: end - start]
        start += len(data)
        yield data


async def piece(store: Store, job: Job, start: int) -> bytes:
    """What follows `start` in the log, `2 * PIECE_BYTES` at most; empty at its end.

    Raises `NotFound` where it was there when the job was read, and is no longer kept.
    """
    blocks = await store.read_log(job.id, from_offset=start, to_offset=start + PIECE_BYTES, max_blocks=PIECE_BLOCKS_MAX)
    if not blocks:
        if start != job.log_bytes:
            raise _gone(job)
        return b""
    data = b"".join(block.text.encode() for block in blocks)
    if blocks[0].offset > start or blocks[0].offset + len(data) != blocks[-1].offset + len(blocks[-1].text.encode()):
        raise _gone(job)
    return data[start - blocks[0].offset :]


def _beyond_the_end(request: web.Request, job: Job) -> web.Response:
    """What RFC 9110 §15.5.17 has for a place that is not there, or not there yet."""
    fault = invalid(f"the log has {job.log_bytes} bytes now, and what was asked for begins after them")
    response = error_response(request, fault, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
    response.headers[hdrs.CONTENT_RANGE] = f"bytes */{job.log_bytes}"
    return response


def _gone(job: Job) -> NotFound:
    return NotFound(f"the log of job {job.uuid} is no longer kept (retention.log_days)")


def _flag(name: str, text: str | None, *, default: bool) -> bool:
    if text is None:
        return default
    if text.lower() not in YES + NO:
        raise invalid(f"{name} must be 1 or 0")
    return text.lower() in YES
