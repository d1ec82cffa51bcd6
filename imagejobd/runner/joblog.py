"""The log of one running job: gathered into blocks, redacted, bounded, cut visibly.

A build may print hundreds of thousands of lines, so lines are not rows: text goes to the store in blocks, when
`FULL_BYTES` have come together or `FLUSH_S` have passed. Past the job's bound the middle is dropped and the end
kept, because the end of a log is where it says why. An attempt that finds the bound reached adds only its own end.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Iterator

from imagejobd.model.errors import Fault
from imagejobd.runner.behind import WriteBehind

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
        self._behind = WriteBehind(self._flush, delay_s=FLUSH_S)
        self._tail: deque[str] = deque()
        self._tail_bytes = 0
        self._cut_bytes = 0

    async def append(self, text: str) -> None:
        """Add text; a line may arrive in pieces. Raises what the store raises."""
        for piece in _pieces(self._redact(text)):
            self._add(piece)
        if self._pending_bytes >= FULL_BYTES:
            await self._behind.now()
        elif self._pending:
            self._behind.soon()

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
