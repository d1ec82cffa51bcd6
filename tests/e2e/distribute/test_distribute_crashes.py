"""`kill -9` and SIGTERM in mid-copy: the job goes on after the restart from what is there already."""

import re
from collections import Counter

import pytest

from harness.client import stopped_after_s
from harness.distribute_box import MIB, DistributeBox, check_copied, has_tag, source, target
from harness.images import Image, put_image, put_index
from harness.processes import untaken_bytes
from harness.proxy import FaultProxy, StallRequest
from harness.registry import Registry
from harness.tag_watch import never_half
from harness.waiting import until
from imagejobd.model.failpoint import EXIT_STATUS

Mirrors = tuple[Registry, Registry, Registry]

BLOB_PUTS = ".*/blobs/uploads/.*"
LAYERS = 6
# More than lies in the system's buffers between two ends of a connection.
LARGE = 16 * MIB


def many_layers(origin: Registry, path: str) -> Image:
    children = [
        put_image(origin, path, platform=platform, seed=(path, platform), layers=[100_000] * (LAYERS // 2))
        for platform in ("linux/amd64", "linux/arm64")
    ]
    return put_index(origin, path, "1", children)


def commits(proxy: FaultProxy) -> Counter[str]:
    """How often each blob was committed: a PUT that names it and was answered 201."""
    puts = [seen for seen in proxy.seen("PUT", BLOB_PUTS) if seen.status == 201]
    return Counter(
        match[1] for seen in puts if (match := re.search(r"digest=(sha256(?::|%3A)[0-9a-f]{64})", seen.path))
    )


@pytest.mark.parametrize("place", ["after_blob", "after_blob:4", "before_tag", "after_outcomes", "before_finish"])
def test_a_crash_sends_nothing_twice(
    target_proxy: FaultProxy, origin: Registry, mirrors: Mirrors, path: str, place: str
) -> None:
    """After a crash at this place the copy is finished, no blob is committed twice, and no tag ever lied."""
    image = many_layers(origin, path)
    with DistributeBox(failpoints=place) as box, never_half(image, mirrors[0], path):
        uuid = box.distribute(source(origin, path), [target(target_proxy), target(mirrors[1])])
        assert box.daemon.wait() == EXIT_STATUS
        # The other places are passed by whichever target comes first.
        assert place != "before_finish" or len(commits(target_proxy)) == len(image.blobs)
        box.daemon.start()
        job = box.succeeded(uuid)
        assert job["crashes"] == 1
        assert box.spooled() == []
    assert set(commits(target_proxy).values()) == {1}
    assert len(commits(target_proxy)) == len(image.blobs)
    check_copied(image, origin, path, *mirrors[:2])


def test_kill_in_mid_blob(
    source_proxy: FaultProxy, target_proxy: FaultProxy, origin: Registry, mirrors: Mirrors, path: str
) -> None:
    """Killed while a blob is half sent, the daemon sends that one again, and none of those that were done."""
    image = put_image(origin, path, "1", layers=[LARGE, 1_000, 2_000], seed=path)
    target_proxy.add("PUT|PATCH", f"{BLOB_PUTS}{image.layers[0].removeprefix('sha256:')}.*", StallRequest(MIB))
    small = set(image.blobs) - {image.layers[0]}
    with DistributeBox() as box, never_half(image, mirrors[0], path):
        uuid = box.distribute(source(source_proxy, path), [target(target_proxy), target(mirrors[1])])
        until(lambda: all(mirrors[0].has_blob(path, blob) for blob in small), what="the small blobs")
        until(lambda: has_tag(mirrors[1], path), what="the other target")
        until(lambda: target_proxy.received_bytes("PUT") >= MIB, what="half a blob")
        # The upload stays stalled: the rest of it, which the kernel may have taken, would arrive after all.
        box.daemon.kill()
        reads = source_proxy.count("GET", ".*/blobs/.*")
        box.daemon.start()
        box.succeeded(uuid)
    target_proxy.release()
    assert set(commits(target_proxy).values()) == {1}
    # Only what was missing is read again, and for the target that misses it.
    assert source_proxy.count("GET", ".*/blobs/.*") == reads + 1
    check_copied(image, origin, path, *mirrors[:2])


def test_stop_interrupts_and_resumes(target_proxy: FaultProxy, origin: Registry, mirrors: Mirrors, path: str) -> None:
    """SIGTERM ends a copy that does not end by itself; the next start goes on with it, at no attempt's cost."""
    image = put_image(origin, path, "1", layers=[LARGE, 1_000], seed=path)
    target_proxy.add("PUT|PATCH", f"{BLOB_PUTS}{image.layers[0].removeprefix('sha256:')}.*", StallRequest(MIB))
    with DistributeBox(server={"drain_timeout_s": 1.0}) as box, never_half(image, mirrors[0], path):
        uuid = box.distribute(source(origin, path), [target(target_proxy)])
        until(lambda: target_proxy.received_bytes("PUT|PATCH") >= MIB, what="half of the blob")
        # The upload would stay stalled for good.
        assert box.daemon.terminate(timeout_s=20).code == 0
        target_proxy.release()
        box.daemon.start()
        job = box.succeeded(uuid)
    assert (job["attempt"], job["crashes"]) == (1, 0)
    check_copied(image, origin, path, mirrors[0])


def test_cancel_stops_the_transfer(
    box: DistributeBox,
    source_proxy: FaultProxy,
    target_proxy: FaultProxy,
    origin: Registry,
    mirrors: Mirrors,
    path: str,
) -> None:
    """A cancelled copy ends within 2 s and lets go of both registries, leaves no tag, and disturbs no other job."""
    image = put_image(origin, path, "1", layers=[LARGE], seed=path)
    target_proxy.add("PUT|PATCH", BLOB_PUTS, StallRequest(MIB), times=None)
    uuid = box.distribute(source(source_proxy, path), [target(target_proxy)])
    other = box.distribute(source(source_proxy, path), [target(mirrors[1])])
    until(lambda: target_proxy.received_bytes("PUT|PATCH") >= MIB, what="an upload under way")
    until(lambda: untaken_bytes(target_proxy.port) > 0, what="it to be stuck")
    assert box.cancel(uuid) == 202
    ended = box.ended(uuid)
    assert ended["state"] == "cancelled"
    assert stopped_after_s(ended) < 2
    until(lambda: untaken_bytes(target_proxy.port) == 0, what="the upload's connection to be closed")
    box.succeeded(other)
    until(lambda: source_proxy.open_requests() == [], what="the source's connections to be closed")
    assert box.spooled() == []
    assert mirrors[0].tags(path) == []
    assert mirrors[1].digest(path, "1") == image.digest
