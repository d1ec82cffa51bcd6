"""Multipart bodies are read to the byte, however they are cut, and in bounds wherever nobody looks at them."""

from collections.abc import AsyncIterator, Iterable, Iterator
from itertools import chain, repeat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagejobd.api.bodies import (
    EPILOGUE_MAX_BYTES,
    HEADERS_MAX,
    HEADERS_MAX_BYTES,
    PADDING_MAX_BYTES,
    PREAMBLE_MAX_BYTES,
    read_parts,
)
from imagejobd.model.errors import ErrorCode, Permanent

FORM = "multipart/form-data; boundary=b"
NAMED = b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n'
END = b"\r\n--b--"
FORM_OF_ALL_SORTS = (
    b"\r\npreamble --b\r\n--b \t\r\n\r\nno headers\r\n--b\r\n"
    b'X: y\r\ncontent-DISPOSITION:form-data;name="first"\r\n\r\n\r\n-\r\n--\r\n--a\r--b\n--b\r\n\r\n--b\r\n'
    b'Content-Disposition: form-data; name=empty\r\n\r\n\r\n--b\r\nContent-Disposition: form-data; name="none"\r\n'
    b"\r\n--b\r\nContent-Disposition: form-data; filename=f\r\n\r\nnameless\r\n--b--\r\nepilogue\r\n--b\r\n"
)
PARTS_OF_ALL_SORTS = [
    ("", b"no headers"),
    ("first", b"\r\n-\r\n--\r\n--a\r--b\n--b\r\n"),
    ("empty", b""),
    ("none", b""),
    ("", b"nameless"),
]


async def arriving(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def read(pieces: Iterable[bytes], content_type: str = FORM) -> list[tuple[str, bytes]]:
    return [
        (part.name, b"".join([chunk async for chunk in part.chunks]))
        async for part in read_parts(content_type, arriving(pieces))
    ]


def cut(body: bytes, size_bytes: int) -> Iterator[bytes]:
    return (body[start : start + size_bytes] for start in range(0, len(body), size_bytes))


@pytest.mark.parametrize("size_bytes", [1, 2, 3, 5, 7, 11, 10_000])
async def test_parts(size_bytes: int) -> None:
    """Names and contents, the same wherever the body is cut; what comes before and after them is nothing."""
    assert await read(cut(FORM_OF_ALL_SORTS, size_bytes)) == PARTS_OF_ALL_SORTS


@given(
    st.lists(st.lists(st.sampled_from([b"\r", b"\n", b"-", b"\r\n", b"\r\n--", b"x--b", b"x"])).map(b"".join)),
    st.integers(1, 20),
)
async def test_contents_come_as_they_were_sent(contents: list[bytes], size_bytes: int) -> None:
    """Whatever does not hold the boundary is content, to the byte."""
    body = b"".join(b"--b\r\n\r\n" + content + b"\r\n" for content in contents) + b"--b--"
    assert [content for _, content in await read(cut(body, size_bytes))] == contents


async def test_a_part_that_is_not_read_is_skipped() -> None:
    """The next part is the next one, whatever was read of the one before."""
    names = []
    async for part in read_parts(FORM, arriving(cut(FORM_OF_ALL_SORTS, 4))):
        names.append(part.name)
        if len(names) % 2:
            await anext(aiter(part.chunks), b"")
    assert names == [name for name, _ in PARTS_OF_ALL_SORTS]


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        ('form-data; name="file"', "file"),
        ("form-data; name=file", "file"),
        ('form-data;filename="; name=a"; NAME = "b" ', "b"),
        (r'form-data; name="a\"b\\"', 'a"b\\'),
        (r'form-data; name="x"; filename="C:\dir\"', "x"),
        ('form-data; name="\N{SNOWMAN}"', "\N{SNOWMAN}"),
        ("form-data; name*=utf-8''x", ""),
        ('form-data; name="open', ""),
        ("form-data; filename=name", ""),
        ("form-data" + ";" * 5000, ""),
        ("", ""),
    ],
)
async def test_names(disposition: str, name: str) -> None:
    """A part's name is the parameter `name` of its Content-Disposition, else empty."""
    body = b"--b\r\nContent-Disposition: %b\r\n\r\n%b" % (disposition.encode(), END)
    assert await read([body]) == [(name, b"")]


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ('multipart/mixed; charset=x; BOUNDARY="a b"', "a b"),
        ("multipart/form-data; boundary=a; boundary=b", "b"),
        ("multipart/form-data;boundary=" + "b" * 70, "b" * 70),
    ],
)
async def test_boundaries(content_type: str, boundary: str) -> None:
    """Quoted or not, and of several the last."""
    body = f"--{boundary}\r\n\r\nx\r\n--{boundary}--".encode()
    assert await read([body], content_type) == [("", b"x")]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "it ends without the line --b--"),
        (b"--c\r\n\r\nx\r\n--c--", "it ends without the line --b--"),
        (NAMED + b"x", "it ends without the line --b--"),
        (NAMED + b"x\r\n--b", "it ends without the line --b--"),
        (b"--b\r\nX: y\r\n", "it ends without the line --b--"),
        (b"--bc\r\n\r\nx" + END, "a line begins like its boundary and goes on otherwise"),
        (NAMED + b"x\r\n--b-" + END, "a line begins like its boundary and goes on otherwise"),
        (b"--b\r\nno colon\r\n\r\nx" + END, "a header of a part has no colon"),
    ],
)
async def test_malformed(body: bytes, reason: str) -> None:
    """What breaks the format is told in words that name the place."""
    with pytest.raises(Permanent) as caught:
        await read([body])
    assert caught.value.code is ErrorCode.INVALID
    assert caught.value.message == f"malformed request body: {reason}"


