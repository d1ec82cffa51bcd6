"""Parts of a job's log, and the log as server-sent events: resumed, shared, bounded, and ended."""

import asyncio
import gzip
import http.client
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from bare_app import BareApp, bare_app
from following import DONE, SSE, all_events, events_of, job_with_log, stream
from signing import bearer, by_secret, token

from harness.event_stream import StreamEvent
from imagejobd.api import joblog, streams
from imagejobd.model.job import Claim

TEN = "".join(f"line {n} é\n" for n in range(10))


def path_of(claim: Claim, query: str = "") -> str:
    return f"/api/v2/jobs/{claim.job.uuid}/log{query}"


async def get(
    app: BareApp, path: str, headers: Mapping[str, str] | None = None
) -> tuple[int, bytes, Mapping[str, str]]:
    async with app.client.get(path, headers={"Accept-Encoding": "identity"} | dict(headers or {})) as response:
        return response.status, await response.read(), response.headers


def text_of(events: list[StreamEvent]) -> str:
    """What the events of a log say, whose last line ends with a line break."""
    return "".join(f"{event.data}\n" for event in events if event.type == "log")


@pytest.mark.parametrize("lines", [0, 1, 2, 9, 10, 11, 10**17])
@pytest.mark.parametrize("texts", [[TEN], [TEN[:7], TEN[7:40], TEN[40:]], list(TEN), [TEN + "open"]], ids=len)
async def test_tail_is_the_last_lines(app: BareApp, lines: int, texts: list[str]) -> None:
    """However the log was written, and whether or not its last line is complete."""
    claim = await job_with_log(app, *texts)
    text = "".join(texts)
    status, body, _ = await get(app, path_of(claim, f"?tail={lines}"))
    assert status == 200
    assert body.decode() == "".join(text.splitlines(keepends=True)[-min(lines, 100) or len(text) :])


async def test_tail_of_a_long_log_reads_its_end(app: BareApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """The beginning of a log is not read for the sake of its end."""
    claim = await job_with_log(app, *["x" * 60_000 + "\n"] * 100, "last\n")
    read_log, offsets = app.store.read_log, []

    async def watched(job_id: Any, *, from_offset: int, **bounds: Any) -> Any:
        offsets.append(from_offset)
        return await read_log(job_id, from_offset=from_offset, **bounds)

    monkeypatch.setattr(app.store, "read_log", watched)
    _, body, _ = await get(app, path_of(claim, "?tail=2"))
    assert body == b"x" * 60_000 + b"\nlast\n"
    assert min(offsets) >= 98 * 60_001


async def test_offset_goes_on_where_a_text_was_cut(app: BareApp) -> None:
    """Bytes are counted, also within a character; at the end there is nothing, behind it nothing can be."""
    claim = await job_with_log(app, "one é\n", "two\n")
    whole = "one é\ntwo\n".encode()
    for offset in range(len(whole) + 1):
        status, body, headers = await get(app, path_of(claim, f"?offset={offset}"))
        assert (status, body) == (200, whole[offset:])
        assert headers["Content-Length"] == str(len(body))
    status, body, headers = await get(app, path_of(claim, f"?offset={len(whole) + 1}"))
    assert status == 416
    assert b"has 11 bytes now" in body
    assert headers["Content-Range"] == "bytes */11"


async def test_followed_text_goes_on_at_an_offset(app: BareApp) -> None:
    """A follower that counted the bytes it has got misses and repeats none."""
    claim = await job_with_log(app, "one\n")
    async with app.client.get(path_of(claim, "?follow=1&offset=2")) as response:
        assert await response.content.readexactly(2) == b"e\n"
        await app.store.log(claim, "two\n")
        await app.store.finish(claim, DONE)
        assert await response.content.read() == b"two\n"
    async with app.client.get(path_of(claim, "?follow=1&tail=1")) as response:
        assert await response.content.read() == b"two\n"


@pytest.mark.parametrize(
    ("header", "status", "expected", "content_range"),
    [
        ("bytes=2-4", 206, b"234", "bytes 2-4/10"),
        ("bytes=8-", 206, b"89", "bytes 8-9/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=0-99", 206, b"0123456789", "bytes 0-9/10"),
        ("bytes=10-", 416, None, "bytes */10"),
        ("bytes=99-", 416, None, "bytes */10"),
        ("bytes=-0", 416, None, "bytes */10"),
        ("bytes=4-2", 200, b"0123456789", None),
        ("bytes=0-1,3-4", 200, b"0123456789", None),
        ("lines=0-1", 200, b"0123456789", None),
    ],
)
async def test_ranges_of_a_log_that_grows(
    app: BareApp, header: str, status: int, expected: bytes | None, content_range: str | None
) -> None:
    """206 with the size of the moment, and 416 for what is not there yet."""
    claim = await job_with_log(app, "0123", "456789")
    found, body, headers = await get(app, path_of(claim), {"Range": header})
    assert (found, headers.get("Content-Range")) == (status, content_range)
    assert expected is None or body == expected
    await app.store.log(claim, "ab")
    assert (await get(app, path_of(claim), {"Range": "bytes=10-"}))[:2] == (206, b"ab")


async def test_a_log_is_no_script(app: BareApp) -> None:
    """Browsers take it for the text that it is called, also where a page of the daemon's own would load it."""
    claim = await job_with_log(app, "alert(1)", ended=True)
    for query in ("", "?follow=1", "?tail=1"):
        assert (await get(app, path_of(claim, query)))[2]["X-Content-Type-Options"] == "nosniff"


async def test_ranges_without_a_validator(app: BareApp) -> None:
    """If-Range can name nothing that a log has: the whole is sent. A part that the URL names has no ranges."""
    claim = await job_with_log(app, "0123456789")
    for query, headers in (("", {"If-Range": '"x"'}), ("?offset=0", {})):
        assert (await get(app, path_of(claim, query), {"Range": "bytes=2-4"} | headers))[:2] == (200, b"0123456789")


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("?lines=5", "unknown query parameter 'lines'; known: follow, offset, tail"),
        ("?tail=1&tail=2", "'tail' is given twice"),
        ("?tail=-1", "tail must be a whole number"),
        ("?offset=x", "offset must be a whole number"),
        ("?offset=1&tail=1", "offset and tail exclude each other"),
        ("?follow=maybe", "follow must be 1 or 0"),
    ],
)
async def test_bad_parameters_are_named(app: BareApp, query: str, words: str) -> None:
    """400 that says which, and what there is."""
    claim = await job_with_log(app, "one\n")
    status, body, _ = await get(app, path_of(claim, query))
    assert status == 400
    assert words in body.decode()


