"""One image to many repositories: what is asked and sent, in which order. Real registries, watched by proxies."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness import images
from harness.images import Image
from harness.proxy import Answer, CutRequest, FaultProxy, FlipByte, StallRequest, StallResponse, ThrottleRequest
from harness.registry import Registry
from harness.waiting import until
from imagejobd.model.egress import Egress
from imagejobd.model.errors import ErrorCode, Permanent, Temporary
from imagejobd.registry import blobs as blobs_module
from imagejobd.registry.client import RegistryClient
from imagejobd.registry.copy.fanout import Fanout
from imagejobd.registry.copy.image import Options, copy_image
from imagejobd.registry.copy.target import Outcome, TagState, Tally, Target
from imagejobd.registry.copy.transfer import Copier, Holdings
from imagejobd.registry.hosts import RegistryHost, RegistryTarget
from imagejobd.registry.proxies import Proxies
from imagejobd.registry.repository import Repository

MIB = 1 << 20
# More than two kernels and a window take on the way to a target that does not read.
LONG_BYTES = 24 * MIB
SLOW_BYTES_PER_S = 100_000
LONG_PERIOD_S = 4.0
UPLOADS = "/v2/.*/blobs/uploads/.*"
BLOBS = "/v2/.*/blobs/sha256:.*"
MANIFESTS = "/v2/.*/manifests/.*"


class Desk:
    """Copies images as one job would, and keeps the `lines` for people, the targets as they ended, and its spool files
    in `folder`."""

    def __init__(self, client: RegistryClient, folder: Path, streams_max: int = 4) -> None:
        self.folder = folder
        self.spool_files = 0
        self.lines: list[str] = []
        self.ends: list[int] = []
        self.tallies: Sequence[Tally] = ()
        self._client = client
        self._copier = Copier(self._spool_file, streams_max=streams_max, window_bytes=MIB, spool_max_bytes=1 << 30)
        self._holdings = Holdings()

    def share(self, other: "Desk") -> None:
        """Be another job of the same daemon."""
        self._copier = other._copier

    def at(self, host: str, path: str, *, may_push: bool = False) -> Repository:
        connection = self._client.connect(RegistryTarget(host=host, scheme="http"))
        return Repository(connection=connection, path=path, may_push=may_push)

    def to(self, host: str, path: str = "team/app", names: tuple[str, ...] = ("1",), **more: bool) -> Target:
        return Target(repository=self.at(host, path, may_push=True), names=names, **more)

    async def copy(self, source: Repository, name: str, *targets: Target, **options: object) -> list[Outcome]:
        """The outcomes in the order of the targets."""
        outcomes: dict[int, Outcome] = {}

        async def ended(index: int, outcome: Outcome) -> None:
            assert index not in outcomes
            outcomes[index] = outcome
            self.ends.append(index)

        async def say(line: str) -> None:
            self.lines.append(line)

        self.tallies = [Tally() for _ in targets]
        what = Options(**options)  # type: ignore[arg-type]
        await copy_image(self._copier, source, name, targets, self.tallies, what, self._holdings, ended=ended, say=say)
        return [outcomes[index] for index in range(len(targets))]

    @contextmanager
    def _spool_file(self) -> Iterator[Path]:
        self.spool_files += 1
        path = self.folder / f"spool-{self.spool_files}"
        yield path
        path.unlink()


@pytest.fixture
async def client() -> AsyncIterator[RegistryClient]:
    async with RegistryClient({}, Egress(), proxies=Proxies({})) as client:
        yield client


@pytest.fixture
def desk(client: RegistryClient, tmp_path: Path) -> Desk:
    return Desk(client, tmp_path)


@pytest.fixture
def targets() -> Iterator[list[Registry]]:
    """Two empty registries."""
    with Registry() as one, Registry() as two:
        yield [one, two]


@pytest.fixture
def watched(targets: list[Registry]) -> Iterator[FaultProxy]:
    """The first target, behind a proxy that counts."""
    with FaultProxy(targets[0].host) as proxy:
        yield proxy


@pytest.fixture
def image(registry: Registry) -> Image:
    return images.put_image(registry, "team/app", "1", layers=(300_000, 2_000_000, 10), seed="copy")


async def reached(condition: Callable[[], object], what: str) -> None:
    await asyncio.to_thread(until, condition, what=what)


def puts(proxy: FaultProxy) -> list[str]:
    return [seen.path for seen in proxy.requests if seen.method == "PUT"]


async def test_bytes_stay_as_they_are(desk: Desk, registry: Registry, targets: list[Registry], image: Image) -> None:
    """Every target has the very manifest and blobs, and its outcome says what that took."""
    there = [desk.to(target.host) for target in targets]
    for outcome, target in zip(await desk.copy(desk.at(registry.host, "team/app"), "1", *there), targets, strict=True):
        assert outcome.fault is None
        assert (outcome.tags, outcome.digest) == ({"1": TagState.COPIED}, image.digest)
        assert outcome.tally.sent_bytes == outcome.tally.total_bytes == image.blobs_bytes
        assert target.manifest("team/app", "1") == registry.manifest("team/app", "1")
        assert all(target.has_blob("team/app", blob) for blob in image.blobs)


async def test_again_costs_one_request(desk: Desk, registry: Registry, watched: FaultProxy, image: Image) -> None:
    """An image that is there already takes one request for each tag, and nothing is sent."""
    source, target = desk.at(registry.host, "team/app"), desk.to(watched.host, names=("1", "latest"))
    await desk.copy(source, "1", target)
    before = len(watched.requests)
    (outcome,) = await desk.copy(source, "1", target)
    assert outcome.tags == {"1": TagState.IDENTICAL, "latest": TagState.IDENTICAL}
    assert outcome.digest == image.digest
    assert [seen.method for seen in watched.requests[before:]] == ["HEAD", "HEAD"]


async def test_tags_of_others(desk: Desk, registry: Registry, targets: list[Registry], image: Image) -> None:
    """A tag that points elsewhere is left alone, unless it may be overwritten."""
    before = [images.put_image(target, "team/app", "1", seed="another").digest for target in targets]
    kept, moved = await desk.copy(
        desk.at(registry.host, "team/app"), "1", desk.to(targets[0].host), desk.to(targets[1].host, overwrite=True)
    )
    assert (kept.tags, kept.fault) == ({"1": TagState.SKIPPED}, None)
    assert moved.tags == {"1": TagState.COPIED}
    assert [target.digest("team/app", "1") for target in targets] == [before[0], image.digest]


async def test_order(desk: Desk, registry: Registry, watched: FaultProxy) -> None:
    """Blobs first, then children, then the index under its tag: wherever it stops, no tag points at half an image."""
    inner = images.put_index(registry, "deep", None, images.put_children(registry, "deep", 2, seed="order"))
    top = images.put_index(registry, "deep", "1", [images.put_image(registry, "deep", seed="beside"), inner])
    (outcome,) = await desk.copy(desk.at(registry.host, "deep"), "1", desk.to(watched.host, "deep"))
    assert outcome.fault is None
    put = puts(watched)
    first_manifest = next(n for n, path in enumerate(put) if "/manifests/" in path)
    assert all("/manifests/" in path for path in put[first_manifest:])
    names = [path.rpartition("/")[2] for path in put[first_manifest:]]
    assert names[-1] == "1"
    assert names.index(inner.digest) > max(names.index(child) for child in inner.manifests[:-1])
    assert set(names) == {*top.manifests[:-1], "1"}


async def test_present_child(desk: Desk, registry: Registry, targets: list[Registry], watched: FaultProxy) -> None:
    """A child that the target has is asked for once; what lies below it is neither fetched nor asked for."""
    children = [images.put_image(registry, "multi", seed=("child", number)) for number in range(3)]
    images.put_index(registry, "multi", "1", children)
    for child in children[:2]:
        await desk.copy(
            desk.at(registry.host, "multi"), child.digest, desk.to(targets[0].host, "multi", (child.digest,))
        )
    with FaultProxy(registry.host) as source:
        (outcome,) = await desk.copy(desk.at(source.host, "multi"), "1", desk.to(watched.host, "multi"))
        assert outcome.tags == {"1": TagState.COPIED}
        fetched = {seen.path.rpartition("/")[2] for seen in source.requests if "/blobs/" in seen.path}
        assert fetched == set(children[2].blobs)
        assert not any(child.digest in seen.path for child in children[:2] for seen in source.requests)
    assert {
        seen.path.rpartition("/")[2] for seen in watched.requests if seen.method == "HEAD" and "/blobs/" in seen.path
    } == set(children[2].blobs)


async def test_one_more_tag(desk: Desk, registry: Registry, watched: FaultProxy, image: Image) -> None:
    """An image that is there under another tag only gets its tag."""
    source = desk.at(registry.host, "team/app")
    await desk.copy(source, "1", desk.to(watched.host))
    before = len(puts(watched))
    await desk.copy(source, "1", desk.to(watched.host, names=("2",)))
    assert puts(watched)[before:] == ["/v2/team/app/manifests/2"]
    assert watched.count("HEAD", BLOBS) == len(image.blobs)


async def test_lying_head(
    desk: Desk, registry: Registry, watched: FaultProxy, targets: list[Registry], image: Image
) -> None:
    """What a target says it has and has not is sent after all: that, and nothing else again."""
    with registry.request("HEAD", f"/v2/team/app/blobs/{image.layers[0]}") as answer:
        length = answer.headers["Content-Length"]
    watched.add("HEAD", f"/v2/.*/blobs/{image.layers[0]}", Answer(200, {"Content-Length": length}), times=None)
    (outcome,) = await desk.copy(desk.at(registry.host, "team/app"), "1", desk.to(watched.host))
    assert outcome.fault is None
    assert targets[0].manifest("team/app", "1") == registry.manifest("team/app", "1")
    assert (outcome.tally.sent_bytes, outcome.tally.skipped_bytes) == (image.blobs_bytes, 0)
    assert watched.count("PUT", UPLOADS) == len(image.blobs)
    assert any("sending that again" in line for line in desk.lines)


async def test_target_that_never_has_enough(desk: Desk, registry: Registry, watched: FaultProxy, image: Image) -> None:
    """One that still misses what was sent twice has failed for good: nobody sends a third time."""
    missed = {"errors": [{"code": "MANIFEST_BLOB_UNKNOWN", "detail": {"digest": image.layers[0]}}]}
    watched.add("PUT", MANIFESTS, Answer(404, body=json.dumps(missed).encode()), times=None)
    (outcome,) = await desk.copy(desk.at(registry.host, "team/app"), "1", desk.to(watched.host))
    assert isinstance(outcome.fault, Permanent)
    assert watched.count("PUT", MANIFESTS) == 2


async def test_missing_child(desk: Desk, registry: Registry, targets: list[Registry]) -> None:
    """An index of which the source lacks a child fails as such, and names it."""
    children = images.put_children(registry, "sparse", 3, seed="sparse")
    images.put_index(registry, "sparse", "1", children)
    registry.delete_manifest("sparse", children[1].digest)
    outcomes = await desk.copy(desk.at(registry.host, "sparse"), "1", *(desk.to(t.host, "sparse") for t in targets))
    for outcome in outcomes:
        assert outcome.fault is not None
        assert outcome.fault.code is ErrorCode.NOT_FOUND
        assert children[1].digest in outcome.fault.message


async def test_defects_are_no_successes(
    desk: Desk, registry: Registry, targets: list[Registry], image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A defect of ours ends the copy with itself, not with an outcome."""

    def broken(*_: object) -> bool:
        raise RuntimeError("a defect")

    monkeypatch.setattr(Repository, "has_blob", broken)
    with pytest.raises(RuntimeError, match="a defect"):
        await desk.copy(desk.at(registry.host, "team/app"), "1", *(desk.to(target.host) for target in targets))