@pytest.mark.parametrize("piece", [b"\n", b"\r\n" * 1000, b"a" * 50_000, b"\r\n--a" * 100])
@pytest.mark.parametrize(
    ("begin", "most_bytes", "reason"),
    [
        (b"", PREAMBLE_MAX_BYTES, "come before its first boundary"),
        (NAMED + END, EPILOGUE_MAX_BYTES, "come after its last boundary"),
    ],
)
async def test_what_nobody_reads_is_bounded(piece: bytes, begin: bytes, most_bytes: int, reason: str) -> None:
    """Before the first boundary and after the last one the bound is on bytes; beyond it nothing is waited for."""
    taken_bytes = 0

    def pieces() -> Iterator[bytes]:
        nonlocal taken_bytes
        for one in chain([begin], repeat(piece)):
            taken_bytes += len(one)
            yield one

    with pytest.raises(Permanent, match=f"more than {most_bytes} bytes {reason}"):
        await read(pieces())
    assert taken_bytes <= most_bytes + len(begin) + 2 * len(piece) + len(END)


async def test_bounds_can_be_reached() -> None:
    """As much as is allowed, everywhere, and no byte more."""
    header = b"X: " + b"x" * (HEADERS_MAX_BYTES // HEADERS_MAX - 5)

    def body(*, preamble: int = 0, padding: int = 0, headers: int = 0, epilogue: int = 0) -> Iterator[bytes]:
        yield b"x" * (PREAMBLE_MAX_BYTES - 2 + preamble) + b"\r\n--b" + b" " * (PADDING_MAX_BYTES + padding) + b"\r\n"
        yield b"\r\n".join([header] * (HEADERS_MAX + headers)) + b"\r\n\r\nx" + END
        yield b"x" * (EPILOGUE_MAX_BYTES + epilogue)

    assert await read(body(preamble=2)) == [("", b"x")]
    for beyond in ({"preamble": 3}, {"padding": 1}, {"headers": 1}, {"epilogue": 1}):
        with pytest.raises(Permanent, match="more than"):
            await read(body(**beyond))


async def test_headers_are_bounded() -> None:
    """By bytes, whether they end or not."""
    for end in (b"", b"\r\n\r\nx" + END):
        with pytest.raises(Permanent, match=f"more than {HEADERS_MAX_BYTES} bytes in the headers of a part"):
            await read([b"--b\r\nX: " + b"x" * HEADERS_MAX_BYTES + end])


@pytest.mark.parametrize(
    "header",
    [
        b"Content-Type: multipart/mixed; boundary=c",
        b"Content-Encoding: gzip",
        b"Content-Transfer-Encoding: base64",
    ],
)
async def test_parts_come_as_they_are(header: bytes) -> None:
    """A part that is nested or packed is refused."""
    with pytest.raises(Permanent, match="a multipart part"):
        await read([b"--b\r\n" + header + b"\r\n\r\nx" + END])
