"""The newest bytes of a stream, stored once for any number of readers.

It counts who still needs what, and nothing else: who waits, and what becomes of those who lag, is decided elsewhere.
A stream's beginning is kept until its room is needed, so that whoever comes a little late finds it whole.
"""

from collections import deque
from itertools import islice

# Incoming pieces are merged up to this size while nobody has taken them: a peer that sends dribbles costs no more
# per byte than one that does not.
MERGE_MAX_BYTES = 64 * 1024
# What a piece takes at least, with the objects around it.
CHUNK_MIN_BYTES = 256


class _Chunk:
    """Bytes that `left` readers have not done with; a bytearray may still grow, because nobody has taken it."""

    __slots__ = ("data", "left")

    def __init__(self, data: bytes | bytearray, left: int) -> None:
        self.data = data
        self.left = left


class Window:
    """Chunks, numbered from 0, of which the passed ones go when there is need.

    A reader enters at a number and needs every chunk from there on: it takes them one by one, and passes each when it
    has done with it. Taking does not change anything.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._chunks: deque[_Chunk] = deque()
        self._readers = 0
        self.first = 0  # the number of the oldest chunk here
        self.start = 0  # its offset in the stream
        self.whole = True  # everything from the stream's first byte on is here
        self.held_bytes = 0

    @property
    def end(self) -> int:
        """The number of the next chunk to come."""
        return self.first + len(self._chunks)

    def enter(self) -> None:
        """A reader more, of all that is here and to come."""
        self._readers += 1
        for chunk in self._chunks:
            chunk.left += 1

    def leave(self, number: int) -> bool:
        """A reader less, which had passed the chunks before `number`. Whether the oldest chunk is free now."""
        self._readers -= 1
        for chunk in islice(self._chunks, number - self.first, None):
            chunk.left -= 1
        return self._freed()

    def take(self, number: int) -> bytes | None:
        """The chunk of this number, None while there is none yet."""
        index = number - self.first
        if index == len(self._chunks):
            return None
        chunk = self._chunks[index]
        if isinstance(chunk.data, bytearray):
            chunk.data = bytes(chunk.data)
        return chunk.data

    def passed(self, number: int) -> bool:
        """A reader has done with the chunk of this number. Whether the oldest chunk is free now."""
        chunk = self._chunks[number - self.first]
        chunk.left -= 1
        return not chunk.left and number == self.first and self._freed()

    def make_room(self, size_bytes: int) -> bool:
        """Whether as much fits now, after dropping what nobody needs. Anything fits into an empty window."""
        if self._fits(size_bytes):
            return True
        self.let_go()
        return self._fits(size_bytes)

    def append(self, data: bytes) -> None:
        """Take `data` in; there must be room."""
        if len(data) < MERGE_MAX_BYTES:
            self._merge(data)
        else:
            self._add(data)

    def let_go(self) -> None:
        """From now on, keep nothing that nobody needs."""
        while self._chunks and not self._chunks[0].left:
            size_bytes = len(self._chunks.popleft().data)
            self.held_bytes -= _charge(size_bytes)
            self.start += size_bytes
            self.first += 1
        self.whole = False

    def _freed(self) -> bool:
        if not self._chunks or self._chunks[0].left:
            return False
        if not self.whole:
            self.let_go()
        return True

    def _fits(self, size_bytes: int) -> bool:
        return not self._chunks or self.held_bytes + _charge(size_bytes) <= self._max_bytes

    def _merge(self, data: bytes) -> None:
        last = self._chunks[-1].data if self._chunks else b""
        if isinstance(last, bytearray) and len(last) + len(data) <= MERGE_MAX_BYTES:
            self.held_bytes -= _charge(len(last))
            last += data
            self.held_bytes += _charge(len(last))
        else:
            self._add(bytearray(data))

    def _add(self, data: bytes | bytearray) -> None:
        self._chunks.append(_Chunk(data, self._readers))
        self.held_bytes += _charge(len(data))


def _charge(size_bytes: int) -> int:
    return max(size_bytes, CHUNK_MIN_BYTES)
