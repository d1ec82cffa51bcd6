"""What is there already is not sent, and what several targets want is read once."""

from harness.distribute_box import MIB, DistributeBox, check_copied, results, source, target
from harness.images import put_blob, put_image, put_index, random_bytes
from harness.proxy import FaultProxy, ThrottleResponse
from harness.registry import Registry
from harness.waiting import until

Mirrors = tuple[Registry, Registry, Registry]


def test_one_read_for_all_targets(
    box: DistributeBox, source_proxy: FaultProxy, origin: Registry, mirrors: Mirrors, path: str
) -> None:
    """Three targets cost the source each blob once."""
    image = put_image(origin, path, "1", layers=[2 * MIB, MIB], seed=path)
    box.copy(source(source_proxy, path), [target(registry) for registry in mirrors])
    check_copied(image, origin, path, *mirrors)
    assert source_proxy.sent_bytes("GET", ".*/blobs/.*") == image.blobs_bytes
    assert source_proxy.count("GET", ".*/blobs/.*") == len(image.blobs)


def test_two_jobs_to_one_target_send_once(
    box: DistributeBox,
    target_proxy: FaultProxy,
    source_proxy: FaultProxy,
    origin: Registry,
    mirror: Registry,
    path: str,
) -> None:
    """Two jobs that bring the same blobs to one repository send them once: the second waits, and finds them."""
    image = put_image(origin, path, "1", layers=[MIB, MIB], seed=path)
    source_proxy.add("GET", ".*/blobs/.*", ThrottleResponse(2 * MIB), times=None)
    jobs = [box.distribute(source(source_proxy, path), [target(target_proxy, ref=ref)]) for ref in ("a", "b")]
    for uuid in jobs:
        box.succeeded(uuid)
    assert mirror.tags(path) == ["a", "b"]
    assert target_proxy.received_bytes("PUT|PATCH", ".*/blobs/.*") == image.blobs_bytes


def test_blobs_that_are_there_are_not_sent(
    box: DistributeBox,
    source_proxy: FaultProxy,
    target_proxy: FaultProxy,
    origin: Registry,
    mirror: Registry,
    path: str,
) -> None:
    """A blob that the target has is neither read nor sent, and is counted as skipped."""
    image = put_image(origin, path, "1", layers=[MIB, 1_000], seed=path)
    assert put_blob(mirror, path, random_bytes(MIB, (path, 0))) == image.layers[0]
    job = box.copy(source(source_proxy, path), [target(target_proxy)])
    assert source_proxy.count("GET", f".*/blobs/{image.layers[0]}") == 0
    assert target_proxy.received_bytes("PUT|PATCH", ".*/blobs/.*") == image.blobs_bytes - MIB
    told = results(job)[target_proxy.url]
    assert (told["sent_bytes"], told["skipped_bytes"]) == (image.blobs_bytes - MIB, MIB)


def test_children_that_are_there_are_not_looked_into(
    box: DistributeBox,
    source_proxy: FaultProxy,
    target_proxy: FaultProxy,
    origin: Registry,
    mirror: Registry,
    path: str,
) -> None:
    """A child of an index that the target has costs one request; its blobs are not asked for."""
    old = put_image(origin, path, seed="old", layers=[1_000] * 5)
    put_image(mirror, path, seed="old", layers=[1_000] * 5)
    put_index(origin, path, "1", [old, put_image(origin, path, seed="new")])
    box.copy(source(source_proxy, path), [target(target_proxy)])
    assert mirror.manifest(path, "1") == origin.manifest(path, "1")
    assert [seen for seen in target_proxy.requests if any(blob in seen.path for blob in old.layers)] == []
    assert target_proxy.count(".*", f".*/manifests/{old.digest}") <= 1


def test_identical_image_costs_one_request(
    box: DistributeBox, target_proxy: FaultProxy, origin: Registry, mirror: Registry, path: str
) -> None:
    """A target whose tag is already right is asked once, and nothing is sent."""
    image = put_image(origin, path, "1", layers=[1_000] * 10, seed=path)
    box.copy(source(origin, path), [target(mirror)])
    job = box.copy(source(origin, path), [target(target_proxy)])
    asked = [(seen.method, seen.path) for seen in target_proxy.requests]
    assert asked == [("HEAD", f"/v2/{path}/manifests/1")]
    assert results(job)[target_proxy.url]["digest"] == image.digest


def test_same_registry_mounts(box: DistributeBox, source_proxy: FaultProxy, origin: Registry, path: str) -> None:
    """A copy within one registry moves no bytes: all blobs are mounted."""
    image = put_image(origin, path, "1", layers=[MIB, 1_000], seed=path)
    there = f"{path}/copy"
    job = box.copy(source(source_proxy, path), [target(source_proxy, image=there)])
    assert origin.manifest(there, "1") == origin.manifest(path, "1")
    assert source_proxy.count("GET", ".*/blobs/.*") == 0
    assert source_proxy.count("PUT|PATCH", ".*/blobs/.*") == 0
    told = results(job)[source_proxy.url]
    assert (told["sent_bytes"], told["mounted_bytes"]) == (0, image.blobs_bytes)


def test_refused_mounts_are_sent(box: DistributeBox, origin: Registry, mirrors: Mirrors, path: str) -> None:
    """Where a mount is answered with an upload session, the blob is sent through it."""
    image = put_image(origin, path, "1", layers=[MIB], seed=path)
    with FaultProxy(origin.host) as source_proxy, FaultProxy(mirrors[0].host) as target_proxy:
        # A job that goes to two repositories of one registry knows the second one's blobs from the first.
        targets = [target(target_proxy), target(target_proxy, image=f"{path}/second")]
        box.copy(source(source_proxy, path), targets)
        sent = target_proxy.received_bytes("PUT|PATCH", ".*/blobs/.*")
    assert mirrors[0].digest(path, "1") == mirrors[0].digest(f"{path}/second", "1") == image.digest
    assert image.blobs_bytes <= sent <= 2 * image.blobs_bytes


def test_overwrite(box: DistributeBox, origin: Registry, mirrors: Mirrors, path: str) -> None:
    """Another image under the tag stays, and is told of as skipped, unless it may be overwritten."""
    image = put_image(origin, path, "1", seed="new")
    old = put_image(mirrors[0], path, "1", seed="old")
    put_image(mirrors[1], path, "1", seed="old")
    answer = box.post(source(origin, path), [target(mirrors[0]), target(mirrors[1], overwrite=True)])
    until(lambda: box.status(answer.json["id"])["finished_at"] is not None, what="the end")
    status = box.status(answer.json["id"])
    assert status["value"] == "FINISHED"
    assert (status["skipped_clusters"], status["finished_endpoints"]) == ([mirrors[0].url], [mirrors[1].url])
    assert mirrors[0].digest(path, "1") == old.digest
    assert mirrors[1].digest(path, "1") == image.digest
