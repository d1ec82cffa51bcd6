"""Reading blobs through cuts, stalls, mirrors and lies."""

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing

import pytest
from registry_content import noise, put_blob
from repositories import HASTE, drained, no_wait, reader

from harness.file_server import BlobStore
from harness.proxy import Answer, CutResponse, DropRequestHeader, DropResponseHeader, FaultProxy, StallResponse
from harness.registry import Registry
from harness.services import require
from imagejobd.model.egress import Egress
from imagejobd.model.errors import ErrorCode, Fault, Permanent, Temporary
from imagejobd.model.traffic import Traffic
from imagejobd.registry import blobs
from imagejobd.registry.blobs import SLOW_TRIES_MAX, TRIES_MAX, read_blob
from imagejobd.registry.client import RegistryClient
from imagejobd.registry.hosts import RegistryHost
from imagejobd.registry.manifest import Descriptor

BLOBS = "/v2/.*/blobs/.*"
SIZE = 1_000_000
CONTENT = noise(SIZE, seed=100)


@pytest.fixture
def blob(registry: Registry) -> Descriptor:
    return put_blob(registry, "down/one", CONTENT)


async def read(client: RegistryClient, host: str, blob: Descriptor) -> bytes:
    return await drained(read_blob(reader(client, host, "down/one"), blob, pause=no_wait))


async def read_until_fault(client: RegistryClient, host: str, blob: Descriptor) -> tuple[bytes, Fault | None]:
    """What was read, and the fault that ended it."""
    got = bytearray()
    try:
        async for chunk in read_blob(reader(client, host, "down/one"), blob, pause=no_wait):
            got += chunk
    except Fault as fault:
        return bytes(got), fault
    return bytes(got), None


def ranges(proxy: FaultProxy) -> list[str | None]:
    return [seen.headers.get("Range") for seen in proxy.seen("GET", BLOBS)]


def with_size(blob: Descriptor, size: int) -> Descriptor:
    return Descriptor(digest=blob.digest, size=size)


async def test_whole(registry: Registry, proxy: FaultProxy, client: RegistryClient, blob: Descriptor) -> None:
    """A blob is read in one request without a range; an empty one in none."""
    assert await read(client, proxy.host, blob) == CONTENT
    assert ranges(proxy) == [None]
    assert await read(client, proxy.host, put_blob(registry, "down/one", b"")) == b""


async def test_without_a_length(proxy: FaultProxy, client: RegistryClient, blob: Descriptor) -> None:
    """A server that does not say how much is coming is read to the end."""
    proxy.add("GET", BLOBS, DropResponseHeader("Content-Length"))
    assert await read(client, proxy.host, blob) == CONTENT


async def test_cut_in_mid_blob(proxy: FaultProxy, client: RegistryClient, blob: Descriptor) -> None:
    """After each cut it goes on from the exact byte; no byte is read twice."""
    proxy.add("GET", BLOBS, CutResponse(300_001))
    proxy.add("GET", BLOBS, CutResponse(77))
    proxy.add("GET", BLOBS, CutResponse())
    assert await read(client, proxy.host, blob) == CONTENT
    assert ranges(proxy) == [None, "bytes=300001-", "bytes=300078-", "bytes=300078-"]


async def test_stall_in_mid_blob(proxy: FaultProxy, blob: Descriptor) -> None:
    """A server that goes silent is a cut one, after the idle time-out."""
    proxy.add("GET", BLOBS, StallResponse(500_000))
    async with RegistryClient({}, Egress(), timing=HASTE, idle_timeout_s=1) as client:
        assert await read(client, proxy.host, blob) == CONTENT
    assert ranges(proxy) == [None, "bytes=500000-"]


async def test_many_cuts_with_progress(proxy: FaultProxy, client: RegistryClient, blob: Descriptor) -> None:
    """As long as bytes come, it goes on, also where there are many cuts in a large blob."""
    for _ in range(5 * TRIES_MAX):
        proxy.add("GET", BLOBS, CutResponse(1000))
    assert await read(client, proxy.host, blob) == CONTENT


