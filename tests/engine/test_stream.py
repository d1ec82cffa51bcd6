"""Lines of JSON out of blocks of bytes."""

from collections.abc import AsyncIterator, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagejobd.engine.errors import of_build
from imagejobd.engine.stream import messages, split_lines
from imagejobd.model.errors import ErrorCode, Permanent


async def each(blocks: Iterable[bytes]) -> AsyncIterator[bytes]:
    for block in blocks:
        yield block


@given(st.lists(st.lists(st.sampled_from([b"\n", b"a", b"bb"]), max_size=5).map(b"".join), max_size=20))
async def test_lines_are_the_same_however_they_are_cut(blocks: list[bytes]) -> None:
    """The lines of the blocks are the lines of their sum; a last line without end counts when it is not empty."""
    found = [line async for batch in split_lines(each(blocks)) for line in batch]
    *whole, rest = b"".join(blocks).split(b"\n")
    assert found == whole + ([rest] if rest else [])


async def test_a_line_has_a_bound() -> None:
    """A line that does not end is refused instead of filling the memory."""
    with pytest.raises(Permanent) as caught:
        async for _ in split_lines(each([b"x" * 60] * 3), max_bytes=100):
            pass
    assert caught.value.code is ErrorCode.TOO_LARGE


async def test_what_came_before_an_error_is_given() -> None:
    """Messages in the same block as the error are read before it is raised."""
    seen: list[str] = []

    async def read() -> None:
        async for batch in messages(each([b'{"stream":"last words"}\r\n{"error":"broken"}\r\n']), of_build):
            seen.extend(message.stream for message in batch)

    with pytest.raises(Permanent, match="broken"):
        await read()
    assert seen == ["last words"]
