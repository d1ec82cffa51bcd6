"""Server-sent events as a client reads them (WHATWG HTML, §9.2.6): what a browser makes of the bytes, and a stream that
is taken up again where it was cut."""

import http.client
import json
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from harness.waiting import END_TIMEOUT_S

READ_TIMEOUT_S = 30.0
RECONNECT_S = 0.05
CHUNK_BYTES = 65536


class StreamEvent(NamedTuple):
    """One event; `id` is the last that the stream has named."""

    id: str
    type: str
    data: str

    @property
    def json(self) -> Any:
        return json.loads(self.data)


class EventParser:
    """Takes a stream in pieces as they arrive. Comments are counted."""

    def __init__(self) -> None:
        self.comments = 0
        self._rest = b""
        self._id = ""
        self._type = ""
        self._data: list[str] = []

    def feed(self, received: bytes) -> Iterator[StreamEvent]:
        """The events that are complete now."""
        # A CR at the end may be half of a line break.
        *lines, self._rest = re.split(rb"\r\n|\r(?!\Z)|\n", self._rest + received)
        for line in lines:
            event = self._take(line.decode())
            if event is not None:
                yield event

    def _take(self, line: str) -> StreamEvent | None:
        if not line:
            event = StreamEvent(self._id, self._type or "message", "\n".join(self._data)) if self._data else None
            self._type, self._data = "", []
            return event
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "":
            self.comments += 1
        elif name == "data":
            self._data.append(value)
        elif name == "event":
            self._type = value
        elif name == "id":
            self._id = value
        return None


def follow(url: str, *, timeout_s: float = END_TIMEOUT_S) -> Iterator[StreamEvent]:
    """The events of a stream up to one of type `end`, as often as it is cut: each time on from the last event's id.

    Raises `TimeoutError` when it has not come to its end by then, and `AssertionError` when it is refused.
    """
    deadline, last_id = time.monotonic() + timeout_s, ""
    while time.monotonic() < deadline:
        for event in _events(url, {"Last-Event-ID": last_id} if last_id else {}):
            last_id = event.id
            yield event
            if event.type == "end":
                return
        time.sleep(RECONNECT_S)
    raise TimeoutError(f"{url} did not come to its end in {timeout_s:g} s")


def _events(url: str, headers: Mapping[str, str]) -> Iterator[StreamEvent]:
    """Those of one connection, until it ends or breaks; none where nobody listens."""
    parts, parser = urlsplit(url), EventParser()
    connection = http.client.HTTPConnection(parts.netloc, timeout=READ_TIMEOUT_S)
    try:
        connection.request("GET", f"{parts.path}?{parts.query}", headers={"Accept": "text/event-stream", **headers})
        response = connection.getresponse()
        assert response.status == 200, response.read()
        while received := response.read1(CHUNK_BYTES):
            yield from parser.feed(received)
    except (ConnectionError, http.client.HTTPException):
        pass
    finally:
        connection.close()
