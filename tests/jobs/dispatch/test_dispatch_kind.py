"""A dispatched payload from claim to ending: what is built, kept, refused, reported and resumed."""

import asyncio
import gzip
import hashlib
import os
import tarfile
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from dispatch_bench import DispatchBench

from archive.image_tars import layer_of, layout_of, saved_of, tar_of
from harness.base_image import BUSYBOX
from harness.engine import PrivateEngine
from harness.registry import Registry
from imagejobd.engine import images
from imagejobd.engine.client import Engine
from imagejobd.engine.images import export
from imagejobd.engine.settings import EngineSettings
from imagejobd.jobs import dispatch as exporting_module
from imagejobd.jobs.dispatch import published_name
from imagejobd.jobs.shared.builder import ImageBuilder
from imagejobd.model.errors import ErrorCode, NotFound, Permanent, Temporary
from imagejobd.model.job import State
from imagejobd.model.ownership import job_repository
from imagejobd.model.reference import ImageReference

FROM = f"FROM {BUSYBOX}\n".encode()
ARCHIVE = tar_of(saved_of(layer_of("one"), os.urandom(40_000)))


async def test_a_build_is_exported(bench: DispatchBench, engine: PrivateEngine, tmp_path: Path) -> None:
    """The result names the image in the content store, which the job refers to; the engine keeps nothing of it."""
    job = await bench.run(bench.kind(), FROM + f"RUN echo {os.urandom(8).hex()} > /id\n".encode())
    assert (job.state, job.error) == (State.SUCCEEDED, None)
    assert job.result is not None
    content = bench.content(job)
    assert job.result == {
        "what": "dockerfile",
        "location": {
            "digest": f"sha256:{hashlib.sha256(content).hexdigest()}",
            "size_bytes": len(content),
            "media_type": "application/x-tar",
        },
        "image_id": job.result["image_id"],
    }
    assert job.result["image_id"] in engine.docker("load", "--quiet", input=content)
    engine.docker("rmi", job.result["image_id"])
    assert await bench.phases(job) == ["checking", "building", "exporting", "purging"]
    assert job.progress["exported_bytes"] == len(content)
    log = await bench.log_of(job.uuid)
    assert "the payload is a Dockerfile" in log
    assert f"exported {job.result['image_id']} size: {len(content)}" in log
    assert job.result["location"]["digest"] in await bench.store.referenced_blobs()
    assert await bench.left(folder=tmp_path) == []


@pytest.mark.parametrize(
    ("payload", "what", "media_type"),
    [
        (ARCHIVE, "image_archive", "application/x-tar"),
        (gzip.compress(ARCHIVE), "image_archive", "application/x-tar+gzip"),
        (tar_of(layout_of(layer_of("x"))), "image_archive", "application/x-tar"),
        (b"\x89PNG\r\n\x1a\n" + os.urandom(90_000), "file", "image/png"),
        (tar_of({"a": b"b"}), "file", "application/x-tar"),
        (b"", "file", "application/octet-stream"),
    ],
)
async def test_what_is_kept_needs_no_engine(bench: DispatchBench, payload: bytes, what: str, media_type: str) -> None:
    """Archives and files are checked and kept, byte for byte, with no engine in reach."""
    async with Engine(EngineSettings(host="unix:///nonexistent/docker.sock")) as absent:
        kind = bench.kind(absent)
        job = await bench.run(kind, payload)
    assert (job.state, job.error) == (State.SUCCEEDED, None)
    digest = f"sha256:{hashlib.sha256(payload).hexdigest()}"
    location = {"digest": digest, "size_bytes": len(payload), "media_type": media_type}
    assert job.result == {"what": what, "location": location}
    assert await bench.phases(job) == ["checking"]
    assert job.progress["total_bytes"] == len(payload)


LINK = tarfile.TarInfo("Dockerfile")
LINK.type, LINK.linkname = tarfile.SYMTYPE, "real"


@pytest.mark.parametrize(
    ("payload", "code", "reason"),
    [
        (tar_of({"Dockerfile": FROM}, tarfile.TarInfo("Dockerfile")), ErrorCode.INVALID, "twice"),
        (tar_of({"a": b"1", "Dockerfile": FROM}, tarfile.TarInfo("./a")), ErrorCode.INVALID, "twice"),
        (tar_of({"real": FROM}, LINK), ErrorCode.INVALID, "symbolic link"),
        (tar_of({"Dockerfile": b"# syntax=evil/frontend\n" + FROM}), ErrorCode.POLICY, "frontend"),
        (b"FROM busybox\nRUN --mount=type=secret true\n", ErrorCode.POLICY, "secret"),
        (FROM + b"FLY away\n", None, "line 2"),
        (
            tar_of(saved_of(layer_of("a")) | {"manifest.json": b'[{"Config": "../../etc/passwd"}]'}),
            ErrorCode.INVALID,
            "",
        ),
        (ARCHIVE[:20_000], ErrorCode.INVALID, "cut short"),
        (gzip.compress(ARCHIVE, mtime=0)[:-20_000], ErrorCode.INVALID, "cut short"),
    ],
)
async def test_refused_while_checking(
    bench: DispatchBench, tmp_path: Path, payload: bytes, code: ErrorCode | None, reason: str
) -> None:
    """What cannot or may not be built, and a damaged archive, fail with the reason, before any engine is asked."""
    async with Engine(EngineSettings(host="unix:///nonexistent/docker.sock")) as absent:
        made = await bench.submit(bench.kind(absent), payload)
        async with bench.running(bench.kind(absent)):  # type: ignore[arg-type]
            job = await bench.when(made.uuid, lambda job: job.error is not None)
    assert job.error is not None
    assert (reason in job.error.message, code in (None, job.error.code)) == (True, True), job.error
    assert await bench.phases(job) == ["checking"]
    await bench.blobs.collect(await bench.store.referenced_blobs(), min_age_s=-1)
    kept = {path.name for path in (tmp_path / "blobs").rglob("*") if path.is_file()}
    assert kept <= {hashlib.sha256(payload).hexdigest()}


