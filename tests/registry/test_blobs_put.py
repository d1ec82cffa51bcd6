"""Blobs put into a real registry: whole, cut, refused, given up, redirected, mounted, in pieces."""

import asyncio
from collections.abc import AsyncIterator
from urllib.error import HTTPError

import pytest
from aiohttp import web
from fake_registry import NO_PROXIES, FakeRegistry
from registry_content import described, digest_of, get_blob, noise
from registry_content import put_blob as put_before
from repositories import HASTE, PIECE_BYTES, body, error, no_wait, pieces, reader, writer

from harness.proxy import Answer, CutRequest, CutResponse, FaultProxy, RewriteLocation, StallRequest
from harness.registry import PASSWORD, USERNAME, Registry
from harness.services import require
from harness.token_server import TokenServer
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


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES, 3 * MIB + 7])
async def test_whole(registry: Registry, proxy: FaultProxy, client: RegistryClient, size: int) -> None:
    """A blob of any size, none included, goes up in one POST and one PUT with its length, as octets."""
    content = noise(size, seed=size)
    blob = described(content)
    assert await put_blob(writer(client, proxy.host, f"up/{size}"), blob, body(content)) is Put.SENT
    assert get_blob(registry, f"up/{size}", blob.digest) == content
    assert [seen.method for seen in proxy.requests] == ["POST", "PUT"]
    put = proxy.requests[-1]
    assert put.headers["Content-Length"] == str(size)
    assert put.headers["Content-Type"] == "application/octet-stream"
    assert "Transfer-Encoding" not in put.headers


async def test_sha512(registry: Registry, client: RegistryClient) -> None:
    """Other digests that can be verified are handed on as they are."""
    content = noise(1000, seed=512)
    blob = Descriptor(digest=digest_of(content, "sha512"), size=len(content))
    await put_blob(writer(client, registry.host, "up/sha512"), blob, body(content))
    assert is_there(registry, "up/sha512", blob)


@pytest.mark.parametrize("chunk_bytes", [None, CHUNK_MIN_BYTES])
async def test_relative_location(chunk_bytes: int | None) -> None:
    """A registry with `relativeurls` names its uploads without a host."""
    require("docker-registry")
    content = noise(CHUNK_MIN_BYTES + 1, seed=1)
    with Registry(relative_urls=True) as registry:
        async with RegistryClient({registry.host: RegistryHost(chunk_bytes=chunk_bytes)}, Egress()) as client:
            await put_blob(writer(client, registry.host, "up/relative"), described(content), body(content))
        assert get_blob(registry, "up/relative", digest_of(content)) == content


async def test_location_at_another_port(private_registry: Registry) -> None:
    """An upload that goes on at another port gets the signed query to the letter, and no login."""
    content = noise(1000, seed=2)
    host = RegistryHost(plain_http=True)
    with FaultProxy(private_registry.host) as front, FaultProxy(private_registry.host) as back:
        front.add(
            "POST", UPLOADS, RewriteLocation(lambda location: location.replace(front.host, back.host)), times=None
        )
        back.add("PUT", UPLOADS, Answer(201))
        async with RegistryClient({front.host: host, back.host: host}, Egress()) as client:
            target = writer(client, front.host, "up/port", login=Credentials(USERNAME, Secret(PASSWORD)))
            await put_blob(target, described(content), body(content))
    (put,) = back.requests
    assert "Authorization" not in put.headers
    assert put.path.endswith(f"&digest={digest_of(content)}")
    assert "_state=" in put.path
    assert put.received_bytes == len(content)
    assert front.count("PUT", ".*") == 0


@pytest.mark.parametrize("location", ["", "ftp://h/x", "http://[::1"])
async def test_location_of_no_use(proxy: FaultProxy, client: RegistryClient, location: str) -> None:
    """A session without a usable address is an error that names the registry, and the body stays unread."""
    proxy.add("POST", UPLOADS, Answer(202, {"Location": location} if location else {}))
    with pytest.raises(Permanent, match=f"{proxy.host}.*no usable upload location"):
        await put_blob(writer(client, proxy.host, "up/no"), described(b"x"), lambda: pytest.fail("read too early"))