async def test_tag_of_others_meanwhile(
    desk: Desk, registry: Registry, watched: FaultProxy, targets: list[Registry], image: Image
) -> None:
    """A tag that somebody made while the blobs were on their way is not overwritten either."""
    watched.add("PUT", UPLOADS, StallRequest(after_bytes=100_000))
    copy = asyncio.create_task(desk.copy(desk.at(registry.host, "team/app"), "1", desk.to(watched.host)))
    await asyncio.to_thread(watched.wait_for, "PUT", UPLOADS, timeout_s=10)
    before = images.put_image(targets[0], "team/app", "1", seed="meanwhile").digest
    watched.release()
    (outcome,) = await copy
    assert (outcome.tags, outcome.fault) == ({"1": TagState.SKIPPED}, None)
    assert targets[0].digest("team/app", "1") == before


async def test_silent_target(
    desk: Desk, registry: Registry, watched: FaultProxy, targets: list[Registry], image: Image
) -> None:
    """A target that does not answer keeps nobody from the image."""
    watched.add("HEAD", MANIFESTS, StallResponse(), times=None)
    targets_of_copy = desk.to(watched.host), desk.to(targets[1].host)
    copy = asyncio.create_task(desk.copy(desk.at(registry.host, "team/app"), "1", *targets_of_copy))
    await asyncio.to_thread(until, lambda: targets[1].digest("team/app", "1") is not None, timeout_s=10, what="the tag")
    assert not copy.done()
    watched.release()
    silent, fine = await copy
    assert (silent.fault, fine.fault) == (None, None)