async def test_an_image_that_is_too_large(bench: DispatchBench, tmp_path: Path) -> None:
    """An export stops at its bound, which is named; neither engine nor spool keep any of it."""
    job = await bench.run(bench.kind(image_max_bytes=1 << 20), FROM + b"LABEL a=b\n")
    assert job.error is not None
    assert (job.error.code, "image_max_bytes" in job.error.message) == (ErrorCode.TOO_LARGE, True)
    assert await bench.left(folder=tmp_path) == []


async def test_checking_ends_in_time(bench: DispatchBench) -> None:
    """A payload that takes longer to read than it may is given up."""
    header = tarfile.TarInfo("zeros")
    header.size = 12 << 30
    payload = gzip.compress(header.tobuf()) + gzip.compress(bytes(16 << 20)) * 768
    job = await bench.run(bench.kind(check_timeout_s=2.0), payload)
    assert job.error is not None
    assert (job.error.code, "checking" in job.error.message) == (ErrorCode.TIMEOUT, True)
    assert 0 < job.progress["checked_bytes"] < job.progress["total_bytes"] == len(payload)


async def test_a_payload_that_is_gone(bench: DispatchBench) -> None:
    """A payload that the content store has lost is no defect, and the job says what to do."""
    kind = bench.kind()
    made = await bench.submit(kind, os.urandom(50_000))
    for digest in await bench.store.referenced_blobs():
        if bench.blobs.exists(digest):
            bench.blobs.path(digest).unlink()
    async with bench.running(kind):  # type: ignore[arg-type]
        job = await bench.ended(made.uuid)
    assert job.error is not None
    assert (job.error.code, "submit it again" in job.error.message) == (ErrorCode.NOT_FOUND, True)


