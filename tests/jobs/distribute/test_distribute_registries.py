"""Distributions between real registries, on a real store and runner."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest
from distribution_bench import DistributionBench

from harness.images import put_image, put_index
from harness.proxy import Answer, CutRequest, FaultProxy
from harness.registry import PASSWORD, USERNAME, Registry
from harness.services import require
from imagejobd.jobs.distribute import copies as copies_module
from imagejobd.jobs.distribute.kind import DistributeKind
from imagejobd.jobs.distribute.spec import DistributeSettings
from imagejobd.jobs.distribute.table import CopyTable
from imagejobd.model.egress import Egress, EgressSettings
from imagejobd.model.errors import ErrorCode, Permanent
from imagejobd.model.job import Json, NewJob, State
from imagejobd.registry.client import RegistryClient
from imagejobd.registry.copy.transfer import Copier
from imagejobd.store.blobs import BlobStore
from runner.runner_bench import QUICK


@pytest.fixture(scope="module")
def target() -> Iterator[Registry]:
    """A second registry that lets everybody in."""
    require("docker-registry")
    with Registry() as registry:
        yield registry


@pytest.fixture
async def kind(tmp_path: Path) -> AsyncIterator[DistributeKind]:
    async for kind in open_kind(tmp_path, EgressSettings()):
        yield kind


async def open_kind(folder: Path, egress: EgressSettings, **bounds: int) -> AsyncIterator[DistributeKind]:
    blobs = BlobStore(folder / "state")
    settings = DistributeSettings(**bounds)
    copier = Copier(
        blobs.spool_file,
        streams_max=settings.streams_max,
        window_bytes=settings.window_bytes,
        spool_max_bytes=settings.spool_max_bytes,
    )
    async with RegistryClient({}, Egress(egress)) as client:
        yield DistributeKind(client, copier, settings)


def spec_of(source: Registry, *targets: Registry, image: str, ref: str = "1") -> Json:
    return {
        "source": {"endpoint": source.url, "image": image, "ref": ref},
        "targets": [{"endpoint": target.host} for target in targets],
    }


async def test_an_image_is_copied_and_then_found(
    bench: DistributionBench, kind: DistributeKind, registry: Registry, target: Registry
) -> None:
    """The target has the same digest; the second job sends nothing and says so."""
    image = put_image(registry, "d/one", "1", layers=(50_000, 2_000_000))
    job = await bench.run(kind, spec_of(registry, target, image="d/one"))
    assert (job.state, job.error) == (State.SUCCEEDED, None)
    assert target.digest("d/one", "1") == image.digest
    assert job.result is not None
    (row,) = job.result["images"][0]["targets"]
    assert (row["tags"], row["digest"]) == ({"1": "copied"}, image.digest)
    assert row["sent_bytes"] == image.blobs_bytes
    assert (await bench.endpoints(job)).finished == [target.host]
    again = await bench.run(kind, spec_of(registry, target, image="d/one"))
    assert again.result is not None
    (row,) = again.result["images"][0]["targets"]
    assert (row["tags"], row["sent_bytes"]) == ({"1": "identical"}, 0)


async def test_a_tag_that_is_there_is_left_alone(
    bench: DistributionBench, kind: DistributeKind, registry: Registry, target: Registry
) -> None:
    """Without overwrite the target keeps its own image and is skipped; with it the tag moves."""
    new = put_image(registry, "d/skip", "1", seed="new")
    old = put_image(target, "d/skip", "1", seed="old")
    spec = spec_of(registry, target, image="d/skip")
    job = await bench.run(kind, spec)
    assert (job.state, (await bench.endpoints(job)).skipped) == (State.SUCCEEDED, [target.host])
    assert target.digest("d/skip", "1") == old.digest
    spec["targets"][0]["overwrite"] = True
    await bench.run(kind, spec)
    assert target.digest("d/skip", "1") == new.digest


async def test_a_filter_copies_the_tags_that_it_means(
    bench: DistributionBench, kind: DistributeKind, registry: Registry, target: Registry
) -> None:
    """Of a repository's tags the two newest of a range are copied, under another name."""
    digests = {
        tag: put_image(registry, "d/many", tag, seed=tag).digest for tag in ("1.2.0", "1.10.0", "1.9.1", "2.0.0")
    }
    source = {"endpoint": registry.host, "image": "d/many", "tags": {"semver": "1.x", "newest": 2}}
    job = await bench.run(kind, {"source": source, "targets": [{"endpoint": target.host, "image": "d/few"}]})
    assert job.error is None
    assert target.tags("d/few") == ["1.10.0", "1.9.1"]
    assert target.digest("d/few", "1.9.1") == digests["1.9.1"]
    assert [phase.name for phase in await bench.store.phases(job.id)] == ["listing", "copying"]