async def test_bent_mirror(registry: Registry, targets: list[Registry], image: Image, tmp_path: Path) -> None:
    """Where a mirror has other bytes under a digest, the registry itself is read."""
    plain = RegistryHost(plain_http=True)
    with FaultProxy(registry.host) as mirror:
        mirror.add("GET", BLOBS, FlipByte(5), times=None)
        hosts = {registry.host: RegistryHost(plain_http=True, mirrors=(mirror.host,)), mirror.host: plain}
        async with RegistryClient(hosts, Egress(), proxies=Proxies({})) as client:
            desk = Desk(client, tmp_path)
            (outcome,) = await desk.copy(desk.at(registry.host, "team/app"), "1", desk.to(targets[0].host))
        assert mirror.count("GET", BLOBS) == len(image.blobs)
    assert outcome.fault is None
    assert targets[0].digest("team/app", "1") == image.digest


async def test_faults_stay_apart(desk: Desk, registry: Registry, targets: list[Registry], image: Image) -> None:
    """A target that refuses is its own affair: the others get the image, and its outcome says why it has not."""
    with Registry(read_only=True) as closed:
        refused, fine = await desk.copy(
            desk.at(registry.host, "team/app"), "1", desk.to(closed.host), desk.to(targets[0].host)
        )
    assert refused.fault is not None
    assert "read-only" in refused.fault.message
    assert refused.tags == {"1": TagState.WANTED}
    assert fine.fault is None
    assert targets[0].digest("team/app", "1") == image.digest


