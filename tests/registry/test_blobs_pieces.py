"""Blobs put in other ways than one PUT: in pieces, behind redirects, in vain."""

from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from fake_registry import NO_PROXIES, FakeRegistry
from registry_content import described, digest_of, get_blob, noise
from registry_content import put_blob as put_before
from repositories import HASTE, body, no_wait, pieces, reader, writer

from harness.proxy import Answer, CutRequest, CutResponse, FaultProxy
from harness.registry import PASSWORD, USERNAME, Registry
from imagejobd.model.egress import Egress
from imagejobd.model.errors import ErrorCode, Permanent, Temporary
from imagejobd.model.secrets import Credentials, Secret
from imagejobd.registry.blobs import UPLOAD_REDIRECTS_MAX, Put, put_blob, read_blob
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


async def test_larger_than_one_request_may_be(registry: Registry, proxy: FaultProxy, client: RegistryClient) -> None:
    """Where a whole blob is too large for what is before the registry, it goes up in halves, else in quarters."""
    content = noise(4 * CHUNK_MIN_BYTES + 2, seed=20)
    proxy.add("PUT", UPLOADS, Answer(413))
    proxy.add("PATCH", UPLOADS, Answer(413))
    target = writer(client, proxy.host, "pieces/quarters")
    assert await put_blob(target, described(content), body(content)) is Put.SENT
    assert get_blob(registry, "pieces/quarters", digest_of(content)) == content
    half, quarter = 2 * CHUNK_MIN_BYTES + 1, CHUNK_MIN_BYTES + 1
    sizes = [half, quarter, quarter, quarter, len(content) - 3 * quarter]
    assert [int(seen.headers["Content-Length"]) for seen in proxy.seen("PATCH")] == sizes
    assert proxy.count("DELETE", UPLOADS) == 2


@pytest.mark.parametrize("size", [1000, 4 * CHUNK_MIN_BYTES])
async def test_larger_than_any_request_may_be(proxy: FaultProxy, client: RegistryClient, size: int) -> None:
    """Where quarters are too large, too, or would be too small, that ends with what to set."""
    content = noise(size, seed=21)
    proxy.add("PUT|PATCH", UPLOADS, Answer(413), times=None)
    with pytest.raises(Permanent, match=r"limits uploads.*set chunk_bytes in \[registry") as refused:
        await put_blob(writer(client, proxy.host, "pieces/no"), described(content), body(content))
    assert refused.value.code is ErrorCode.TOO_LARGE
    assert len(proxy.seen("PATCH")) == (0 if size == 1000 else 2)
    assert proxy.count("POST", UPLOADS) == proxy.count("DELETE", UPLOADS)


class Redirecting:
    """A registry that wants a login and leads the uploads on from `front`, and a storage that takes them at `back`."""

    def __init__(self, front: FakeRegistry, back: FakeRegistry, status: int, *, is_early: bool = False) -> None:
        self.received = bytearray()
        self.location = f"{back.url}/elsewhere?sig=a%2Fb~"
        self._status = status
        self._is_early = is_early
        front.on_manifest, back.on_manifest = self._lead_on, self._take

    async def _lead_on(self, request: web.Request) -> web.Response:
        if "Authorization" not in request.headers:
            return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})
        if request.method == "POST":
            return web.Response(status=202, headers={"Location": "/v2/x/blobs/uploads/1"})
        if request.method == "PUT" and request.content_length == 0:
            return web.Response(status=201)
        if not self._is_early:
            await request.read()
        return web.Response(status=self._status, headers={"Location": self.location})

    async def _take(self, request: web.Request) -> web.Response:
        self.received += await request.read()
        return web.Response(status=201 if request.method == "PUT" else 202)


BUILDER = Credentials(USERNAME, Secret(PASSWORD))


@pytest.mark.parametrize("status", [307, 308])
@pytest.mark.parametrize("is_early", [False, True])
@pytest.mark.parametrize("chunk_bytes", [None, CHUNK_MIN_BYTES])
async def test_redirected(fake: FakeRegistry, status: int, is_early: bool, chunk_bytes: int | None) -> None:
    """A redirect of a PUT or PATCH is followed with the same bytes, read once more, and the login stays at home."""
    content, calls = noise(2 * CHUNK_MIN_BYTES + 1000, seed=22), 0

    def counted() -> AsyncIterator[bytes]:
        nonlocal calls
        calls += 1
        return pieces(content)

    async with FakeRegistry() as back:
        peers = Redirecting(fake, back, status, is_early=is_early)
        hosts = {fake.host: RegistryHost(plain_http=True, chunk_bytes=chunk_bytes)}
        async with RegistryClient(hosts, Egress(), proxies=NO_PROXIES, timing=HASTE) as client:
            target = writer(client, fake.host, "x", login=BUILDER)
            assert await put_blob(target, described(content), counted) is Put.SENT
        assert bytes(peers.received) == content
        assert calls == 1 + len(back.seen)
        assert {f"{back.url}{seen.raw_path}" for seen in back.seen} == {peers.location}
        assert all("Authorization" not in seen.headers for seen in back.seen)
    if chunk_bytes:
        assert [seen.headers["Content-Range"] for seen in back.seen] == [
            seen.headers["Content-Range"] for seen in fake.seen if seen.method == "PATCH"
        ]


