"""A target that is slow, goes away or refuses is its own affair: the others get their image as fast as they can."""

from harness.distribute_box import MIB, DistributeBox, check_copied, has_tag, source, target
from harness.images import Image, put_image
from harness.proxy import Answer, CutRequest, FaultProxy, StallRequest, ThrottleRequest
from harness.registry import Registry
from harness.waiting import until

Mirrors = tuple[Registry, Registry, Registry]

BLOB_PUTS = ".*/blobs/uploads/.*"
# More than lies in the system's buffers between two ends of a connection.
LARGE = 16 * MIB
RSS_MAX_BYTES = 150 * MIB


def test_slow_target_holds_up_nobody(source_proxy: FaultProxy, origin: Registry, mirrors: Mirrors, path: str) -> None:
    """Beside one target that would take minutes the fast ones finish, in bounded memory, from one read."""
    size = 48 * MIB
    image = put_image(origin, path, "1", layers=[size // 2] * 2, seed=path)
    slow, *fast = mirrors
    with FaultProxy(slow.host) as slow_proxy, DistributeBox() as box:
        slow_proxy.add("PUT|PATCH", BLOB_PUTS, ThrottleRequest(size / 240), times=None)
        uuid = box.distribute(source(source_proxy, path), [target(slow_proxy), *map(target, fast)])
        rss_bytes = [box.daemon.rss_bytes()]

        def fast_ones_done() -> bool:
            rss_bytes.append(box.daemon.rss_bytes())
            return all(has_tag(registry, path) for registry in fast)

        until(fast_ones_done, what="the fast targets")
        assert slow.digest(path, "1") is None
        assert len(box.spooled()) > 0
        slow_proxy.release()
        until(
            lambda: bool(rss_bytes.append(box.daemon.rss_bytes())) or box.job(uuid)["finished_at"] is not None,
            timeout_s=60,
            what="the slow target",
        )
        box.succeeded(uuid)
        assert box.spooled() == []
    assert max(rss_bytes) < RSS_MAX_BYTES
    assert source_proxy.sent_bytes("GET", ".*/blobs/.*") == image.blobs_bytes
    check_copied(image, origin, path, *mirrors)


def test_slow_target_of_many_layers(
    source_proxy: FaultProxy, target_proxy: FaultProxy, origin: Registry, mirrors: Mirrors, path: str
) -> None:
    """Nor is anybody held up, or anything read twice, where a slow target takes a few of many blobs at a time."""
    image = put_image(origin, path, "1", layers=[MIB] * 24, seed=path)
    target_proxy.add("PUT|PATCH", BLOB_PUTS, ThrottleRequest(MIB / 10), times=None)
    with DistributeBox() as box:
        uuid = box.distribute(source(source_proxy, path), [target(target_proxy), target(mirrors[1])])
        until(lambda: has_tag(mirrors[1], path), what="the fast target")
        assert not has_tag(mirrors[0], path)
        target_proxy.release()
        box.succeeded(uuid)
    assert source_proxy.sent_bytes("GET", ".*/blobs/.*") == image.blobs_bytes
    check_copied(image, origin, path, *mirrors[:2])


def test_target_dies_in_mid_blob(origin: Registry, mirrors: Mirrors, path: str) -> None:
    """The others finish; the one that went away gets its image when it is back, or is at last named alone."""
    image = put_image(origin, path, "1", layers=[LARGE], seed=path)
    with (
        Registry() as returning,
        Registry() as lost,
        FaultProxy(returning.host) as returning_proxy,
        FaultProxy(lost.host) as lost_proxy,
        DistributeBox(limits={"retry_for_s": 0.6}) as box,
    ):
        jobs = {}
        for registry, proxy in ((returning, returning_proxy), (lost, lost_proxy)):
            proxy.add("PUT|PATCH", puts_of(image), StallRequest(MIB))
            jobs[registry] = box.post(
                source(origin, path), [target(proxy), *(target(mirror, overwrite=True) for mirror in mirrors)]
            ).json["id"]
            until(lambda p=proxy: p.received_bytes() >= MIB, what="the upload to be under way")
            registry.stop()
            proxy.release()
        until(lambda: all(has_tag(registry, path) for registry in mirrors), what="the other three")
        until(lambda: has_failed_once(box, jobs[returning]), what="the first attempt to end")
        returning.start()
        box.succeeded(jobs[returning])
        check_copied(image, origin, path, returning, *mirrors)
        others = [registry.url for registry in mirrors]
        assert box.status(jobs[returning])["finished_endpoints"] == [returning_proxy.url, *others]
        box.failed(jobs[lost])
        status = box.status(jobs[lost])
        assert (status["value"], status["finished_endpoints"]) == ("FAILED", others)
        [failed] = status["failed_endpoints"]
        assert failed["endpoint"] == lost_proxy.url
        assert lost_proxy.host in failed["error"]


def puts_of(image: Image) -> str:
    """The paths of uploads of its first layer."""
    return f"{BLOB_PUTS}{image.layers[0].removeprefix('sha256:')}.*"


def has_failed_once(box: DistributeBox, uuid: str) -> bool:
    job = box.job(uuid)
    return bool(job["state"] == "queued" or job["attempt"] > 1)


def test_cut_upload_is_begun_anew(
    box: DistributeBox,
    source_proxy: FaultProxy,
    target_proxy: FaultProxy,
    origin: Registry,
    mirrors: Mirrors,
    path: str,
) -> None:
    """An upload that is cut is sent again in a new session, in the same attempt; the other targets notice nothing."""
    image = put_image(origin, path, "1", layers=[4 * MIB], seed=path)
    target_proxy.add("PUT|PATCH", puts_of(image), CutRequest(2 * MIB))
    job = box.copy(source(source_proxy, path), [target(target_proxy), *map(target, mirrors[1:])])
    assert job["attempt"] == 1
    check_copied(image, origin, path, *mirrors)
    assert len({seen.path for seen in target_proxy.seen("PUT", puts_of(image))}) == 2
    assert source_proxy.sent_bytes("GET", ".*/blobs/.*") <= 2 * image.blobs_bytes


def test_refused_tag_leaves_an_error(
    box: DistributeBox, target_proxy: FaultProxy, origin: Registry, mirrors: Mirrors, path: str
) -> None:
    """A target that takes blobs but denies the tag fails with the registry's own words; the others are done."""
    image = put_image(origin, path, "1")
    denied = Answer(403, {}, b'{"errors":[{"code":"DENIED","message":"tags of this project are frozen"}]}')
    target_proxy.add("PUT", ".*/manifests/1", denied, times=None)
    job = box.failed(box.distribute(source(origin, path), [target(target_proxy), target(mirrors[1])]))
    assert "tags of this project are frozen" in str(job["error"]) + str(job["result"])
    assert mirrors[0].tags(path) == []
    check_copied(image, origin, path, mirrors[1])


def test_busy_host_is_left_alone(
    box: DistributeBox, target_proxy: FaultProxy, origin: Registry, mirrors: Mirrors, path: str
) -> None:
    """After 429 with Retry-After no request begins at that host until it is over, and other hosts are not held up."""
    image = put_image(origin, path, "1", layers=[1_000] * 12, seed=path)
    target_proxy.add("POST", ".*", Answer(429, {"Retry-After": "8"}))
    uuid = box.distribute(source(origin, path), [target(target_proxy), target(mirrors[1])])
    until(lambda: any(seen.status == 429 for seen in target_proxy.requests), what="429")
    # It waits for a moment, so that one read may serve both.
    until(lambda: has_tag(mirrors[1], path), timeout_s=7, what="the other target, while the busy one is left alone")
    assert box.succeeded(uuid)["attempt"] == 1
    [busy] = [seen for seen in target_proxy.requests if seen.status == 429]
    later = [seen.came_at - busy.ended_at for seen in target_proxy.requests if seen.came_at > busy.ended_at]
    # Those under way at that moment may still arrive.
    assert [seconds for seconds in later if 3 < seconds < 7.9] == []
    check_copied(image, origin, path, *mirrors[:2])