async def test_nothing_there(desk: Desk, registry: Registry, targets: list[Registry]) -> None:
    """An image that the source does not have is every target's fault, and names itself."""
    outcomes = await desk.copy(desk.at(registry.host, "team/app"), "no-such", *(desk.to(t.host) for t in targets))
    for outcome in outcomes:
        assert outcome.fault is not None
        assert outcome.fault.code is ErrorCode.NOT_FOUND
        assert "team/app has no no-such" in outcome.fault.message


async def test_mounts(desk: Desk, registry: Registry, image: Image) -> None:
    """Within one registry no byte moves: blobs are mounted from where they lie."""
    with FaultProxy(registry.host) as proxy:
        (outcome,) = await desk.copy(desk.at(proxy.host, "team/app"), "1", desk.to(proxy.host, "other/mounted"))
        assert proxy.count("PUT", UPLOADS) == proxy.count("GET", BLOBS) == 0
    assert outcome.tally.mounted_bytes == image.blobs_bytes
    assert registry.digest("other/mounted", "1") == image.digest


async def test_mounts_of_what_was_brought(desk: Desk, registry: Registry, watched: FaultProxy) -> None:
    """A layer that one image of a job brought is mounted for the next one."""
    first = images.put_image(registry, "team/one", "1", layers=(200_000,), seed="shared")
    images.put_image(registry, "team/two", "1", layers=(200_000,), seed="shared", annotations={"not": "the same"})
    await desk.copy(desk.at(registry.host, "team/one"), "1", desk.to(watched.host, "one"))
    (outcome,) = await desk.copy(desk.at(registry.host, "team/two"), "1", desk.to(watched.host, "two"))
    assert outcome.tally.mounted_bytes == first.blobs_bytes
    assert watched.count("PUT", "/v2/two/blobs/.*") == 0