async def test_one_byte_at_a_time(proxy: FaultProxy, client: RegistryClient, blob: Descriptor) -> None:
    """A peer that cuts after every byte has an end, and gets the pauses in between."""
    proxy.add("GET", BLOBS, CutResponse(1), times=None)
    got, fault = await read_until_fault(client, proxy.host, blob)
    assert isinstance(fault, Temporary)
    assert got == CONTENT[: SLOW_TRIES_MAX + 1]
    assert proxy.count("GET", BLOBS) == SLOW_TRIES_MAX + 1


async def test_large_blob_in_small_pieces(
    registry: Registry, proxy: FaultProxy, client: RegistryClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tries are counted anew for every so many bytes, so that a large blob comes over a poor line."""
    monkeypatch.setattr(blobs, "PROGRESS_MIN_BYTES", 50_000)
    blob = put_blob(registry, "down/one", CONTENT)
    proxy.add("GET", BLOBS, CutResponse(10_000), times=SIZE // 10_000)
    assert await read(client, proxy.host, blob) == CONTENT
    assert proxy.count("GET", BLOBS) > SLOW_TRIES_MAX + 1


@pytest.mark.parametrize("status", [429, 503])
async def test_wish_for_a_long_pause(proxy: FaultProxy, client: RegistryClient, blob: Descriptor, status: int) -> None:
    """A registry that wants to be left alone for long is, and whoever tries again knows for how long."""
    proxy.add("GET", BLOBS, Answer(status, {"Retry-After": "600"}), times=None)
    got, fault = await read_until_fault(client, proxy.host, blob)
    assert got == b""
    assert isinstance(fault, Temporary)
    assert fault.retry_after_s == 600
    assert proxy.count("GET", BLOBS) == 1


async def test_wish_for_a_short_pause(proxy: FaultProxy, client: RegistryClient, blob: Descriptor) -> None:
    """A shorter wish is granted, and then it goes on."""
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    proxy.add("GET", BLOBS, Answer(500, {"Retry-After": "7"}))
    assert await drained(read_blob(reader(client, proxy.host, "down/one"), blob, pause=pause)) == CONTENT
    assert pauses == [7]


async def test_no_progress(proxy: FaultProxy, client: RegistryClient, blob: Descriptor) -> None:
    """Three tries in a row without a byte are enough; the pauses between them grow."""
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    proxy.add("GET", BLOBS, CutResponse(1000))
    proxy.add("GET", BLOBS, CutResponse(), times=None)
    source = reader(client, proxy.host, "down/one")
    with pytest.raises(Temporary) as given_up:
        await drained(read_blob(source, blob, pause=pause))
    assert given_up.value.code is ErrorCode.REGISTRY_UNAVAILABLE
    assert len(pauses) == TRIES_MAX
    assert pauses == sorted(set(pauses))


WITHOUT_RANGES = [
    DropRequestHeader("Range"),
    Answer(400),
    Answer(416),
    Answer(206, {}, CONTENT[1000:]),
    Answer(206, {"Content-Range": f"bytes 1001-{SIZE - 1}/{SIZE}"}, CONTENT[1001:]),
    Answer(206, {"Content-Range": f"bytes 1000-{SIZE - 1}/*"}, CONTENT[1000:]),
    Answer(206, {"Content-Range": f"bytes 1000-{SIZE}/{SIZE + 1}"}, CONTENT[1000:] + b"x"),
]


@pytest.mark.parametrize("other", WITHOUT_RANGES, ids=range(len(WITHOUT_RANGES)))
async def test_registry_without_ranges(
    proxy: FaultProxy, client: RegistryClient, blob: Descriptor, other: Answer | DropRequestHeader
) -> None:
    """Where a range is refused or not exactly what was asked for, the blob is read again from its first byte, through
    another cut, too; what was handed on before is not handed on twice."""
    proxy.add("GET", BLOBS, CutResponse(1000))
    proxy.add("GET", BLOBS, other)
    if not isinstance(other, DropRequestHeader):
        proxy.add("GET", BLOBS, CutResponse(500_000))
        proxy.add("GET", BLOBS, CutResponse(3))
    assert await read(client, proxy.host, blob) == CONTENT
    assert ranges(proxy)[2:] == ([] if isinstance(other, DropRequestHeader) else [None] * 3)


async def test_range_that_begins_earlier(proxy: FaultProxy, client: RegistryClient, blob: Descriptor) -> None:
    """Of a part that begins before the byte that was asked for, what is known already is passed over."""
    proxy.add("GET", BLOBS, CutResponse(1000))
    proxy.add("GET", BLOBS, Answer(206, {"Content-Range": f"bytes 900-{SIZE - 1}/{SIZE}"}, CONTENT[900:]))
    assert await read(client, proxy.host, blob) == CONTENT


@pytest.mark.parametrize("answer", [Answer(400), Answer(416), Answer(206, {}, CONTENT[1000:]), Answer(503)])
async def test_never_spliced(proxy: FaultProxy, client: RegistryClient, blob: Descriptor, answer: Answer) -> None:
    """What does not say which bytes it brings is not joined to what was read before, and has an end."""
    proxy.add("GET", BLOBS, CutResponse(1000))
    proxy.add("GET", BLOBS, answer, times=None)
    got, fault = await read_until_fault(client, proxy.host, blob)
    assert isinstance(fault, Fault)
    assert got == CONTENT[:1000]
    assert proxy.count("GET", BLOBS) <= 1 + TRIES_MAX


@pytest.mark.parametrize("size", [SIZE - 1, SIZE + 1])
@pytest.mark.parametrize("is_said", [True, False])
async def test_wrong_length(
    proxy: FaultProxy, client: RegistryClient, blob: Descriptor, size: int, is_said: bool
) -> None:
    """A blob that is longer or shorter than its manifest says is refused, and never more than that is handed on."""
    if not is_said:
        proxy.add("GET", BLOBS, DropResponseHeader("Content-Length"), times=None)
    got, fault = await read_until_fault(client, proxy.host, with_size(blob, size))
    assert len(got) <= size
    assert isinstance(fault, Permanent) or (not is_said and size > SIZE)
    assert not isinstance(fault, Permanent) or fault.code is ErrorCode.COPY_FAILED


@pytest.mark.parametrize(("status", "code"), [(404, ErrorCode.NOT_FOUND), (403, ErrorCode.DENIED)])
async def test_refused(
    proxy: FaultProxy, client: RegistryClient, blob: Descriptor, status: int, code: ErrorCode
) -> None:
    """What is not there or not allowed is final."""
    proxy.add("GET", BLOBS, Answer(status), times=None)
    with pytest.raises(Permanent) as refused:
        await read(client, proxy.host, blob)
    assert refused.value.code is code
    assert proxy.count("GET", BLOBS) == 1


async def test_closed_early(proxy: FaultProxy, client: RegistryClient, blob: Descriptor) -> None:
    """Closing ends the transfer."""
    proxy.add("GET", BLOBS, StallResponse(SIZE // 2))
    async with aclosing(read_blob(reader(client, proxy.host, "down/one"), blob)) as chunks:
        assert await anext(chunks)
    assert proxy.count("GET", BLOBS) == 1


async def test_redirected_to_storage() -> None:
    """Blobs that lie on another host are found and read there."""
    require("docker-registry")
    with BlobStore() as storage, Registry(storage=storage) as registry:
        blob = put_blob(registry, "down/one", CONTENT)
        async with RegistryClient({}, Egress(), timing=HASTE) as client:
            source = reader(client, registry.host, "down/one")
            assert await source.has_blob(blob.digest, blob.size)
            assert await drained(read_blob(source, blob, pause=no_wait)) == CONTENT
    assert {seen.method for seen in storage.requests} == {"HEAD", "GET"}


@pytest.fixture
def mirror(registry: Registry) -> Iterator[FaultProxy]:
    with FaultProxy(registry.host) as mirror:
        yield mirror


@pytest.fixture
async def mirrored(proxy: FaultProxy, mirror: FaultProxy) -> AsyncIterator[RegistryClient]:
    plain = RegistryHost(plain_http=True)
    hosts = {proxy.host: RegistryHost(plain_http=True, mirrors=(mirror.host,)), mirror.host: plain}
    async with RegistryClient(hosts, Egress(), timing=HASTE) as client:
        yield client


async def test_mirror(proxy: FaultProxy, mirror: FaultProxy, mirrored: RegistryClient, blob: Descriptor) -> None:
    """A mirror is read from, and then the registry is not."""
    assert await read(mirrored, proxy.host, blob) == CONTENT
    assert (ranges(mirror), ranges(proxy)) == ([None], [])


@pytest.mark.parametrize(
    "fault",
    [
        Answer(404),
        Answer(403),
        Answer(500),
        Answer(429),
        Answer(200, {}, b"short"),
        Answer(200, {}, b"x" * (SIZE + 1)),
        CutResponse(),
    ],
    ids=["404", "403", "500", "429", "short", "long", "cut"],
)
async def test_mirror_without_the_blob(
    proxy: FaultProxy, mirror: FaultProxy, mirrored: RegistryClient, blob: Descriptor, fault: Answer | CutResponse
) -> None:
    """A mirror that has it not, or of another length, or is not well, is left at once: the registry has the say."""
    mirror.add("GET", BLOBS, fault, times=None)
    assert await read(mirrored, proxy.host, blob) == CONTENT
    assert mirror.count("GET", BLOBS) >= 1
    assert ranges(proxy) == [None]


async def test_mirror_with_other_bytes(
    proxy: FaultProxy, mirror: FaultProxy, mirrored: RegistryClient, blob: Descriptor
) -> None:
    """Who has found a mirror's bytes to be wrong can have the registry's own."""
    wrong = b"y" * SIZE
    mirror.add("GET", BLOBS, Answer(200, {}, wrong), times=None)
    source = reader(mirrored, proxy.host, "down/one")
    assert await drained(read_blob(source, blob, pause=no_wait)) == wrong
    assert await drained(read_blob(source, blob, use_mirrors=False, pause=no_wait)) == CONTENT
    assert (mirror.count("GET", BLOBS), ranges(proxy)) == (1, [None])


async def test_mirror_cut_in_mid_blob(
    proxy: FaultProxy, mirror: FaultProxy, mirrored: RegistryClient, blob: Descriptor
) -> None:
    """What a mirror began the registry ends, from the exact byte."""
    mirror.add("GET", BLOBS, CutResponse(123_456))
    assert await read(mirrored, proxy.host, blob) == CONTENT
    assert ranges(proxy) == ["bytes=123456-"]


async def test_mirror_that_is_down(registry: Registry, blob: Descriptor) -> None:
    """A mirror that cannot be reached is none."""
    require("docker-registry")
    with Registry() as gone:
        pass
    hosts = {registry.host: RegistryHost(mirrors=(gone.host,), plain_http=True)}
    async with RegistryClient(hosts, Egress(), timing=HASTE) as client:
        assert await read(client, registry.host, blob) == CONTENT


async def test_what_is_read_is_counted(proxy: FaultProxy, blob: Descriptor) -> None:
    """Every byte that came, also what was cut off, counts for the host that it came from."""
    proxy.add("GET", BLOBS, CutResponse(300_000))
    proxy.add("GET", BLOBS, DropRequestHeader("Range"))
    traffic = Traffic()
    async with RegistryClient({}, Egress(), timing=HASTE, traffic=traffic) as client:
        assert await read(client, proxy.host, blob) == CONTENT
    assert traffic.registries[proxy.host].read == SIZE + 300_000