async def test_signed_query_to_the_letter(registry: Registry, proxy: FaultProxy, client: RegistryClient) -> None:
    """What a registry wrote into its Location comes back unchanged, only the digest is added."""
    location = f"http://{proxy.host}/v2/x/blobs/uploads/1?_state=aZ-_%2B%2F%3d%3D~'()+&x=%7e"
    proxy.add("POST", UPLOADS, Answer(202, {"Location": location}))
    proxy.add("PUT", UPLOADS, Answer(201))
    await put_blob(writer(client, proxy.host, "x"), described(b"x"), body(b"x"))
    assert f"http://{proxy.host}{proxy.requests[-1].path}" == f"{location}&digest={digest_of(b'x')}"


async def test_cut_in_mid_put(registry: Registry, proxy: FaultProxy, client: RegistryClient) -> None:
    """A cut is temporary; the dead session is given back, and a new upload with a new body succeeds."""
    content = noise(2 * MIB, seed=6)
    proxy.add("PUT", UPLOADS, CutRequest(MIB))
    target = writer(client, proxy.host, "up/cut")
    with pytest.raises(Temporary) as cut:
        await put_blob(target, described(content), body(content))
    assert cut.value.code is ErrorCode.REGISTRY_UNAVAILABLE
    assert proxy.count("DELETE", UPLOADS) == 1
    assert not is_there(registry, "up/cut", described(content))
    assert await put_blob(target, described(content), body(content)) is Put.SENT
    assert get_blob(registry, "up/cut", digest_of(content)) == content


async def test_cut_after_the_commit(registry: Registry, proxy: FaultProxy, client: RegistryClient) -> None:
    """When only the answer is lost the blob is there, and that counts."""
    content = noise(MIB, seed=7)
    proxy.add("PUT", UPLOADS, CutResponse())
    assert await put_blob(writer(client, proxy.host, "up/lost"), described(content), body(content)) is Put.SENT
    assert is_there(registry, "up/lost", described(content))


@pytest.mark.parametrize(
    "answer",
    [
        Answer(404, {}, error("BLOB_UPLOAD_UNKNOWN")),
        Answer(404, {}, error("BLOB_UPLOAD_INVALID")),
        Answer(404),
        Answer(416),
        Answer(502),
        Answer(504),
    ],
    ids=lambda answer: str(answer.status),
)
async def test_upload_that_is_said_to_be_lost(
    registry: Registry, proxy: FaultProxy, client: RegistryClient, answer: Answer
) -> None:
    """A late 404 (of an upload that was committed already) or 5xx is checked by HEAD before it is called a failure."""
    content = noise(1000, seed=8)
    path = f"up/again/{answer.status}{answer.body.decode().partition('_UPLOAD_')[2][:7].lower()}"
    proxy.add("PUT", UPLOADS, answer, times=None)
    target = writer(client, proxy.host, path)
    with pytest.raises(Temporary):
        await put_blob(target, described(content), body(content))
    put_before(registry, path, content)
    assert await put_blob(target, described(content), body(content)) is Put.SENT


async def test_wrong_bytes(registry: Registry, client: RegistryClient) -> None:
    """A registry that finds another digest commits nothing, and that is final."""
    blob = described(noise(1000, seed=9))
    with pytest.raises(Permanent, match="DIGEST_INVALID") as wrong:
        await put_blob(writer(client, registry.host, "up/wrong"), blob, body(noise(1000, seed=10)))
    assert wrong.value.code is ErrorCode.COPY_FAILED
    assert not is_there(registry, "up/wrong", blob)


@pytest.mark.parametrize("length", [0, 999, 1001])
@pytest.mark.parametrize("size", [0, 1000])
async def test_wrong_number_of_bytes(registry: Registry, client: RegistryClient, size: int, length: int) -> None:
    """A body of another length than announced commits nothing under the digest of what was announced."""
    if size == length:
        return
    blob = Descriptor(digest=digest_of(noise(length, seed=11)), size=size)
    with pytest.raises(Permanent) as wrong:
        await put_blob(writer(client, registry.host, "up/length"), blob, body(noise(length, seed=11)))
    assert wrong.value.code is ErrorCode.COPY_FAILED
    assert not is_there(registry, "up/length", blob)