async def test_dry_run(desk: Desk, registry: Registry, watched: FaultProxy, image: Image) -> None:
    """A dry run says what would be sent, and changes nothing."""
    source, target = desk.at(registry.host, "team/app"), desk.to(watched.host, names=("1", "2"))
    (outcome,) = await desk.copy(source, "1", target, dry_run=True)
    assert outcome.tags == {"1": TagState.WANTED, "2": TagState.WANTED}
    assert (outcome.digest, outcome.fault) == (image.digest, None)
    assert outcome.tally.total_bytes == image.blobs_bytes
    assert {seen.method for seen in watched.requests} == {"HEAD"}


@pytest.mark.parametrize("options", [{}, {"referrers": True}])
async def test_a_source_whose_head_is_wrong(
    desk: Desk, registry: Registry, targets: list[Registry], image: Image, options: dict[str, bool]
) -> None:
    """What HEAD says of a tag may be wrong, or old by now: what was hashed is copied, and is found again."""
    headers = {"Docker-Content-Digest": f"sha256:{'f' * 64}", "Content-Length": "7"}
    with FaultProxy(registry.host) as liar:
        liar.add("HEAD", "/v2/.*/manifests/1", Answer(200, headers), times=None)
        for expected in (TagState.COPIED, TagState.IDENTICAL):
            target = desk.to(targets[0].host, overwrite=True)
            (outcome,) = await desk.copy(desk.at(liar.host, "team/app"), "1", target, **options)
            assert (outcome.fault, outcome.tags) == (None, {"1": expected})
            assert outcome.digest == outcome.source_digest == image.digest
    assert targets[0].digest("team/app", "1") == image.digest


async def test_platforms(desk: Desk, registry: Registry, targets: list[Registry]) -> None:
    """Only the wanted platform is read and sent, below an index of its own; the outcome and the log name it."""
    arms = [images.put_image(registry, "arch", platform=f"linux/{name}", seed=name) for name in ("arm64", "amd64")]
    whole = images.put_index(registry, "arch", "1", arms)
    (outcome,) = await desk.copy(
        desk.at(registry.host, "arch"), "1", desk.to(targets[0].host, "arch"), platforms=("linux/arm64",)
    )
    assert outcome.fault is None
    assert outcome.digest == targets[0].digest("arch", "1") != whole.digest
    assert targets[0].digest("arch", arms[0].digest)
    assert targets[0].digest("arch", arms[1].digest) is None
    assert f"index {whole.digest} becomes {outcome.digest}" in "".join(desk.lines)


