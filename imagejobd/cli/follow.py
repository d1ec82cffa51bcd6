"""A job's log while it is written, across restarts of the daemon: nothing is lost, nothing repeated."""

import time
from collections.abc import Callable, Iterator

from imagejobd.cli.errors import Refused, Unreachable
from imagejobd.cli.session import Session, segment

# A daemon that drains takes 90 s by default, and starts again in a few more.
AWAY_MAX_S = 600.0
RETRY_FIRST_S, RETRY_MAX_S = 0.2, 5.0
# The server says something every 15 s, or so; a follower of an older one hears nothing while a step is silent.
SILENCE_MAX_S = 24 * 3600.0
EVENT_STREAM = "text/event-stream"
_EVENT_MAX_BYTES = 32 * 1024 * 1024


class LogFollower:
    """Reads the log of one job from `offset` (bytes) on, until the job has ended; `offset` is how far it has come.

    `on_outage` is called when the daemon goes away, with why, and with None when it is back.
    """

    def __init__(
        self,
        session: Session,
        job: str,
        *,
        offset: int = 0,
        on_outage: Callable[[str | None], None] = lambda why: None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._session = session
        self._job = segment(job)
        self._on_outage = on_outage
        self._sleep = sleep
        self._away_s = 0.0
        self._was_there = False
        self.offset = offset

    def texts(self) -> Iterator[bytes]:
        """Pieces of the log as they come, to the end. Raises `Refused`, and `Unreachable` once the daemon is away for
        long, or if it was never there."""
        has_ended = False
        while not has_ended:
            offset = self.offset
            try:
                yield from self._connection()
                has_ended = self._session.job(self._job).has_ended
                if not has_ended and offset == self.offset:
                    self._sleep(RETRY_FIRST_S)
            except (Unreachable, Refused) as error:
                is_final = isinstance(error, Refused) and error.status < 500
                if is_final or not self._was_there or self._away_s > AWAY_MAX_S:
                    raise
                if not self._away_s:
                    self._on_outage(error.message)
                self._sleep(pause_s := min(max(self._away_s, RETRY_FIRST_S), RETRY_MAX_S))
                self._away_s += pause_s

    def _has_answered(self) -> None:
        self._was_there = True
        if self._away_s:
            self._away_s = 0.0
            self._on_outage(None)

    def _connection(self) -> Iterator[bytes]:
        """What one connection brings that is new."""
        query = {"follow": "1", "offset": str(self.offset)} if self.offset else {"follow": "1"}
        headers = {"Accept": f"{EVENT_STREAM}, text/plain;q=0.5"}
        if self.offset:
            headers["Last-Event-ID"] = str(self.offset)
        path = f"/jobs/{self._job}/log"
        with self._session.api.stream(path, query=query, headers=headers, timeout_s=SILENCE_MAX_S) as stream:
            self._has_answered()
            if stream.content_type == EVENT_STREAM:
                yield from self._events(stream.blocks())
                return
            # Daemons before 0.2 know no offset: what is there already is passed over.
            passed = 0
            for block in stream.blocks():
                new = block[max(0, self.offset - passed) :]
                passed += len(block)
                self.offset = max(self.offset, passed)
                if new:
                    yield new

    def _events(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        for fields in _events(blocks):
            if fields.get(b"event") == b"end":
                return
            end = fields.get(b"id", b"")
            if fields.get(b"event") != b"log" or not end.isdigit():
                continue
            text = fields.get(b"data", b"")
            length = int(end) - self.offset
            if length <= 0:
                continue
            self.offset = int(end)
            # Lines are whole but for the log's last: that it has no end, the offset says.
            yield text if len(text) == length else text + b"\n"


def _events(blocks: Iterator[bytes]) -> Iterator[dict[bytes, bytes]]:
    """Server-sent events, as their fields; `data` has the lines of all its fields. One that is not finished is none."""
    rest, fields = b"", dict[bytes, bytes]()
    for block in blocks:
        *lines, rest = (rest + block).split(b"\n")
        if len(rest) > _EVENT_MAX_BYTES:
            raise Unreachable("an event of the log is too long")
        for line in lines:
            if not line:
                if fields:
                    yield fields
                fields = {}
                continue
            name, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if name == b"data" and name in fields:
                fields[name] += b"\n" + value
            elif name:
                fields[name] = value