async def test_redirected_session(fake: FakeRegistry, client: RegistryClient) -> None:
    """Where the request for a session is led elsewhere, what that answers is meant there."""
    async with FakeRegistry() as back:
        peers = Redirecting(fake, back, 307)
        fake.on_manifest = lambda _: web.Response(status=307, headers={"Location": peers.location})
        back.on_manifest = lambda request: (
            web.Response(status=202, headers={"Location": "/v2/up/1?x=%2F"})
            if request.method == "POST"
            else peers._take(request)
        )
        await put_blob(writer(client, fake.host, "x"), described(b"bytes"), body(b"bytes"))
        assert peers.received == b"bytes"
        assert [seen.method for seen in fake.seen if seen.method != "GET"] == ["POST"]
        assert back.seen[-1].raw_path == f"/v2/up/1?x=%2F&digest={digest_of(b'bytes')}"


async def test_redirected_in_a_circle(fake: FakeRegistry, client: RegistryClient) -> None:
    """Redirects have an end."""
    peers = Redirecting(fake, fake, 307)
    fake.on_manifest = peers._lead_on
    peers.location = "/v2/x/blobs/uploads/1"
    with pytest.raises(Permanent, match="redirects an upload more than 5 times"):
        await put_blob(writer(client, fake.host, "x", login=BUILDER), described(b"x"), body(b"x"))
    assert len([seen for seen in fake.seen if seen.method == "PUT"]) == 1 + UPLOAD_REDIRECTS_MAX


@pytest.mark.parametrize("is_at_storage", [False, True])
async def test_redirected_out_of_tls(
    fake: FakeRegistry, tls_fake: FakeRegistry, client: RegistryClient, is_at_storage: bool
) -> None:
    """No upload is led from TLS to plain HTTP, neither by the registry nor by its storage."""
    async with FakeRegistry() as plain:
        first = fake if is_at_storage else tls_fake
        peers = Redirecting(first, plain, 307)
        if is_at_storage:
            tls_fake.on_manifest = lambda _: web.Response(status=307, headers={"Location": f"{plain.url}/elsewhere"})
            peers.location = f"{tls_fake.url}/elsewhere"
        scheme = "http" if is_at_storage else "https"
        with pytest.raises(Permanent, match="from TLS to plain HTTP"):
            await put_blob(writer(client, first.host, "x", login=BUILDER, scheme=scheme), described(b"x"), body(b"x"))
        assert plain.seen == []


CALLER_TRIES = 3
REQUESTS_MAX = 15
BLOBS = "/v2/.*/blobs/sha.*"


@pytest.mark.parametrize(
    "faults",
    [
        [("GET", BLOBS, Answer(500))],
        [("PUT", UPLOADS, Answer(500))],
        [("PUT|DELETE", UPLOADS, Answer(502)), ("HEAD", BLOBS, Answer(502))],
        [("PUT", UPLOADS, CutRequest(1000))],
        [("POST", UPLOADS, Answer(503))],
    ],
    ids=["source", "PUT", "PUT, HEAD and DELETE", "cut", "POST"],
)
async def test_what_a_dead_blob_costs(
    registry: Registry, proxy: FaultProxy, client: RegistryClient, faults: list[tuple[str, str, Answer | CutRequest]]
) -> None:
    """A blob that cannot be brought costs few requests at both ends together, with a caller that tries three times."""
    blob = put_before(registry, "dead/from", noise(100_000, seed=23))
    source, target = reader(client, proxy.host, "dead/from"), writer(client, proxy.host, "dead/to")
    for method, path, misbehaviour in faults:
        proxy.add(method, path, misbehaviour, times=None)
    for _ in range(CALLER_TRIES):
        with pytest.raises(Temporary):
            await put_blob(target, blob, lambda: read_blob(source, blob, pause=no_wait))
    assert len(proxy.requests) <= REQUESTS_MAX, [(seen.method, seen.path[-20:]) for seen in proxy.requests]
