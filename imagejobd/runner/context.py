"""What a kind works with during an attempt: the job's log, phases, progress and checkpoint, on top of the store.

What changes often reaches the store a little later and many changes in one write, or a build that prints hundreds of
thousands of lines would be as many transactions.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from imagejobd.model.errors import ErrorCode, Fault, Permanent, Temporary
from imagejobd.model.job import Claim, Job, Push
from imagejobd.model.secrets import Redactor, Secret
from imagejobd.model.traffic import Traffic
from imagejobd.store.protocol import Store

BLOCK_BYTES = 64 * 1024
# Room for one more line: what spills over would be a block of its own.
FULL_BYTES = BLOCK_BYTES - 4096
FLUSH_S = 0.25
TAIL_BYTES = 64 * 1024
# A character is at most four bytes of UTF-8: a piece of so many fits into a block, and into the tail.
PIECE_CHARS = BLOCK_BYTES // 4
PROGRESS_EVERY_S = 0.25
# How much of an attempt's log may be held back, and for how long.
HELD_BACK_MAX_CHARS = 16 * 1024
HELD_BACK_MAX_S = 10.0
# Time that does not count prolongs a limit bit by bit: this is the least bit.
LIMIT_LOOK_MIN_S = 1.0
# Programs echo a secret of several lines line by line; shorter lines of it are too common to mask.
SECRET_LINE_MIN_CHARS = 8


class AttemptContext:
    """The `JobContext` of one claimed job. Call `end_log` before the ending is written.

    An attempt after a temporary fault holds its first lines of log back, for as long as it may turn out to fail as the
    one before it did: then they are not repeated.

    `downtime_s` is how long the Docker Engine has been away so far, in seconds since any moment; it grows while the
    engine is away. The bytes of pushes are added to `traffic` when they have ended.
    """

    def __init__(
        self,
        store: Store,
        claim: Claim,
        *,
        log_max_bytes: int,
        downtime_s: Callable[[], float] = lambda: 0.0,
        traffic: Traffic | None = None,
    ) -> None:
        self._store = store
        self._traffic = traffic or Traffic()
        # Of each push, by image and target, the tries whose bytes are in `traffic` or were before this attempt.
        self._counted_tries: dict[tuple[int, int], int] = {}
        self._claim = claim
        self._downtime_s = downtime_s
        self._checkpoint: dict[str, Any] = dict(claim.job.checkpoint)
        self._progress: dict[str, Any] = {}
        self._progress_is_new = False
        self._progressed_at = 0.0
        self._progress_writer = Debouncer(self._write_progress, delay_s=PROGRESS_EVERY_S)
        self._secrets = set(claim.secrets.values())
        self._redactor: Redactor | None = None
        write_log = partial(store.log, claim)
        self._joblog = JobLog(
            write_log,
            self.redact,
            max_bytes=log_max_bytes,
            stored_bytes=claim.job.log_bytes,
            # A crash may have cut an attempt in the middle of a line.
            is_line_open=claim.job.crashes > 0 and claim.job.log_bytes > 0,
        )
        # Log that may turn out to repeat that of the attempt before; None once it is written.
        self._held_back: str | None = "" if claim.job.faults else None
        self._releaser = Debouncer(self._release_log, delay_s=HELD_BACK_MAX_S)
        self.phase_name: str | None = None
        self.faults = claim.job.faults

    @property
    def job(self) -> Job:
        return self._claim.job

    @property
    def secrets(self) -> Mapping[str, Secret]:
        return self._claim.secrets

    @property
    def checkpoint(self) -> Mapping[str, Any]:
        return self._checkpoint

    def add_secret(self, secret: Secret) -> None:
        if secret not in self._secrets:
            self._secrets.add(secret)
            self._redactor = None

    def redact(self, text: str) -> str:
        """`text` without the job's own secrets and those that were added."""
        if self._redactor is None:
            # Not before it is needed: a job may add hundreds of words, one by one.
            lines = (Secret(line) for secret in self._secrets for line in secret.reveal().splitlines())
            long_lines = (line for line in lines if len(line.reveal()) >= SECRET_LINE_MIN_CHARS)
            self._redactor = Redactor({*self._secrets, *long_lines})
        return self._redactor(text)

    @asynccontextmanager
    async def phase(self, name: str, *, timeout_s: float, waits_for: str | None = None) -> AsyncIterator[None]:
        self.faults = await self._store.enter_phase(self._claim, name)
        self.phase_name = name
        if self._progress.get("percent") is not None:
            self.progress(percent=None)  # it was that of the phase before
        clock = asyncio.get_running_loop().time
        self._progressed_at = clock()
        started_at = clock() - self._downtime_s()
        fault: Fault
        if waits_for is None:
            why = f"{name} took longer than its limit of {timeout_s:g} s and was stopped"
            fault = Permanent(ErrorCode.TIMEOUT, why)
        else:
            why = f"{name} was stopped: it has waited for {waits_for} for {timeout_s:g} s without progress"
            fault = Temporary(ErrorCode.TIMEOUT, why)

        def counted_s() -> float:
            if waits_for is not None:
                return clock() - self._progressed_at
            return clock() - self._downtime_s() - started_at

        async with limited(timeout_s, counted_s, fault):
            yield

    async def save(self, *, blobs: Collection[str] = (), **values: Any) -> None:
        self._checkpoint.update(values)
        await self._store.checkpoint(self._claim, values, blobs=blobs)

    async def pushes(self) -> list[Push]:
        pushes = await self._store.pushes(self.job.id)
        self._counted_tries |= {(push.image, push.target): push.tries for push in pushes}
        return pushes

    async def record_pushes(self, pushes: Sequence[Push]) -> None:
        await self._store.record_pushes(self._claim, pushes)
        for push in pushes:
            self._count(push)

    def _count(self, push: Push) -> None:
        """Add the bytes of a push to those of its registry, once for each try."""
        place = push.image, push.target
        if push.tries <= self._counted_tries.get(place, 0):
            return
        self._counted_tries[place] = push.tries
        self._traffic.add(
            push.registry,
            sent=push.sent_bytes or 0,
            mounted=push.mounted_bytes or 0,
            skipped=push.skipped_bytes or 0,
        )

    async def note(self, event: str, **data: Any) -> None:
        await self._store.note(self._claim, event, data)

    def progress(self, **values: Any) -> None:
        if any(name not in self._progress or self._progress[name] != value for name, value in values.items()):
            self._progressed_at = asyncio.get_running_loop().time()
        self._progress.update(values)
        self._progress_is_new = True
        self._progress_writer.soon()

    async def log(self, text: str) -> None:
        if self._held_back is None:
            await self._joblog.append(text)
            return
        self._held_back += text
        if len(self._held_back) > HELD_BACK_MAX_CHARS:
            await self._releaser.now()
        else:
            self._releaser.soon()

    async def end_log(self, text: str | None) -> None:
        """Bring the rest of log and progress to the store, with `text` as the last words.

        None drops what was held back, because it repeats the attempt before.
        """
        if text is None:
            self._held_back = None
        elif self._held_back is not None and self.job.faults > 1:
            await self._joblog.append_line(f"(this happened {self.job.faults} times)\n")
        await self._releaser.now()
        if text is not None:
            await self._joblog.append_line(text)
        await self._progress_writer.now()
        await self._joblog.close()

    async def _release_log(self) -> None:
        """Log what was held back; nothing is held back any more."""
        text, self._held_back = self._held_back, None
        if text:
            await self._joblog.append(text)

    async def _write_progress(self) -> None:
        if self._progress_is_new:
            self._progress_is_new = False
            await self._store.progress(self._claim, self._progress)