async def test_referrers(desk: Desk, registry: Registry, targets: list[Registry], watched: FaultProxy) -> None:
    """What refers to the image goes with it, also where the image is there already; it is listed at the target, and is
    there before the tag is."""
    app = images.put_image(registry, "signed", "1", seed="signed")
    sbom = images.put_image(registry, "signed", subject=app, artifact_type="application/spdx+json", seed="sbom")
    about_sbom = images.put_image(registry, "signed", subject=sbom, artifact_type="application/x-note", seed="note")
    for subject, referrer in ((app, sbom), (sbom, about_sbom)):
        images.put_index(registry, "signed", subject.digest.replace(":", "-"), [referrer])
    signature = images.put_image(registry, "signed", f"{app.digest.replace(':', '-')}.sig", seed="signature")
    source = desk.at(registry.host, "signed")
    await desk.copy(source, "1", desk.to(targets[1].host, "signed"))
    first, second = await desk.copy(
        source, "1", desk.to(watched.host, "signed"), desk.to(targets[1].host, "signed"), referrers=True
    )
    assert (first.fault, second.fault) == (None, None)
    assert second.tags == {"1": TagState.IDENTICAL}
    for target in targets:
        repository = desk.at(target.host, "signed")
        assert [found.digest for found in await repository.referrers(app.digest)] == [sbom.digest]
        assert [found.digest for found in await repository.referrers(sbom.digest)] == [about_sbom.digest]
        assert target.digest("signed", f"{app.digest.replace(':', '-')}.sig") == signature.digest
    assert puts(watched)[-1] == "/v2/signed/manifests/1"


async def test_cancelled(desk: Desk, registry: Registry, watched: FaultProxy, targets: list[Registry]) -> None:
    """Giving up in the middle ends the upload at once, and leaves no tag, no task, no file and no upload session."""
    images.put_image(registry, "team/app", "1", layers=(LONG_BYTES,), seed="cancelled")
    watched.add("PUT", UPLOADS, ThrottleRequest(bytes_per_s=SLOW_BYTES_PER_S), times=None)
    there = desk.to(watched.host), desk.to(targets[1].host)
    copy = asyncio.create_task(desk.copy(desk.at(registry.host, "team/app"), "1", *there))
    # The other target is served meanwhile, so the slow one goes on from a file.
    await reached(lambda: desk.ends == [1], "the quick target's end")
    assert desk.spool_files == 1
    copy.cancel()
    await asyncio.wait([copy])
    assert copy.cancelled()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert not [path for path in puts(watched) if "/manifests/" in path]
    assert list(desk.folder.iterdir()) == []
    open_sessions = {seen.path.partition("?")[0] for seen in watched.seen("PUT", UPLOADS) if seen.status is None}
    assert {seen.path.partition("?")[0] for seen in watched.seen("DELETE", UPLOADS)} == open_sessions != set()


async def test_second_target_in_one_registry(
    desk: Desk, registry: Registry, watched: FaultProxy, targets: list[Registry], image: Image
) -> None:
    """Of two repositories in one registry the second mounts what the first has, when it has it."""
    outcomes = await desk.copy(
        desk.at(registry.host, "team/app"), "1", desk.to(watched.host, "first"), desk.to(watched.host, "second")
    )
    assert [outcome.fault for outcome in outcomes] == [None, None]
    assert sum(outcome.tally.sent_bytes for outcome in outcomes) == image.blobs_bytes
    assert sum(outcome.tally.mounted_bytes for outcome in outcomes) == image.blobs_bytes
    assert watched.count("PUT", UPLOADS) == len(image.blobs)
    assert targets[0].digest("first", "1") == targets[0].digest("second", "1") == image.digest


async def test_mount_refused_meanwhile(
    desk: Desk, registry: Registry, watched: FaultProxy, targets: list[Registry], image: Image
) -> None:
    """Where the registry wants the bytes instead of a mount, it gets them, by a read of their own."""
    watched.add("POST", ".*mount=.*", Answer(400), times=None)
    outcomes = await desk.copy(
        desk.at(registry.host, "team/app"), "1", desk.to(watched.host, "first"), desk.to(watched.host, "second")
    )
    assert [(outcome.fault, outcome.tally.sent_bytes) for outcome in outcomes] == [(None, image.blobs_bytes)] * 2
    assert targets[0].digest("second", "1") == image.digest