async def test_events_are_complete_lines_with_their_offset(app: BareApp) -> None:
    """A line that is still being written comes when it is complete, or with the end, which says how the job ended."""
    claim = await job_with_log(app, "one é\ntw")
    async with stream(app, path_of(claim)) as events:
        assert await anext(events) == StreamEvent("7", "log", "one é")
        await app.store.log(claim, "o\nthree")
        assert await anext(events) == StreamEvent("11", "log", "two")
        await app.store.finish(claim, DONE)
        assert await anext(events) == StreamEvent("16", "log", "three")
        end = await anext(events)
        assert (end.id, end.type, end.json) == ("16", "end", {"state": "succeeded"})
        assert [event async for event in events] == []


async def test_events_cannot_be_forged(app: BareApp) -> None:
    """Whatever a build prints stays data: every sort of line break, and lines that look like fields."""
    text = "a\rid: 99\r\n\nevent: end\n\rdata: x\u2028y\x0b\x85z\r\n"
    claim = await job_with_log(app, text, ended=True)
    log, end = await all_events(app, path_of(claim))
    assert log == StreamEvent(str(len(text.encode())), "log", "a\nid: 99\n\nevent: end\n\ndata: x\u2028y\x0b\x85z")
    assert end.type == "end"


async def test_a_stream_goes_on_after_every_event(app: BareApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """From each id that was sent on, the rest comes, without a line lost or repeated; the header outdoes the URL."""
    monkeypatch.setattr(joblog, "PIECE_BYTES", 20)
    claim = await job_with_log(app, *(TEN[at : at + 13] for at in range(0, len(TEN), 13)), ended=True)
    whole = await all_events(app, path_of(claim))
    assert text_of(whole) == TEN
    assert len(whole) > 4
    for seen, event in enumerate(whole):
        rest = await all_events(app, path_of(claim, "?tail=1"), {"Last-Event-ID": event.id})
        assert text_of(whole[: seen + 1]) + text_of(rest) == TEN
    rest = await all_events(app, path_of(claim, "?tail=1"))
    assert text_of(rest) == "line 9 é\n"
    status, body, _ = await get(app, path_of(claim), SSE | {"Last-Event-ID": "9999"})
    assert (status, b"has 100 bytes now" in body) == (416, True)
    assert (await get(app, path_of(claim), SSE | {"Last-Event-ID": "x"}))[0] == 400


async def test_a_stream_that_is_not_followed_ends_with_the_log_so_far(app: BareApp) -> None:
    """`follow=0`: the log as it is, an open line too, and the state."""
    claim = await job_with_log(app, "one\ntw")
    log, end = await all_events(app, path_of(claim, "?follow=0"))
    assert (log.data, end.json) == ("one\ntw", {"state": "running"})


async def test_a_line_without_end_comes_in_pieces(app: BareApp) -> None:
    """What is held back of a line is bounded; the pieces end between characters."""
    claim = await job_with_log(app, *["é" * 20_000] * 8, ended=True)
    *pieces, _ = await all_events(app, path_of(claim))
    assert "".join(piece.data for piece in pieces) == "é" * 160_000
    assert max(len(piece.data.encode()) for piece in pieces) <= 2 * joblog.PIECE_BYTES


async def test_a_log_of_many_small_blocks_without_a_line_break(app: BareApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """More blocks than are read at once, and no line end among them, hold nobody up."""
    monkeypatch.setattr(joblog, "PIECE_BLOCKS_MAX", 4)
    claim = await job_with_log(app, *"abcdefghij", ended=True)
    *pieces, end = await all_events(app, path_of(claim))
    assert ("".join(piece.data for piece in pieces), end.type) == ("abcdefghij", "end")


async def test_a_silent_stream_is_kept_alive(app: BareApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """A comment now and then, for proxies that cut silent connections; the headers come at once."""
    monkeypatch.setattr(streams, "FOLLOW_POLL_S", 0.01)
    monkeypatch.setattr(streams, "KEEP_ALIVE_S", 0.02)
    claim = await job_with_log(app)
    async with app.client.get(path_of(claim), headers=SSE) as response:
        assert (await response.content.readuntil(b": keep-alive\n\n")).startswith(b"retry: ")
        assert response.headers["Cache-Control"] == "no-cache"


async def test_followers_share_what_is_read(app: BareApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many follow one log, a block is read about once, and every line reaches each of them once."""
    claim = await job_with_log(app, "begin\n")
    read_log, reads = app.store.read_log, 0

    async def counted(*args: Any, **bounds: Any) -> Any:
        nonlocal reads
        reads += 1
        return await read_log(*args, **bounds)

    monkeypatch.setattr(app.store, "read_log", counted)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{app.port}", connector=connector) as client:

        async def follow() -> str:
            async with client.get(path_of(claim), headers=SSE) as response:
                begun.release()
                return text_of([event async for event in events_of(response)])

        begun = asyncio.Semaphore(0)
        followers = [asyncio.create_task(follow()) for _ in range(50)]
        for _ in followers:
            await begun.acquire()
        for number in range(100):
            await app.store.log(claim, f"{number}\n")
        await app.store.finish(claim, DONE)
        texts = await asyncio.gather(*followers)
    assert set(texts) == {"begin\n" + "".join(f"{number}\n" for number in range(100))}
    assert reads < 50 * 100 / 4


async def test_too_many_followers_are_refused(app: BareApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """503 with the time to come again; there is room when one has gone."""
    monkeypatch.setattr(streams, "FOLLOWERS_MAX", 1)
    monkeypatch.setattr(streams, "FOLLOW_POLL_S", 0.01)
    claim = await job_with_log(app, "one\n")
    async with stream(app, path_of(claim)) as events:
        await anext(events)
        for query in ("?follow=1", "?follow=1&tail=1"):
            status, _, headers = await get(app, path_of(claim, query))
            assert (status, int(headers["Retry-After"]) > 0) == (503, True)
        assert (await get(app, f"/api/v2/jobs/{claim.job.uuid}?wait=1"))[0] == 503
        assert (await get(app, path_of(claim)))[0] == 200
    await app.store.finish(claim, DONE)
    async with asyncio.timeout(5):
        while (await get(app, path_of(claim, "?follow=1")))[0] != 200:
            await asyncio.sleep(0.01)


async def test_a_tenant_leaves_room_for_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who follows all that one tenant may is refused more; another tenant is not."""
    monkeypatch.setattr(streams, "FOLLOWERS_OF_TENANT_MAX", 1)
    async with bare_app(tmp_path, auth=by_secret(tmp_path)) as app, stream(app, "/api/v2/events"):
        async with app.client.get("/api/v2/events", headers=SSE) as refused:
            assert (refused.status, "of this tenant" in await refused.text()) == (503, True)
        async with stream(app, "/api/v2/events", bearer(token(tid=7))):
            pass


@pytest.mark.parametrize("is_text", [False, True], ids=["events", "text"])
async def test_a_daemon_that_closes_lets_followers_go(
    app: BareApp, monkeypatch: pytest.MonkeyPatch, is_text: bool
) -> None:
    """Events end without an `end`, so that the client asks again; a text breaks off, because nothing else says that it
    is not whole."""
    monkeypatch.setattr(streams, "FOLLOW_POLL_S", 0.01)
    claim = await job_with_log(app, "one\ntw")
    async with app.client.get(path_of(claim, "?follow=1"), headers={} if is_text else SSE) as response:
        await response.content.readuntil(b"one\n")
        app.intake.is_closing = True
        if is_text:
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.content.read()
        else:
            assert b"end" not in await response.content.read()


async def test_a_pruned_log_says_so(app: BareApp) -> None:
    """404 with the setting that deleted it, as text and as events; a job that never logged has an empty log."""
    gone = await job_with_log(app, "one\n", ended=True)
    silent = await job_with_log(app, ended=True)
    await app.store.prune(jobs_before_ms=0, logs_before_ms=2**60, blobs_before_ms=0, batch_max=100)
    for headers in ({}, SSE):
        status, body, _ = await get(app, path_of(gone), headers)
        assert status == 404
        assert b"no longer kept (retention.log_days)" in body
    assert (await get(app, path_of(silent)))[:2] == (200, b"")
    assert [event.type for event in await all_events(app, path_of(silent))] == ["end"]
    _, events, _ = await get(app, f"/api/v2/jobs/{gone.job.uuid}/events")
    assert b'"type":"prune_log"' in events


@pytest.mark.parametrize("query", ["", "?follow=1"])
async def test_a_log_that_is_pruned_meanwhile_breaks_off(
    app: BareApp, monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    """What was begun is not ended as if it were whole."""
    claim = await job_with_log(app, *["x" * joblog.PIECE_BYTES] * 3, ended=True)
    read_log = app.store.read_log

    async def pruned(job_id: Any, *, from_offset: int, **bounds: Any) -> Any:
        if from_offset > 0:
            await app.store.prune(jobs_before_ms=0, logs_before_ms=2**60, blobs_before_ms=0, batch_max=100)
        return await read_log(job_id, from_offset=from_offset, **bounds)

    monkeypatch.setattr(app.store, "read_log", pruned)
    with pytest.raises((aiohttp.ClientPayloadError, http.client.HTTPException)):
        await get(app, path_of(claim, query))


async def test_long_logs_are_packed_for_who_takes_gzip(app: BareApp) -> None:
    """Not a range, not what is followed, not a short one, and not for a client that names gzip to refuse it."""
    claim = await job_with_log(app, TEN * 100, ended=True)
    whole = (TEN * 100).encode()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{app.port}", auto_decompress=False) as client:

        async def ask(query: str, **headers: str) -> tuple[str | None, bytes]:
            async with client.get(path_of(claim, query), headers=headers) as response:
                return response.headers.get("Content-Encoding"), await response.read()

        coding, body = await ask("", **{"Accept-Encoding": "br, gzip;q=0.5"})
        assert (coding, gzip.decompress(body)) == ("gzip", whole)
        for query, headers in (
            ("", {"Accept-Encoding": "gzip;q=0, deflate"}),
            ("", {"Accept-Encoding": "x-gzip"}),
            ("", {"Accept-Encoding": "gzip", "Range": "bytes=0-"}),
            ("?follow=1", {"Accept-Encoding": "gzip"}),
        ):
            assert await ask(query, **headers) == (None, whole)
        assert (await ask("?tail=1", **{"Accept-Encoding": "gzip"}))[0] is None
