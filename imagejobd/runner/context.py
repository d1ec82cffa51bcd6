"""Writing behind: what changes often reaches the store a little later, and many changes in one write.

It decides when to write and keeps writes in order; what is written, and what has not been yet, its owner knows.

The log of one running job: gathered into blocks, redacted, bounded, cut visibly.

A build may print hundreds of thousands of lines, so lines are not rows: text goes to the store in blocks, when
`FULL_BYTES` have come together or `FLUSH_S` have passed. Past the job's bound the middle is dropped and the end
kept, because the end of a log is where it says why. An attempt that finds the bound reached adds only its own end.

What a kind works with while an attempt goes on: `model.work.Work` on top of the store.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from imagejobd.model.errors import ErrorCode, Fault, Permanent, Temporary
from imagejobd.model.job import Claim, Job
from imagejobd.model.secrets import Redactor, Secret
from imagejobd.store.protocol import Store


class Debouncer:
    """Calls `write` at most once every `delay_s`, never twice at a time. `write` does nothing when nothing is new."""

    def __init__(self, write: Callable[[], Awaitable[None]], *, delay_s: float) -> None:
        self._write = write
        self._delay_s = delay_s
        self._timer: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()

    def soon(self) -> None:
        """Write when the delay has passed; asking again before then changes nothing."""
        if self._timer is None:
            self._timer = asyncio.create_task(self._later())

    async def now(self) -> None:
        """Write at once, after the write that is under way. Raises what `write` raises."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        async with self._turn:
            await self._write()

    async def _later(self) -> None:
        await asyncio.sleep(self._delay_s)
        self._timer = None
        # Nobody waits for this one. Its owner still has what was not written, and `now` meets the same fault.
        with contextlib.suppress(Fault):
            async with self._turn:
                await self._write()


BLOCK_BYTES = 64 * 1024
# Room for one more line: what spills over would be a block of its own.
FULL_BYTES = BLOCK_BYTES - 4096
FLUSH_S = 0.25
TAIL_BYTES = 64 * 1024
# A character is at most four bytes of UTF-8: a piece of so many fits into a block, and into the tail.
PIECE_CHARS = BLOCK_BYTES // 4


class JobLog:
    """Append-only text of one attempt. `append` waits while the store is behind: that is the back-pressure."""

    def __init__(
        self,
        write: Callable[[str], Awaitable[None]],
        redact: Callable[[str], str],
        *,
        max_bytes: int,
        stored_bytes: int = 0,
    ) -> None:
        self._write = write
        self._redact = redact
        self._room_bytes = max(0, max_bytes - TAIL_BYTES - stored_bytes)
        self._pending: deque[str] = deque()
        self._pending_bytes = 0
        self._behind = Debouncer(self._flush, delay_s=FLUSH_S)
        self._tail: deque[str] = deque()
        self._tail_bytes = 0
        self._cut_bytes = 0
        self._is_line_open = False

    async def append(self, text: str) -> None:
        """Add text; a line may arrive in pieces. Raises what the store raises."""
        if text:
            self._is_line_open = not text.endswith("\n")
        for piece in _pieces(self._redact(text)):
            self._add(piece)
        if self._pending_bytes >= FULL_BYTES:
            await self._behind.now()
        elif self._pending:
            self._behind.soon()

    async def append_line(self, text: str) -> None:
        """Add text that begins on a line of its own, as `append` does."""
        await self.append(f"\n{text}" if text and self._is_line_open else text)

    def _add(self, piece: str) -> None:
        size = _size_bytes(piece)
        if size > self._room_bytes or self._cut_bytes:
            self._keep_tail(piece, size)
            return
        self._room_bytes -= size
        self._pending.append(piece)
        self._pending_bytes += size

    async def close(self) -> None:
        """Bring the rest to the store, and where the log was cut what was dropped and the kept end."""
        if self._cut_bytes:
            dropped = self._cut_bytes - self._tail_bytes
            mark = f"\n[imagejobd: {dropped} bytes of log dropped here; the bound is limits.log_max_bytes]\n"
            self._pending += [mark if dropped else "", *self._tail]
            self._cut_bytes = 0
            self._tail.clear()
            self._tail_bytes = 0
        await self._behind.now()

    async def _flush(self) -> None:
        while self._pending:
            # Taken before the write: a caller that is cancelled meanwhile must not write the same text again.
            block = self._take_block()
            try:
                await self._write(block)
            except Fault:
                self._pending.appendleft(block)
                self._pending_bytes += _size_bytes(block)
                raise

    def _take_block(self) -> str:
        """The first pieces that wait, as many as fit into a block; at least one."""
        pieces: list[str] = []
        block_bytes = 0
        while self._pending and (not pieces or block_bytes + _size_bytes(self._pending[0]) <= BLOCK_BYTES):
            piece = self._pending.popleft()
            pieces.append(piece)
            block_bytes += _size_bytes(piece)
        self._pending_bytes = max(0, self._pending_bytes - block_bytes)
        return "".join(pieces)

    def _keep_tail(self, piece: str, size: int) -> None:
        self._cut_bytes += size
        self._tail.append(piece)
        self._tail_bytes += size
        while self._tail_bytes > TAIL_BYTES:
            self._tail_bytes -= _size_bytes(self._tail.popleft())