@pytest.mark.parametrize("streams_max", [1, 4])
async def test_cut_upload(
    client: RegistryClient,
    tmp_path: Path,
    registry: Registry,
    targets: list[Registry],
    watched: FaultProxy,
    image: Image,
    streams_max: int,
) -> None:
    """A target whose upload is cut is served again alone, without the others, and what did not arrive is not counted;
    one place to read in is enough for that."""
    desk = Desk(client, tmp_path, streams_max)
    watched.add("PUT", f"{UPLOADS}{image.layers[1]}", CutRequest(after_bytes=500_000))
    with FaultProxy(registry.host) as source, FaultProxy(targets[1].host) as other:
        cut, fine = await desk.copy(desk.at(source.host, "team/app"), "1", desk.to(watched.host), desk.to(other.host))
        assert source.count("GET", f".*{image.layers[1]}") == 2
        assert source.count("GET", BLOBS) == len(image.blobs) + 1
        assert other.count("PUT", UPLOADS) == len(image.blobs)
    assert (cut.fault, fine.fault) == (None, None)
    assert cut.tally.sent_bytes == fine.tally.sent_bytes == image.blobs_bytes
    assert watched.count("PUT", UPLOADS) == len(image.blobs) + 1
    assert any("trying again" in line for line in desk.lines)
    assert targets[0].digest("team/app", "1") == image.digest
    assert desk.spool_files == 0


async def test_cut_uploads_of_the_only_target(
    client: RegistryClient, tmp_path: Path, registry: Registry, targets: list[Registry], watched: FaultProxy
) -> None:
    """All blobs on their way may be cut at once, as by a restart, and all are sent again."""
    image = images.put_image(registry, "team/app", "1", layers=(LONG_BYTES, LONG_BYTES + 1), seed="all at once")
    for layer in image.layers:
        watched.add("PUT", f"{UPLOADS}{layer}", CutRequest(after_bytes=500_000))
    desk = Desk(client, tmp_path, streams_max=2)
    async with asyncio.timeout(30):
        (outcome,) = await desk.copy(desk.at(registry.host, "team/app"), "1", desk.to(watched.host))
    assert (outcome.fault, outcome.tally.sent_bytes) == (None, image.blobs_bytes)
    assert targets[0].digest("team/app", "1") == image.digest


async def test_target_that_always_cuts(
    desk: Desk, registry: Registry, watched: FaultProxy, targets: list[Registry], image: Image
) -> None:
    """After three tries of one blob the rest is the job's: it fails with a fault that may be tried again, alone."""
    watched.add("PUT", UPLOADS, CutRequest(after_bytes=0), times=None)
    cut, fine = await desk.copy(
        desk.at(registry.host, "team/app"), "1", desk.to(watched.host), desk.to(targets[1].host)
    )
    assert isinstance(cut.fault, Temporary)
    assert cut.tally.sent_bytes == 0
    assert max(seen.received_bytes for seen in watched.requests) == 0
    assert fine.fault is None
    sessions = [seen.path.partition("?")[0] for seen in watched.seen("PUT", UPLOADS)]
    assert len(sessions) <= 3 * len(image.blobs)