@pytest.mark.parametrize(
    ("method", "answer", "code", "told"),
    [
        ("PUT", Answer(413), ErrorCode.TOO_LARGE, r"limits uploads.*set chunk_bytes in \[registry"),
        ("PUT", Answer(403, {}, error("DENIED")), ErrorCode.DENIED, "DENIED"),
        ("PUT", Answer(201, {"Docker-Content-Digest": "sha256:" + "0" * 64}), ErrorCode.COPY_FAILED, "stored"),
        ("POST", Answer(403, {}, error("DENIED")), ErrorCode.DENIED, "DENIED"),
        ("POST", Answer(404, {}, error("NAME_UNKNOWN")), ErrorCode.NOT_FOUND, "create it first"),
        ("POST", Answer(400, {}, error("NAME_INVALID")), ErrorCode.COPY_FAILED, "NAME_INVALID"),
    ],
)
async def test_refused(
    proxy: FaultProxy, client: RegistryClient, method: str, answer: Answer, code: ErrorCode, told: str
) -> None:
    """A refusal is final and says what to do."""
    proxy.add(method, UPLOADS, answer)
    with pytest.raises(Permanent, match=told) as refused:
        await put_blob(writer(client, proxy.host, "up/refused"), described(b"x"), body(b"x"))
    assert refused.value.code is code


async def test_read_only_registry(client: RegistryClient) -> None:
    """A registry in maintenance is named as such before a byte is read."""
    require("docker-registry")
    with Registry(read_only=True) as read_only:
        target = writer(client, read_only.host, "up/one")
        with pytest.raises(Permanent, match="read-only") as refused:
            await put_blob(target, described(b"x"), lambda: pytest.fail("read too early"))
    assert refused.value.code is ErrorCode.DENIED


async def test_without_a_login(private_registry: Registry, client: RegistryClient) -> None:
    """A registry that wants a login gets none: denied, and no byte was read."""
    target = writer(client, private_registry.host, "up/one")
    with pytest.raises(Permanent) as denied:
        await put_blob(target, described(b"x"), lambda: pytest.fail("read too early"))
    assert denied.value.code is ErrorCode.DENIED


class SourceFailure(Exception):
    """What no registry raises."""


async def failing(content: bytes) -> AsyncIterator[bytes]:
    yield content
    raise SourceFailure


