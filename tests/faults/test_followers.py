"""Followers of logs and events across the ends of the daemon: no line is lost, none comes twice."""

import asyncio
import http.client
import os
import re
import signal
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

import aiohttp
import pytest

from harness.bodies import dockerfile
from harness.build_box import BuildBox
from harness.engine import PrivateEngine
from harness.event_stream import EventParser, StreamEvent, follow
from harness.registry import Registry
from harness.waiting import until

FOLLOWERS = 100
LINES = 40
# Longer than the daemon takes to gather a block, so that there are blocks to be cut between.
STEP = f"RUN for i in $(seq {LINES}); do echo line $i; sleep 0.1; done"


class Follower(threading.Thread):
    """Follows a stream in the background, as often as it is cut, up to an event of type `end`."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.url = url
        self.events: list[StreamEvent] = []
        self.start()

    def run(self) -> None:
        for event in follow(self.url):
            self.events.append(event)

    def text(self) -> str:
        return "".join(f"{event.data}\n" for event in list(self.events) if event.type == "log")

    def ended(self) -> str:
        """What it has got once the stream has come to its end, and the state that it names."""
        self.join(60)
        assert self.events[-1].type == "end", self.events[-3:]
        return str(self.events[-1].json["state"])


class TextFollower(threading.Thread):
    """Follows a log as text, and goes on at the bytes that it has whenever the transfer breaks."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.url = url
        self.data = b""
        self.start()

    def run(self) -> None:
        while not self._is_whole():
            pass

    def _is_whole(self) -> bool:
        parts = urlsplit(self.url)
        connection = http.client.HTTPConnection(parts.netloc, timeout=30)
        try:
            connection.request("GET", f"{parts.path}?follow=1&offset={len(self.data)}")
            response = connection.getresponse()
            assert response.status == 200
            while received := response.read1():
                self.data += received
        except (OSError, http.client.HTTPException):
            return False
        else:
            return response.isclosed()
        finally:
            connection.close()


def log_url(b: BuildBox, job: str) -> str:
    return f"{b.daemon.url}/api/v2/jobs/{job}/log"


@pytest.fixture
def b(engine: PrivateEngine) -> Iterator[BuildBox]:
    with BuildBox(engine, server={"drain_timeout_s": 1}) as box:
        yield box


def numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"(?m)^#\d+ line (\d+)$", text)]


@pytest.mark.parametrize("is_killed", [True, False], ids=["killed", "stopped"])
def test_followers_go_on_after_a_restart(b: BuildBox, registry: Registry, is_killed: bool) -> None:
    """Whether the daemon is killed in the middle of a build or stops: who follows the log, as events or as text, has it
    whole in the end, and nothing of it twice."""
    job = b.submit_build(f"{registry.host}/follow/{is_killed}".lower(), dockerfile(STEP))
    streamed, text = Follower(log_url(b, job)), TextFollower(log_url(b, job))
    until(lambda: len(numbers(streamed.text())) > LINES // 4, what="a quarter of the lines")
    if is_killed:
        b.daemon.kill()
    else:
        stopped = b.daemon.terminate()
        assert stopped.code == 0
        # Its drain, and the time of the last requests; nobody waits for followers to go.
        assert stopped.seconds < 1 + 5
    seen = streamed.text()
    b.daemon.start()
    b.succeeded(job)
    assert streamed.ended() == "succeeded"
    text.join(60)
    log = b.log(job)
    assert streamed.text() == log
    assert text.data.decode() == log
    assert log.startswith(seen)
    assert len(numbers(log)) > LINES
    ids = [int(event.id) for event in streamed.events[:-1]]
    assert ids == sorted(set(ids))
    b.check_healthy()


def test_events_go_on_after_a_restart(b: BuildBox, registry: Registry) -> None:
    """A follower of all events that was cut by `kill -9` has each of them once, in order."""
    seen: list[StreamEvent] = []
    is_over = threading.Event()

    def watch() -> None:
        for event in follow(f"{b.daemon.url}/api/v2/events?after=0"):
            seen.append(event)
            if is_over.is_set():
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    job = b.submit_build(f"{registry.host}/follow/events", dockerfile("RUN sleep 2"))
    until(lambda: any(event.type == "enter_phase" for event in seen), what="the build to begin")
    b.restart()
    b.succeeded(job)
    is_over.set()
    b.submit_build(f"{registry.host}/follow/last", dockerfile("RUN true"))
    watcher.join(60)
    stored = b.daemon.sqlite("select id, type from event order by id")
    assert [(int(event.id), event.type) for event in seen] == stored[: len(seen)]
    assert {"rescue", "succeed"} <= {event.type for event in seen}


def test_many_followers_of_one_noisy_job(b: BuildBox, registry: Registry) -> None:
    """Every line reaches each of them once, and the daemon's memory stays small. `make bench` has 500 of them."""
    step = "RUN sleep 2; for i in $(seq 20); do seq $((i * 100)) $((i * 100 + 99)) | sed 's|^|line |'; sleep 0.1; done"
    job = b.submit_build(f"{registry.host}/follow/many", dockerfile(step))

    async def all_texts() -> list[str]:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, headers={"Accept": "text/event-stream"}) as client:
            return await asyncio.gather(*(text(client) for _ in range(FOLLOWERS)))

    async def text(client: aiohttp.ClientSession) -> str:
        parser, lines = EventParser(), []
        async with client.get(log_url(b, job)) as response:
            async for received in response.content.iter_any():
                lines += [event.data for event in parser.feed(received) if event.type == "log"]
        return "\n".join([*lines, ""])

    texts = asyncio.run(all_texts())
    assert b.daemon.rss_bytes() < 250 * 1024 * 1024
    b.succeeded(job)
    assert set(texts) == {b.log(job)}
    assert numbers(texts[0]) == list(range(100, 2100))


def test_a_stop_is_not_held_up_by_followers(b: BuildBox) -> None:
    """Who follows what never ends is let go, with a whole answer, when the drain is over."""
    connection = http.client.HTTPConnection("127.0.0.1", b.daemon.port, timeout=30)
    connection.request("GET", "/api/v2/events")
    response = connection.getresponse()
    os.kill(b.daemon.pid, signal.SIGTERM)
    assert b"event:" not in response.read()
    assert b.daemon.wait(timeout_s=20) == 0
    connection.close()