def _pieces(text: str) -> Iterator[str]:
    return (text[start : start + PIECE_CHARS] for start in range(0, len(text), PIECE_CHARS))


def _size_bytes(text: str) -> int:
    return len(text.encode(errors="replace"))


PROGRESS_EVERY_S = 0.25
# What an attempt says, and for how long, that may be kept back.
UNSAID_MAX_CHARS = 16 * 1024
UNSAID_MAX_S = 10.0
# Time that does not count prolongs a limit bit by bit: this is the least bit.
LIMIT_LOOK_MIN_S = 1.0
# Programs echo a secret of several lines line by line; shorter lines of it are too common to mask.
SECRET_LINE_MIN_CHARS = 8


class AttemptContext:
    """One claimed job's log, phases, progress and checkpoint. `end_log` before the ending is written.

    An attempt after a temporary fault keeps its first words back, for so long as it may turn out to fail as the one
    before it did: then they are not said again.

    `downtime_s` is how long the Docker Engine has been away so far, in seconds since any moment; it grows while the
    engine is away.
    """

    def __init__(
        self, store: Store, claim: Claim, *, log_max_bytes: int, downtime_s: Callable[[], float] = lambda: 0.0
    ) -> None:
        self._store = store
        self._claim = claim
        self._checkpoint: dict[str, Any] = dict(claim.job.checkpoint)
        self._progress: dict[str, Any] = {}
        self._progress_is_new = False
        self._progressed_at = 0.0
        self._downtime_s = downtime_s
        self._progress_behind = Debouncer(self._write_progress, delay_s=PROGRESS_EVERY_S)
        self._secrets = set(claim.secrets.values())
        self._redactor: Redactor | None = None
        self._joblog = JobLog(self._write_log, self.redact, max_bytes=log_max_bytes, stored_bytes=claim.job.log_bytes)
        # What an attempt says that may turn out to repeat the one before it; None once it is in the log.
        self._unsaid: str | None = "" if claim.job.faults else None
        self._unsaid_timer: asyncio.Task[None] | None = None
        self.phase_name: str | None = None
        self.faults = claim.job.faults

    @property
    def job(self) -> Job:
        return self._claim.job

    @property
    def secrets(self) -> Mapping[str, Secret]:
        return self._claim.secrets

    def add_secret(self, secret: Secret) -> None:
        if secret not in self._secrets:
            self._secrets.add(secret)
            self._redactor = None

    def redact(self, text: str) -> str:
        """`text` without the job's own secrets and those that were added."""
        if self._redactor is None:
            # Not before it is needed: a job may add hundreds of words, one by one.
            self._redactor = _redactor(self._secrets)
        return self._redactor(text)

    @property
    def checkpoint(self) -> Mapping[str, Any]:
        return self._checkpoint

    @asynccontextmanager
    async def phase(self, name: str, *, timeout_s: float, waits_for: str | None = None) -> AsyncIterator[None]:
        self.faults = await self._store.enter_phase(self._claim, name)
        self.phase_name = name
        clock = asyncio.get_running_loop().time
        self._progressed_at = clock()
        started_at = clock() - self._downtime_s()

        def counted_s() -> float:
            if waits_for is not None:
                return clock() - self._progressed_at
            return clock() - self._downtime_s() - started_at

        async with limited(timeout_s, counted_s, _too_long(name, timeout_s, waits_for)):
            yield

    async def save(self, *, blobs: Collection[str] = (), **values: Any) -> None:
        self._checkpoint.update(values)
        await self._store.checkpoint(self._claim, values, blobs=blobs)

    async def log(self, text: str) -> None:
        if self._unsaid is None:
            await self._joblog.append(text)
            return
        self._unsaid += text
        if self._unsaid_timer is None:
            self._unsaid_timer = asyncio.create_task(self._say_later())
        if len(self._unsaid) > UNSAID_MAX_CHARS:
            await self._say()

    async def _say_later(self) -> None:
        await asyncio.sleep(UNSAID_MAX_S)
        with contextlib.suppress(Fault):
            await self._say()

    async def _say(self) -> None:
        """Bring to the log what was kept back, and nothing is kept back any more."""
        unsaid, self._unsaid = self._unsaid, None
        if unsaid:
            await self._joblog.append(unsaid)

    async def note(self, event: str, **data: Any) -> None:
        await self._store.note(self._claim, event, data)

    def progress(self, **values: Any) -> None:
        if any(name not in self._progress or self._progress[name] != value for name, value in values.items()):
            self._progressed_at = asyncio.get_running_loop().time()
        self._progress.update(values)
        self._progress_is_new = True
        self._progress_behind.soon()

    async def end_log(self, text: str | None) -> None:
        """Bring the last of log and progress to the store, with `text` as the last words.

        None drops what was kept back, because it repeats the attempt before.
        """
        if self._unsaid_timer is not None:
            self._unsaid_timer.cancel()
        if text is not None:
            if self._unsaid is not None and self.job.faults > 1:
                await self._joblog.append_line(f"(this happened {self.job.faults} times)\n")
            await self._say()
            await self._joblog.append_line(text)
        await self._progress_behind.now()
        await self._joblog.close()

    async def _write_log(self, text: str) -> None:
        await self._store.log(self._claim, text)

    async def _write_progress(self) -> None:
        if self._progress_is_new:
            self._progress_is_new = False
            await self._store.progress(self._claim, self._progress)