@pytest.mark.parametrize("size", [0, 200_000])
async def test_body_that_fails(registry: Registry, proxy: FaultProxy, client: RegistryClient, size: int) -> None:
    """What the body raises goes through unchanged, commits nothing, and the session is given back."""
    blob = described(noise(size, seed=16)) if size else described(b"")
    with pytest.raises(SourceFailure):
        await put_blob(writer(client, proxy.host, f"up/fails{size}"), blob, lambda: failing(noise(size // 2)))
    assert proxy.count("DELETE", UPLOADS) == 1
    assert not is_there(registry, f"up/fails{size}", blob)


async def test_cancelled(registry: Registry, proxy: FaultProxy, client: RegistryClient) -> None:
    """A cancelled upload ends at once, closes its body, and gives the session back."""
    content, closed = noise(2 * MIB, seed=17), asyncio.Event()

    async def watched() -> AsyncIterator[bytes]:
        try:
            async for piece in pieces(content):
                yield piece
        finally:
            closed.set()

    proxy.add("PUT", UPLOADS, StallRequest(PIECE_BYTES))
    upload = asyncio.create_task(put_blob(writer(client, proxy.host, "up/cancelled"), described(content), watched))
    await asyncio.to_thread(proxy.wait_for, "PUT", UPLOADS, timeout_s=5)
    upload.cancel()
    assert await asyncio.wait({upload}, timeout=1.5) == ({upload}, set())
    assert upload.cancelled()
    assert closed.is_set()
    assert proxy.count("DELETE", UPLOADS) == 1
    with pytest.raises(HTTPError):
        get_blob(registry, "up/cancelled", digest_of(content))


async def test_cancelled_twice(proxy: FaultProxy, client: RegistryClient) -> None:
    """A second cancellation ends the upload, and does not keep the session from being given back."""
    proxy.add("PUT", UPLOADS, StallRequest(0))
    upload = asyncio.create_task(put_blob(writer(client, proxy.host, "up/twice"), described(b"x"), body(b"x")))
    await asyncio.to_thread(proxy.wait_for, "PUT", UPLOADS)
    upload.cancel()
    await asyncio.sleep(0)
    upload.cancel()
    await asyncio.wait({upload})
    assert upload.cancelled()
    await asyncio.to_thread(proxy.wait_for, "DELETE", UPLOADS)


async def test_cancelled_while_the_registry_is_silent(proxy: FaultProxy, client: RegistryClient) -> None:
    """Giving the session back does not hold a cancellation up."""
    proxy.add("PUT", UPLOADS, StallRequest(0))
    proxy.add("DELETE", UPLOADS, StallRequest(0))
    upload = asyncio.create_task(put_blob(writer(client, proxy.host, "up/silent"), described(b"x"), body(b"x")))
    await asyncio.to_thread(proxy.wait_for, "PUT", UPLOADS, timeout_s=5)
    upload.cancel()
    assert await asyncio.wait({upload}, timeout=2) == ({upload}, set())
    assert upload.cancelled()


async def test_scopes(registry: Registry, client: RegistryClient) -> None:
    """Who reads asks to pull, who writes to push, too."""
    assert writer(client, registry.host, "a/b").scopes == ("repository:a/b:pull,push",)
    assert reader(client, registry.host, "a/b").scopes == ("repository:a/b:pull",)


async def test_mount(registry: Registry, proxy: FaultProxy, client: RegistryClient) -> None:
    """A blob that the registry has elsewhere is mounted in one request, and its bytes are never asked for."""
    blob = put_before(registry, "mount/from", noise(1000, seed=3))
    target = writer(client, proxy.host, "mount/to")
    put = await put_blob(target, blob, lambda: pytest.fail("no bytes are needed"), mount_from="mount/from")
    assert put is Put.MOUNTED
    assert is_there(registry, "mount/to", blob)
    assert [seen.method for seen in proxy.requests] == ["POST"]


async def test_mount_that_becomes_a_session(registry: Registry, proxy: FaultProxy, client: RegistryClient) -> None:
    """A registry that does not find the blob there answers with a session, which is used."""
    content = noise(1000, seed=4)
    target = writer(client, proxy.host, "mount/to")
    assert await put_blob(target, described(content), body(content), mount_from="mount/nowhere") is Put.SENT
    assert get_blob(registry, "mount/to", digest_of(content)) == content
    assert [seen.method for seen in proxy.requests] == ["POST", "PUT"]


@pytest.mark.parametrize("status", [400, 403, 404, 405])
async def test_mount_refused(registry: Registry, proxy: FaultProxy, client: RegistryClient, status: int) -> None:
    """The Hub and old Quay refuse mounts (400), and who pushes here need not pull there: the blob is sent."""
    content = noise(1000, seed=5 + status)
    proxy.add("POST", r".*mount=.*", Answer(status))
    target = writer(client, proxy.host, "mount/to")
    assert await put_blob(target, described(content), body(content), mount_from="mount/from") is Put.SENT
    assert get_blob(registry, "mount/to", digest_of(content)) == content


async def test_mount_with_tokens() -> None:
    """A mount asks for the push first and then for the pull at the other repository, in one token."""
    require("docker-registry")
    login = Credentials(USERNAME, Secret(PASSWORD))
    with TokenServer() as tokens, Registry(tokens=tokens) as registry:
        blob = put_before(registry, "mount/from", noise(1000, seed=18))
        async with RegistryClient({}, Egress(), timing=HASTE) as client:
            target = writer(client, registry.host, "mount/to", login=login)
            assert await put_blob(target, blob, lambda: pytest.fail("no bytes are needed"), mount_from="mount/from")
        assert is_there(registry, "mount/to", blob)
        (asked,) = tokens.requests
    assert asked.scopes == ("repository:mount/to:pull,push", "repository:mount/from:pull")


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