def files_below(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


async def test_a_context_is_kept_no_longer_than_its_attempt(
    bench: DispatchBench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """While it is built no collection takes it; then nobody refers to it, and a next attempt checks anew."""

    async def collected() -> set[str]:
        await bench.blobs.collect(await bench.store.referenced_blobs(), min_age_s=-1)
        return files_below(tmp_path / "blobs")

    seen: list[int] = []

    async def building(*_: object) -> None:
        seen.append(len(await collected()))
        await bench.store.pause([kind.name], reason="no attempt comes before this one is looked at", by="test")
        raise Temporary(ErrorCode.ENGINE_UNAVAILABLE, "the engine left")

    async def refusing(*_: object) -> None:
        seen.append(len(await collected()))
        raise Permanent(ErrorCode.INVALID, "no")

    kind = bench.kind()
    payload = gzip.compress(tar_of({"Dockerfile": FROM, "a": os.urandom(50_000)}))
    monkeypatch.setattr(ImageBuilder, "build", building)
    made = await bench.submit(kind, payload)
    async with bench.running(kind):  # type: ignore[arg-type]
        await bench.when(made.uuid, lambda job: job.error is not None and job.state is State.QUEUED)
        assert await collected() == {hashlib.sha256(payload).hexdigest()}
        monkeypatch.setattr(ImageBuilder, "build", refusing)
        await bench.store.resume([kind.name])
        job = await bench.ended(made.uuid)
    assert (len(seen), set(seen)) == (job.attempt, {2})
    assert await collected() == {hashlib.sha256(payload).hexdigest()}
    assert (await bench.phases(job)).count("checking") > 1


async def test_a_cancelled_context_is_released(
    bench: DispatchBench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Cancelling in mid-build leaves only the payload to be kept."""
    reached = asyncio.Event()

    async def building(*_: object) -> None:
        reached.set()
        await asyncio.Event().wait()

    kind = bench.kind()
    monkeypatch.setattr(ImageBuilder, "build", building)
    payload = gzip.compress(tar_of({"Dockerfile": FROM, "a": os.urandom(50_000)}))
    made = await bench.submit(kind, payload)
    async with bench.running(kind):  # type: ignore[arg-type]
        await asyncio.wait_for(reached.wait(), 20)
        assert len(files_below(tmp_path / "blobs")) == 2
        await bench.store.request_cancel(made.uuid, tenant=None)
        await bench.ended(made.uuid)
    await bench.blobs.collect(await bench.store.referenced_blobs(), min_age_s=-1)
    assert files_below(tmp_path / "blobs") == {hashlib.sha256(payload).hexdigest()}


class FailingExport:
    """Stands for the engine's export: `faults` first, in the middle of the tar, then the real one."""

    def __init__(self, *faults: Exception) -> None:
        self.faults = list(faults)
        self.image_ids: list[str] = []

    async def __call__(self, engine: Engine, image_id: str) -> AsyncGenerator[bytes, None]:
        self.image_ids.append(image_id)
        blocks = export(engine, image_id)
        if self.faults:
            yield await anext(blocks)
            await blocks.aclose()
            raise self.faults.pop(0)
        async for block in blocks:
            yield block


@pytest.mark.parametrize(
    "fault",
    [
        Temporary(ErrorCode.ENGINE_UNAVAILABLE, "the engine left"),
        NotFound("somebody removed the image"),
    ],
)
async def test_an_export_is_tried_again(
    bench: DispatchBench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: Exception
) -> None:
    """An export that fails for now is repeated by the next attempt, without checking or building anew."""
    failing = FailingExport(fault)
    monkeypatch.setattr(exporting_module, "export", failing)
    job = await bench.run(bench.kind(), tar_of({"Dockerfile": FROM + b"COPY a /\n", "a": os.urandom(99)}))
    assert (job.state, job.attempt) == (State.SUCCEEDED, 2)
    assert await bench.phases(job) == ["checking", "building", "exporting", "exporting", "purging"]
    assert job.result is not None
    assert (job.result["what"], failing.image_ids) == ("context", [job.result["image_id"]] * 2)
    assert await bench.left(folder=tmp_path) == []


async def test_a_lost_image_is_built_again(bench: DispatchBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the engine has lost the image between two attempts, it is built, and what was exported of it replaced."""
    failing = FailingExport(Temporary(ErrorCode.ENGINE_UNAVAILABLE, "the engine left"))
    monkeypatch.setattr(exporting_module, "export", failing)
    kind = bench.kind()
    made = await bench.submit(kind, FROM + f"RUN echo {os.urandom(8).hex()} > /id\n".encode())
    async with bench.running(kind):  # type: ignore[arg-type]
        await bench.when(made.uuid, lambda job: "built" in job.checkpoint)
        for tag in await images.list_tags(bench.engine, job_repository(bench.engine.installation, made.uuid)):
            await images.remove(bench.engine, ImageReference.parse(tag))
        job = await bench.ended(made.uuid)
    assert job.state is State.SUCCEEDED
    assert bench.content(job)[-1024:] == bytes(1024)


async def test_push(bench: DispatchBench, registry: Registry, tmp_path: Path) -> None:
    """With a repository the image is pushed under the tenant's name and the job's, and the result says where."""
    kind = bench.kind(repository=f"{registry.host}/dispatched/by")
    job = await bench.run(kind, FROM + f"RUN echo {os.urandom(8).hex()} > /id\n".encode(), tenant="42")
    assert job.result is not None, job.error
    assert job.result["image"] == f"{registry.host}/dispatched/by/42:{job.uuid}"
    assert job.result["digest"] == registry.digest("dispatched/by/42", job.uuid)
    assert await bench.phases(job) == ["checking", "building", "exporting", "pushing", "purging"]
    assert await bench.left(folder=tmp_path) == []


async def test_cancelled_while_exporting(bench: DispatchBench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A cancelled job leaves neither image nor file."""
    reached = asyncio.Event()

    async def endless(engine: Engine, image_id: str) -> AsyncGenerator[bytes, None]:
        yield b"x" * 1_000_000
        reached.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(exporting_module, "export", endless)
    kind = bench.kind()
    made = await bench.submit(kind, FROM + b"LABEL c=d\n")
    async with bench.running(kind):  # type: ignore[arg-type]
        await asyncio.wait_for(reached.wait(), 20)
        await bench.store.request_cancel(made.uuid, tenant=None)
        job = await bench.ended(made.uuid)
    assert job.state is State.CANCELLED
    assert await bench.left(folder=tmp_path) == []


def test_names_in_the_registry() -> None:
    """Every tenant has its own repository, whatever it is called, and every job its own tag."""
    names = [
        str(published_name("r.example/p", tenant, "u"))
        for tenant in ("7", "local", "Team A", "team-a", "../x", "x" * 200)
    ]
    assert names[:2] == ["r.example/p/7:u", "r.example/p/local:u"]
    assert len(set(names)) == len(names)
    assert all(name.startswith("r.example/p/") and name.endswith(":u") for name in names)


@pytest.mark.parametrize("repository", ["", "UPPER/case", "r.example/p/", "r.example/p:tag", "r.example/p@x", "a b"])
async def test_a_bad_repository_is_refused_at_start(bench: DispatchBench, repository: str) -> None:
    """The key is named."""
    with pytest.raises(Permanent, match=r"kinds\.dispatch\.repository") as caught:
        bench.kind(repository=repository)
    assert caught.value.code is ErrorCode.INVALID
