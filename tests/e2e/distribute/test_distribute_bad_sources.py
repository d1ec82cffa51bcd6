"""What a source does wrong never reaches a target, and costs no more bytes than it must."""

import re

import pytest

from harness.distribute_box import MIB, DistributeBox, check_copied, nothing_of, source, target
from harness.images import put_image
from harness.proxy import Answer, CutResponse, DropRequestHeader, EndResponse, FaultProxy, FlipByte, StallResponse
from harness.registry import Registry

Mirrors = tuple[Registry, Registry, Registry]

SIZE = 3 * MIB


@pytest.mark.parametrize("offset", [0, SIZE - 1])
def test_corrupt_blob_is_committed_nowhere(
    source_proxy: FaultProxy, origin: Registry, mirrors: Mirrors, path: str, offset: int
) -> None:
    """A blob that differs in one byte is in no registry afterwards, nor is a tag; the error says why."""
    image = put_image(origin, path, "1", layers=[SIZE], seed=path)
    source_proxy.add("GET", f".*/blobs/{image.layers[0]}", FlipByte(offset), times=None)
    with DistributeBox(limits={"retry_for_s": 0.6}) as box:
        job = box.failed(box.distribute(source(source_proxy, path), [target(registry) for registry in mirrors]))
        assert box.spooled() == []
    for registry in mirrors:
        assert not registry.has_blob(path, image.layers[0])
        assert registry.tags(path) == []
        assert registry.digest(path, image.digest) is None
    assert re.search(r"digest|corrupt", str(job["error"]) + str(job["result"]))


def test_corrupt_manifest_is_committed_nowhere(
    source_proxy: FaultProxy, origin: Registry, mirrors: Mirrors, path: str
) -> None:
    """A manifest that is not what its digest says is not pushed, nor is anything it names."""
    image = put_image(origin, path, "1")
    source_proxy.add("GET", ".*/manifests/.*", FlipByte(30), times=None)
    with DistributeBox(limits={"retry_for_s": 0.6}) as box:
        box.failed(box.distribute(source(source_proxy, path), [target(registry) for registry in mirrors]))
    assert nothing_of(image, path, *mirrors)


def test_corruption_on_the_way_heals(
    box: DistributeBox, source_proxy: FaultProxy, origin: Registry, mirrors: Mirrors, path: str
) -> None:
    """A byte that flips once is read again and the job succeeds."""
    image = put_image(origin, path, "1", layers=[SIZE], seed=path)
    source_proxy.add("GET", f".*/blobs/{image.layers[0]}", FlipByte(SIZE // 2))
    box.copy(source(source_proxy, path), [target(registry) for registry in mirrors])
    check_copied(image, origin, path, *mirrors)


def test_cut_source_is_resumed(
    box: DistributeBox, source_proxy: FaultProxy, origin: Registry, mirrors: Mirrors, path: str
) -> None:
    """A read that ends early, twice, goes on where it was: the source sends each byte once."""
    image = put_image(origin, path, "1", layers=[SIZE], seed=path)
    blob = f".*/blobs/{image.layers[0]}"
    for _ in range(2):
        source_proxy.add("GET", blob, EndResponse(MIB))
    box.copy(source(source_proxy, path), [target(registry) for registry in mirrors])
    check_copied(image, origin, path, *mirrors)
    first, *resumed = source_proxy.seen("GET", blob)
    assert "Range" not in first.headers
    assert [request.headers["Range"] for request in resumed] == [f"bytes={MIB}-", f"bytes={2 * MIB}-"]
    assert source_proxy.sent_bytes("GET", blob) == SIZE


def test_source_without_ranges_is_never_spliced(
    box: DistributeBox, source_proxy: FaultProxy, origin: Registry, mirrors: Mirrors, path: str
) -> None:
    """A 200 in answer to a Range is taken from its beginning, and what arrives is right."""
    image = put_image(origin, path, "1", layers=[SIZE], seed=path)
    blob = f".*/blobs/{image.layers[0]}"
    source_proxy.add("GET", blob, CutResponse(MIB))
    source_proxy.add("GET", blob, DropRequestHeader("Range"), times=None)
    box.copy(source(source_proxy, path), [target(registry) for registry in mirrors])
    check_copied(image, origin, path, *mirrors)


def test_moving_tag_is_pinned(
    box: DistributeBox, source_proxy: FaultProxy, origin: Registry, mirrors: Mirrors, path: str
) -> None:
    """When the tag moves during the copy, every target gets the image that it pointed at first."""
    image = put_image(origin, path, "1", layers=[MIB], seed="first")
    blob = f".*/blobs/{image.layers[0]}"
    source_proxy.add("GET", blob, StallResponse(MIB // 2))
    uuid = box.distribute(source(source_proxy, path), [target(registry) for registry in mirrors])
    source_proxy.wait_for("GET", blob)
    moved = put_image(origin, path, "1", layers=[100], seed="second")
    source_proxy.release()
    box.succeeded(uuid)
    assert origin.digest(path, "1") == moved.digest
    assert {registry.digest(path, "1") for registry in mirrors} == {image.digest}


def test_missing_blob_of_the_source(
    box: DistributeBox, source_proxy: FaultProxy, origin: Registry, mirror: Registry, path: str
) -> None:
    """An image whose blob the source has lost fails at once, says which blob, and gets no tag."""
    image = put_image(origin, path, "1", layers=[500], seed=path)
    lost = Answer(404, {"Content-Type": "application/json"}, b'{"errors":[{"code":"BLOB_UNKNOWN","message":"gone"}]}')
    source_proxy.add("(GET|HEAD)", f".*/blobs/{image.layers[0]}", lost, times=None)
    job = box.failed(box.distribute(source(source_proxy, path), [target(mirror)]))
    assert image.layers[0].removeprefix("sha256:")[:12] in str(job["error"]) + str(job["result"])
    assert job["attempt"] == 1
    assert mirror.tags(path) == []


def test_absent_image_and_absent_source(box: DistributeBox, origin: Registry, mirror: Registry, path: str) -> None:
    """What the source does not have is 404 at submission; a source that is down is waited for."""
    answer = box.post(source(origin, path, "absent"), [target(mirror)])
    assert (answer.status, answer.json["msg"]) == (404, "Image not found")
    assert f"{origin.host}/{path}:absent" in answer.json["detail"]
    with Registry() as late:
        image = put_image(late, path, "1")
        late.stop()
        answer = box.post(source(late, path), [target(mirror)])
        assert answer.status == 201
        late.start()
        box.succeeded(answer.json["id"])
    assert mirror.digest(path, "1") == image.digest
