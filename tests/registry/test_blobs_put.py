"""Blobs put into a real registry: whole, cut, refused, given up, mounted."""

import asyncio
from collections.abc import AsyncIterator
from urllib.error import HTTPError

import pytest
from registry_content import described, digest_of, get_blob, noise
from registry_content import put_blob as put_before
from repositories import HASTE, PIECE_BYTES, body, error, pieces, reader, writer

from harness.proxy import Answer, CutRequest, CutResponse, FaultProxy, RewriteLocation, StallRequest
from harness.registry import PASSWORD, USERNAME, Registry
from harness.services import require
from harness.token_server import TokenServer
from imagejobd.model.egress import Egress
from imagejobd.model.errors import ErrorCode, Permanent, Temporary
from imagejobd.model.secrets import Credentials, Secret
from imagejobd.registry.blobs import Put, put_blob
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
