"""Uploads in pieces, where a host is configured so."""

from collections.abc import AsyncIterator

import pytest
from registry_content import described, digest_of, get_blob, noise
from repositories import HASTE, body, writer

from harness.proxy import Answer, CutRequest, CutResponse, FaultProxy
from harness.registry import Registry
from imagejobd.model.egress import Egress
from imagejobd.model.errors import Permanent, Temporary
from imagejobd.registry.blobs import Put, put_blob
from imagejobd.registry.client import RegistryClient
from imagejobd.registry.hosts import CHUNK_MIN_BYTES, RegistryHost
from imagejobd.registry.manifest import Descriptor

UPLOADS = "/v2/.*/blobs/uploads/.*"
MIB = 1024 * 1024


def is_there(registry: Registry, path: str, blob: Descriptor) -> bool:
    return registry.has_blob(path, blob.digest)


@pytest.fixture
async def chunking(proxy: FaultProxy) -> AsyncIterator[RegistryClient]:
    host = RegistryHost(chunk_bytes=CHUNK_MIN_BYTES, plain_http=True)
    async with RegistryClient({proxy.host: host}, Egress(), timing=HASTE) as client:
        yield client


@pytest.mark.parametrize("size", [0, CHUNK_MIN_BYTES, 2 * CHUNK_MIN_BYTES + 5])
async def test_chunks(registry: Registry, proxy: FaultProxy, chunking: RegistryClient, size: int) -> None:
    """Where the host is configured so, a blob goes up in PATCHes of exactly that size, and an empty PUT commits it."""
    content = noise(size, seed=12 + size)
    await put_blob(writer(chunking, proxy.host, f"chunks/{size}"), described(content), body(content))
    assert get_blob(registry, f"chunks/{size}", digest_of(content)) == content
    starts = range(0, size, CHUNK_MIN_BYTES)
    ranges = [f"{start}-{min(start + CHUNK_MIN_BYTES, size) - 1}" for start in starts]
    assert [seen.headers["Content-Range"] for seen in proxy.seen("PATCH")] == ranges
    assert [seen.headers["Content-Length"] for seen in proxy.seen("PUT")] == ["0"]


async def test_registry_that_wants_larger_chunks(
    registry: Registry, proxy: FaultProxy, chunking: RegistryClient
) -> None:
    """`OCI-Chunk-Min-Length` counts before the configuration."""
    content = noise(CHUNK_MIN_BYTES + 100, seed=13)
    with registry.request("POST", "/v2/chunks/large/blobs/uploads/") as response:
        location = response.headers["Location"].replace(registry.host, proxy.host)
    wish = {"Location": location, "OCI-Chunk-Min-Length": str(CHUNK_MIN_BYTES + 50)}
    proxy.add("POST", UPLOADS, Answer(202, wish))
    await put_blob(writer(chunking, proxy.host, "chunks/large"), described(content), body(content))
    assert [seen.headers["Content-Length"] for seen in proxy.seen("PATCH")] == [str(CHUNK_MIN_BYTES + 50), "50"]
    assert is_there(registry, "chunks/large", described(content))


async def test_cut_in_mid_patch(registry: Registry, proxy: FaultProxy, chunking: RegistryClient) -> None:
    """A cut PATCH ends the session; a new upload from the start succeeds."""
    content = noise(CHUNK_MIN_BYTES + MIB, seed=14)
    proxy.add("PATCH", UPLOADS, CutRequest(MIB))
    target = writer(chunking, proxy.host, "chunks/cut")
    with pytest.raises(Temporary):
        await put_blob(target, described(content), body(content))
    assert await put_blob(target, described(content), body(content)) is Put.SENT
    assert is_there(registry, "chunks/cut", described(content))


async def test_commit_whose_answer_was_lost(registry: Registry, proxy: FaultProxy, chunking: RegistryClient) -> None:
    """The PUT that commits chunks is asked again after a cut; the 404 that it gets then is checked by HEAD."""
    content = noise(1000, seed=15)
    proxy.add("PUT", UPLOADS, CutResponse())
    await put_blob(writer(chunking, proxy.host, "chunks/lost"), described(content), body(content))
    assert [seen.status for seen in proxy.seen("PUT")] == [None, 404]
    assert is_there(registry, "chunks/lost", described(content))


@pytest.mark.parametrize("answer", [Answer(413), Answer(202, {"Range": "0-10"})], ids=["413", "kept a part"])
async def test_chunk_not_taken(proxy: FaultProxy, chunking: RegistryClient, answer: Answer) -> None:
    """Chunks that are still too large, or taken in part, end the upload and give the session back."""
    proxy.add("PATCH", UPLOADS, answer)
    with pytest.raises((Permanent, Temporary), match=r"smaller chunk_bytes|only a part"):
        await put_blob(writer(chunking, proxy.host, "chunks/no"), described(b"x" * 100), body(b"x" * 100))
    assert proxy.count("PUT", ".*") == 0
    assert proxy.count("DELETE", UPLOADS) == 1
