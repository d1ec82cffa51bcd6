"""What a dispatched job is stored as, and its payload as a file."""

import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from harness.building import parsing_builder
from imagejobd.jobs.dispatch import (
    INLINE_MAX_BYTES,
    DispatchKind,
    DispatchSettings,
    DispatchSpec,
    inlined,
    payload_file,
    take_in,
)
from imagejobd.model.bounds import MIB
from imagejobd.model.errors import ErrorCode, Permanent
from imagejobd.model.kind import Upload
from imagejobd.store.blobs import BlobStore

parse = DispatchKind(parsing_builder(), DispatchSettings()).parse
SIZES = [0, 1, INLINE_MAX_BYTES, INLINE_MAX_BYTES + 1, MIB]


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path)


async def chunked(data: bytes, chunk_bytes: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), chunk_bytes):
        yield data[start : start + chunk_bytes]


def stored(upload: Upload) -> DispatchSpec:
    """The spec as the job's row has it."""
    return msgspec.convert(msgspec.json.decode(msgspec.json.encode(parse({}, upload).spec)), DispatchSpec)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("chunk_bytes", [1000, 2 * MIB])
async def test_a_payload_comes_back_as_a_file(blobs: BlobStore, tmp_path: Path, size: int, chunk_bytes: int) -> None:
    """However it came and whichever way it is kept; a file that was only made to be read is gone afterwards."""
    data = os.urandom(size)
    upload = await take_in(blobs, chunked(data, chunk_bytes), max_bytes=MIB)
    spec = stored(upload)
    assert spec.payload == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert spec.size_bytes == size
    assert (spec.content is None) == (size > INLINE_MAX_BYTES)
    assert upload.blobs == ((spec.payload,) if size > INLINE_MAX_BYTES else ())
    async with payload_file(blobs, spec) as path:
        assert path.read_bytes() == data
    assert list((tmp_path / "spool").iterdir()) == []


@pytest.mark.parametrize("max_bytes", [10, INLINE_MAX_BYTES, MIB])
async def test_a_payload_over_its_bound(blobs: BlobStore, tmp_path: Path, max_bytes: int) -> None:
    """One byte too many is too_large, also where the bound is below what a row holds."""
    await take_in(blobs, chunked(bytes(max_bytes), 1000), max_bytes=max_bytes)
    with pytest.raises(Permanent) as refused:
        await take_in(blobs, chunked(bytes(max_bytes + 1), 1000), max_bytes=max_bytes)
    assert refused.value.code is ErrorCode.TOO_LARGE
    assert list((tmp_path / "spool").iterdir()) == []


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"payload": "sha256:" + "0" * 64}, "spec.payload: "),
        ({"content": "QQ=="}, "spec.content: "),
        ({"x" * 1000: 1}, "takes no fields"),
    ],
)
def test_a_caller_names_no_fields(spec: dict[str, Any], words: str) -> None:
    """Nobody gets at what is kept already by its digest; null is nothing."""
    with pytest.raises(Permanent, match=words) as refused:
        parse(spec, inlined(b""))
    assert len(refused.value.message) < 200
    assert parse({"payload": None}, inlined(b"")).spec["size_bytes"] == 0


def test_a_payload_is_needed() -> None:
    """Without one there is no job."""
    with pytest.raises(Permanent, match="payload is missing"):
        parse({})