@pytest.mark.parametrize("dead", [Answer(500), Answer(404), FlipByte(5)], ids=["failing", "missing", "corrupt"])
async def test_dead_blob(
    desk: Desk,
    registry: Registry,
    targets: list[Registry],
    image: Image,
    dead: Answer | FlipByte,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A blob that the source does not give costs it a bounded number of requests, and every target its image."""
    monkeypatch.setattr(blobs_module, "PAUSE_MAX_S", 0.01)
    there = [desk.to(target.host, path) for path in ("team/app", "second", "third") for target in targets]
    with FaultProxy(registry.host) as source:
        source.add("GET", f".*{image.layers[1]}", dead, times=None)
        outcomes = await desk.copy(desk.at(source.host, "team/app"), "1", *there)
        assert source.count("GET", f".*{image.layers[1]}") <= (2 if isinstance(dead, FlipByte) else 15)
    for outcome in outcomes:
        assert outcome.fault is not None
        assert image.layers[1] in outcome.fault.message
        assert isinstance(outcome.fault, Temporary) == (dead == Answer(500))
    for target in targets:
        assert target.digest("team/app", "1") is None
        assert not target.has_blob("team/app", image.layers[1])


async def test_slow_target(desk: Desk, registry: Registry, watched: FaultProxy, targets: list[Registry]) -> None:
    """A slow target keeps nobody waiting: the quick one has ended while most of the image is still on its way there,
    from one read of the source."""
    image = images.put_image(registry, "team/app", "1", layers=(LONG_BYTES, 3 * MIB, 1_000), seed="slow")
    watched.add("PUT", UPLOADS, ThrottleRequest(bytes_per_s=SLOW_BYTES_PER_S), times=None)
    with FaultProxy(registry.host) as source:
        there = desk.to(watched.host), desk.to(targets[1].host)
        copy = asyncio.create_task(desk.copy(desk.at(source.host, "team/app"), "1", *there))
        await reached(lambda: desk.ends == [1], "the quick target's end")
        assert watched.received_bytes() < image.blobs_bytes / 2
        assert desk.spool_files
        watched.release()
        slow, fast = await copy
        assert source.sent_bytes("GET", BLOBS) == image.blobs_bytes
    assert (slow.fault, fast.fault) == (None, None)
    assert [target.digest("team/app", "1") for target in targets] == [image.digest] * 2
    assert list(desk.folder.iterdir()) == []


async def test_a_slow_target_is_waited_for_once(
    client: RegistryClient,
    tmp_path: Path,
    registry: Registry,
    watched: FaultProxy,
    targets: list[Registry],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each of eight blobs would hold the quick target up for a period, were it not known who is slow."""
    # Longer than a busy machine takes for the blobs themselves.
    monkeypatch.setitem(Fanout.__init__.__kwdefaults__, "period_s", LONG_PERIOD_S)
    desk = Desk(client, tmp_path, streams_max=1)
    layers = [LONG_BYTES] * 8
    images.put_image(registry, "team/app", "1", layers=layers, seed="slow again")
    watched.add("PUT", UPLOADS, ThrottleRequest(bytes_per_s=SLOW_BYTES_PER_S), times=None)
    began_s = time.monotonic()
    there = desk.to(watched.host), desk.to(targets[1].host)
    copy = asyncio.create_task(desk.copy(desk.at(registry.host, "team/app"), "1", *there))
    await reached(lambda: desk.ends == [1], "the quick target's end")
    took_s = time.monotonic() - began_s
    watched.release()
    assert [outcome.fault for outcome in await copy] == [None, None]
    assert took_s < 6 * LONG_PERIOD_S


async def test_failed_target_waits_for_no_place(
    client: RegistryClient, tmp_path: Path, registry: Registry, watched: FaultProxy, targets: list[Registry]
) -> None:
    """A copy that has failed ends, though another job's blob holds the place that its own still wait for."""
    images.put_image(registry, "hog", "1", layers=(2 * MIB,), seed="hog")
    images.put_image(registry, "team/app", "1", layers=(2 * MIB, 10), seed="waiting")
    desk, other = (Desk(client, tmp_path, streams_max=1) for _ in range(2))
    other.share(desk)
    watched.add("PUT", UPLOADS, StallRequest(after_bytes=100_000), times=None)
    hog = asyncio.create_task(desk.copy(desk.at(registry.host, "hog"), "1", desk.to(watched.host, "hog")))
    await asyncio.to_thread(watched.wait_for, "PUT", UPLOADS)
    with Registry(read_only=True) as closed:
        (outcome,) = await asyncio.wait_for(
            other.copy(other.at(registry.host, "team/app"), "1", other.to(closed.host)), 10
        )
    assert outcome.fault is not None
    assert not hog.done()
    watched.release()
    assert [outcome.fault for outcome in await hog] == [None]