class JobLog:
    """The log of one attempt, append-only: gathered into blocks, redacted, bounded, cut visibly.

    Lines are not rows: text goes to the store in blocks, when `FULL_BYTES` have come together or `FLUSH_S` have passed.
    `append` waits while the store is behind: that is the back-pressure. Past the job's bound the middle is dropped and
    the end kept, because the end of a log is where it says why. An attempt that finds the bound reached adds only its
    own end.
    """

    def __init__(
        self,
        write: Callable[[str], Awaitable[None]],
        redact: Callable[[str], str],
        *,
        max_bytes: int,
        stored_bytes: int = 0,
        is_line_open: bool = False,
    ) -> None:
        self._write = write
        self._redact = redact
        self._room_bytes = max(0, max_bytes - TAIL_BYTES - stored_bytes)
        self._pending: deque[str] = deque()
        self._pending_bytes = 0
        self._writer = Debouncer(self._flush, delay_s=FLUSH_S)
        self._tail: deque[str] = deque()
        self._tail_bytes = 0
        self._cut_bytes = 0
        self._is_line_open = is_line_open

    async def append(self, text: str) -> None:
        """Add text; a line may arrive in pieces. Raises what the store raises."""
        if text:
            self._is_line_open = not text.endswith("\n")
        text = self._redact(text)
        for start in range(0, len(text), PIECE_CHARS):
            self._add(text[start : start + PIECE_CHARS])
        if self._pending_bytes >= FULL_BYTES:
            await self._writer.now()
        elif self._pending:
            self._writer.soon()

    async def append_line(self, text: str) -> None:
        """Add text that begins on a line of its own, as `append` does."""
        await self.append(f"\n{text}" if text and self._is_line_open else text)

    async def close(self) -> None:
        """Bring the rest to the store: where the log was cut, how much was dropped, and the end."""
        if self._cut_bytes:
            dropped = self._cut_bytes - self._tail_bytes
            mark = f"\n[imagejobd: {dropped} bytes of log dropped here; the bound is limits.log_max_bytes]\n"
            self._pending += [mark if dropped else "", *self._tail]
            self._cut_bytes = 0
            self._tail.clear()
            self._tail_bytes = 0
        await self._writer.now()

    def _add(self, piece: str) -> None:
        size = _size_bytes(piece)
        if size <= self._room_bytes and not self._cut_bytes:
            self._room_bytes -= size
            self._pending.append(piece)
            self._pending_bytes += size
            return
        self._cut_bytes += size
        self._tail.append(piece)
        self._tail_bytes += size
        while self._tail_bytes > TAIL_BYTES:
            self._tail_bytes -= _size_bytes(self._tail.popleft())

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