async def test_a_filter_that_means_nothing_fails(
    bench: DistributionBench, kind: DistributeKind, registry: Registry, target: Registry
) -> None:
    """A job that would copy nothing is no success; neither is one from a repository that is not there."""
    put_image(registry, "d/none", "1")
    for image in ("d/none", "d/absent"):
        source = {"endpoint": registry.host, "image": image, "tags": {"regex": "x"}}
        job = await bench.run(kind, {"source": source, "targets": [{"endpoint": target.host}]})
        assert job.error is not None
        assert (job.state, job.error.code) == (State.FAILED, ErrorCode.NOT_FOUND)
        assert (await bench.endpoints(job)).failed == [(target.host, job.error.message)]


async def test_a_filter_that_means_too_much_fails(
    bench: DistributionBench, tmp_path: Path, registry: Registry, target: Registry
) -> None:
    """The bound on copies holds for those that a filter finds, and nothing is copied."""
    for tag in ("1", "2"):
        put_image(registry, "d/much", tag, seed=tag)
    source = {"endpoint": registry.host, "image": "d/much", "tags": {"regex": ".*"}}
    targets = [{"endpoint": target.host}, {"endpoint": target.host, "image": "d/more"}]
    async for kind in open_kind(tmp_path, EgressSettings(), copies_max=3):
        job = await bench.run(kind, {"source": source, "targets": targets})
    assert job.error is not None
    assert job.error.code is ErrorCode.TOO_LARGE
    assert "match source.tags, which makes 4 copies; the limit is kinds.distribute.copies_max = 3" in job.error.message
    assert target.tags("d/much") == []


async def test_platforms_and_several_tags(
    bench: DistributionBench, kind: DistributeKind, registry: Registry, target: Registry
) -> None:
    """An index loses the platforms that are not wanted, and goes under all tags that the target asks for."""
    children = [put_image(registry, "d/multi", seed=name, platform=name) for name in ("linux/amd64", "linux/arm64")]
    index = put_index(registry, "d/multi", "1", children)
    spec = spec_of(registry, target, image="d/multi")
    spec["targets"][0]["tags"] = ["a", "b"]
    job = await bench.run(kind, {**spec, "platforms": ["linux/arm64"]})
    assert job.error is None
    assert target.tags("d/multi") == ["a", "b"]
    assert target.digest("d/multi", "a") == target.digest("d/multi", "b") != index.digest
    assert target.digest("d/multi", children[1].digest) == children[1].digest
    assert target.digest("d/multi", children[0].digest) is None


async def test_a_dry_run_writes_nothing(
    bench: DistributionBench, kind: DistributeKind, registry: Registry, target: Registry
) -> None:
    """It tells what would be copied."""
    put_image(registry, "d/dry", "1")
    job = await bench.run(kind, {**spec_of(registry, target, image="d/dry"), "dry_run": True})
    assert job.result is not None
    assert job.result["images"][0]["targets"][0]["tags"] == {"1": "wanted"}
    assert target.tags("d/dry") == []


async def test_one_target_is_down_for_a_while(
    bench: DistributionBench, kind: DistributeKind, registry: Registry, target: Registry
) -> None:
    """The other gets its image at once; the job is tried again, and succeeds when the registry is back."""
    image = put_image(registry, "d/down", "1")
    with Registry() as absent:
        absent.stop()
        made = await bench.submit(kind, spec_of(registry, absent, target, image="d/down"))
        limits = msgspec.structs.replace(QUICK, retry_for_s=600.0)
        async with bench.running(kind, limits=limits):  # type: ignore[arg-type]
            await bench.pushes(made, 2)
            by_outcome = await bench.endpoints(await bench.job(made.uuid))
            assert [endpoint for endpoint, _ in by_outcome.failed] == [absent.host]
            assert target.digest("d/down", "1") == image.digest
            absent.start()
            job = await bench.ended(made.uuid)
        assert (job.state, (await bench.endpoints(job)).finished) == (State.SUCCEEDED, [absent.host, target.host])
        assert absent.digest("d/down", "1") == image.digest


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Json]:
    """What every target's progress has been, looked at as often as can be."""
    seen: list[Json] = []
    progress = CopyTable.progress

    def watched(table: CopyTable) -> Json:
        standing = progress(table)
        seen.extend(standing["targets"])
        return standing

    monkeypatch.setattr(CopyTable, "progress", watched)
    monkeypatch.setattr(copies_module, "TICK_S", 0.0005)
    return seen