@asynccontextmanager
async def limited(limit_s: float, counted_s: Callable[[], float], fault: Fault) -> AsyncIterator[None]:
    """Cancel the block, and raise `fault`, when `counted_s`, which may stand still, is at `limit_s`."""
    limit = asyncio.timeout(None)
    try:
        async with limit:
            with _watched(limit, limit_s, counted_s):
                yield
    except TimeoutError:
        if not limit.expired():
            raise
        raise fault from None


@contextmanager
def _watched(limit: asyncio.Timeout, limit_s: float, counted_s: Callable[[], float]) -> Iterator[None]:
    """Let `limit` expire when `counted_s`, which may stand still or go back but never overtakes the clock, is at
    `limit_s`."""
    loop = asyncio.get_running_loop()
    handle: asyncio.TimerHandle | None = None

    def look(rest_s: float) -> None:
        nonlocal handle
        handle = loop.call_later(rest_s, again)

    def again() -> None:
        rest_s = limit_s - counted_s()
        if rest_s > 0:
            look(max(rest_s, LIMIT_LOOK_MIN_S))
        else:
            limit.reschedule(loop.time())

    look(limit_s)
    try:
        yield
    finally:
        if handle is not None:
            handle.cancel()


def _too_long(name: str, timeout_s: float, waits_for: str | None) -> Fault:
    if waits_for is None:
        return Permanent(ErrorCode.TIMEOUT, f"{name} took longer than its limit of {timeout_s:g} s and was stopped")
    return Temporary(
        ErrorCode.TIMEOUT, f"{name} was stopped: it has waited for {waits_for} for {timeout_s:g} s without progress"
    )


def _redactor(secrets: Collection[Secret]) -> Redactor:
    return Redactor({*secrets, *(line for secret in secrets for line in _lines(secret))})


def _lines(secret: Secret) -> Iterator[Secret]:
    return (Secret(line) for line in secret.reveal().splitlines() if len(line) >= SECRET_LINE_MIN_CHARS)