class Debouncer:
    """Calls `write` at most once every `delay_s`, never twice at a time. `write` does nothing when nothing is new."""

    def __init__(self, write: Callable[[], Awaitable[None]], *, delay_s: float) -> None:
        self._write = write
        self._delay_s = delay_s
        self._timer: asyncio.Task[None] | None = None
        self._writing = asyncio.Lock()

    def soon(self) -> None:
        """Write when the delay has passed; asking again before then changes nothing."""
        if self._timer is None:
            self._timer = asyncio.create_task(self._write_later())

    async def now(self) -> None:
        """Write at once, after the write that is under way. Raises what `write` raises."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        async with self._writing:
            await self._write()

    async def _write_later(self) -> None:
        await asyncio.sleep(self._delay_s)
        self._timer = None
        # Nobody waits for this one. Its owner still has what was not written, and `now` meets the same fault.
        with contextlib.suppress(Fault):
            async with self._writing:
                await self._write()


@asynccontextmanager
async def limited(limit_s: float, counted_s: Callable[[], float], fault: Fault) -> AsyncIterator[None]:
    """Cancel the block, and raise `fault`, when `counted_s` is at `limit_s`. It may stand still or go back, but never
    overtakes the clock."""
    loop = asyncio.get_running_loop()
    limit = asyncio.timeout(None)
    timer: asyncio.TimerHandle

    def look() -> None:
        nonlocal timer
        rest_s = limit_s - counted_s()
        if rest_s > 0:
            timer = loop.call_later(max(rest_s, LIMIT_LOOK_MIN_S), look)
        else:
            limit.reschedule(loop.time())

    timer = loop.call_later(limit_s, look)
    try:
        async with limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        raise fault from None
    finally:
        timer.cancel()


def _size_bytes(text: str) -> int:
    return len(text.encode(errors="replace"))