async def test_bytes_of_progress_are_never_nonsense(
    bench: DistributionBench, kind: DistributeKind, registry: Registry, target: Registry, shown: list[Json]
) -> None:
    """Whatever is cut, sent twice, mounted or was there in truth or not, no part is negative or more than the whole."""
    image = put_image(registry, "d/bytes", "1", layers=(8_000_000, 3_000_000, 70_000))
    put_image(target, "d/elsewhere", "1", layers=(8_000_000,))
    with Registry() as liar, FaultProxy(target.host) as cutting, FaultProxy(liar.host) as lying:
        cutting.add("PUT", ".*/blobs/uploads/.*", CutRequest(1_000_000), times=2)
        for digest in image.blobs:
            with registry.request("HEAD", f"/v2/d/bytes/blobs/{digest}") as answer:
                said = Answer(200, {"Content-Length": answer.headers["Content-Length"]})
            lying.add("HEAD", f".*/blobs/{digest}", said, times=None)
        spec = spec_of(registry, target, image="d/bytes")
        spec["targets"] = [{"endpoint": proxy.host, "image": "d/c"} for proxy in (cutting, lying)]
        spec["targets"].append({"endpoint": target.host})
        job = await bench.run(kind, spec)
        assert job.error is None
        assert liar.digest("d/c", "1") == target.digest("d/c", "1") == image.digest
    assert len(shown) > 30
    for row in shown:
        parts = [row[name] for name in ("sent_bytes", "mounted_bytes", "skipped_bytes")]
        assert min(parts) >= 0, row
        assert sum(parts) <= row["total_bytes"] <= image.blobs_bytes, row
    for row in job.progress["targets"]:
        parts_bytes = row["sent_bytes"] + row["mounted_bytes"] + row["skipped_bytes"]
        assert parts_bytes == row["total_bytes"] == image.blobs_bytes


async def test_logins_of_the_request(
    bench: DistributionBench, kind: DistributeKind, registry: Registry, target: Registry, private_registry: Registry
) -> None:
    """Source and target log in each with its own; a wrong password fails that target for good, and is nowhere told."""
    image = put_image(private_registry, "d/private", "1")
    right = {"basicauth": {"user": USERNAME, "password": PASSWORD}}
    wrong = {"basicauth": {"user": USERNAME, "password": "wr0ng-word"}}
    spec = spec_of(private_registry, target, private_registry, image="d/private")
    spec["source"]["auth"] = right
    spec["targets"][1] |= {"image": "d/denied", "auth": wrong}
    job = await bench.run(kind, spec)
    assert (job.state, job.attempt) == (State.FAILED, 1)
    assert target.digest("d/private", "1") == image.digest
    by_outcome = await bench.endpoints(job)
    assert (by_outcome.finished, [endpoint for endpoint, _ in by_outcome.failed]) == (
        [target.host],
        [private_registry.host],
    )
    shown = repr(job) + await bench.log_of(job.uuid)
    assert "wr0ng-word" not in shown
    assert PASSWORD not in shown


def submitted(kind: DistributeKind, spec: Json) -> NewJob:
    accepted = kind.parse(spec)
    return NewJob(kind=kind.name, spec=accepted.spec, secrets=accepted.secrets)


async def test_preflight_tells_what_is_sure(
    kind: DistributeKind, registry: Registry, target: Registry, private_registry: Registry
) -> None:
    """An image that is not there and a login that is refused are told at submission; a registry that is down is not."""
    put_image(registry, "d/there", "1")
    await kind.preflight(submitted(kind, spec_of(registry, target, image="d/there")))
    with pytest.raises(Permanent, match=rf"Image not found: {registry.host}/d/there:2") as refused:
        await kind.preflight(submitted(kind, spec_of(registry, target, image="d/there", ref="2")))
    assert refused.value.code is ErrorCode.NOT_FOUND
    for auth in (None, {"basicauth": {"user": USERNAME, "password": "wr0ng-word"}}):
        spec = spec_of(private_registry, target, image="d/there")
        spec["source"]["auth"] = auth
        with pytest.raises(Permanent) as refused:
            await kind.preflight(submitted(kind, spec))
        assert refused.value.code is ErrorCode.DENIED
        assert "wr0ng-word" not in refused.value.message
    with Registry() as absent:
        absent.stop()
        await kind.preflight(submitted(kind, spec_of(absent, target, image="d/there")))
    images = {"endpoint": registry.host, "images": ["d/absent:1"]}
    await kind.preflight(submitted(kind, {"source": images, "targets": [{"endpoint": target.host}]}))


async def test_preflight_keeps_to_the_egress_rules(tmp_path: Path, registry: Registry, target: Registry) -> None:
    """A source on an address that is off limits is refused at submission."""
    async for kind in open_kind(tmp_path, EgressSettings(allow_private=False)):
        with pytest.raises(Permanent) as refused:
            await kind.preflight(submitted(kind, spec_of(registry, target, image="d/there")))
        assert refused.value.code is ErrorCode.EGRESS
