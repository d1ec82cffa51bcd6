"""Large uploads, and uploads that come to nothing."""

import asyncio
import base64
import json
import os
import tarfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from bare_app import MINIMAL, SERVER, BareApp, bare_app
from calls import curl
from signing import bearer, by_secret, token

from harness.daemon import Daemon
from imagejobd.api.intake import Server

LARGE_BYTES = 200 * 1024 * 1024
RSS_MAX_BYTES = 150_000_000
BLOCK_BYTES = 512


async def leftover(app: BareApp) -> int:
    """How many blobs stay after the store's own collection, were it to run now with no regard to age."""
    await app.blobs.collect(await app.store.referenced_blobs(), min_age_s=-1)
    return sum(1 for _ in (app.folder / "blobs").glob("sha256/??/*"))


@pytest.mark.parametrize("place", [256 * 1024, 512 * 1024])
@pytest.mark.parametrize("field", ["TarFile", "context"])
async def test_padding_ends_base64(tmp_path: Path, field: str, place: int) -> None:
    """What follows the padding is refused wherever the text is cut when it is decoded; white space is not."""
    text = base64.b64encode(bytes(place // 4 * 3 - 1)).decode()
    assert len(text) == place
    assert text.endswith("=")
    async with bare_app(tmp_path, settings=Server()) as app:
        for tail, status in ((" \r\n", 400), ("QUJD", 400), ("=", 400), ("é", 400)):
            path, job = (
                ("/api/v1/build", {"image_name": "a", field: text + tail})
                if field == "TarFile"
                else ("/api/v2/jobs", MINIMAL | {"spec": {"image": "a"}, field: text + tail})
            )
            async with app.client.post(path, json=job) as response:
                assert response.status == status
                assert (f"{field} is not valid base64" in await response.text()) is not tail.isspace()


def form(*parts: tuple[str, bytes | str]) -> aiohttp.FormData:
    data = aiohttp.FormData()
    for name, content in parts:
        data.add_field(name, content, filename=name)
    return data


@pytest.mark.parametrize(
    ("path", "parts", "status"),
    [
        ("/api/v1/build", [("TarFile", ""), ("Json", "{")], 400),
        ("/api/v1/build", [("TarFile", ""), ("Json", "{}")], 400),
        ("/api/v1/build", [("TarFile", ""), ("Json", '{"image_name": "B A D"}')], 400),
        ("/api/v1/build", [("TarFile", ""), ("Json", '{"image_name": "a"}'), ("more", "")], 400),
        ("/api/v1/build", [("TarFile", "")], 400),
        ("/api/v1/build", [("TarFile", ""), ("Json", '{"image_name": "a", "dockerfile": "FROM scratch"}')], 200),
        ("/api/v2/jobs", [("job", '{"kind": "build", "spec": {"image": "B A D"}}'), ("context", "")], 400),
        ("/api/v2/jobs", [("job", '{"kind": "build", "spec": {"image": "a"}, "priority": 999}'), ("context", "")], 400),
        ("/api/v2/jobs", [("job", '{"kind": "build", "spec": {"image": "a"}}'), ("context", ""), ("x", "")], 400),
    ],
)
async def test_upload_that_no_job_needs_is_collected(
    app: BareApp, context: bytes, path: str, parts: list[tuple[str, str]], status: int
) -> None:
    """A context that was taken in and then not used is removed by the next collection."""
    data = form(*((name, content or context) for name, content in parts))
    async with app.client.post(path, data=data) as response:
        assert response.status == status, await response.text()
    assert await leftover(app) == 0


async def test_upload_of_a_job_stays(app: BareApp, context: bytes) -> None:
    """The context of an accepted job survives every collection; another job that was refused shares it harmlessly."""
    async with app.client.post("/api/v1/build", data=form(("TarFile", context), ("Json", '{"image_name": "a"}'))) as ok:
        assert ok.status == 200
    async with app.client.post("/api/v1/build", data=form(("TarFile", context), ("Json", "{"))) as refused:
        assert refused.status == 400
    assert await leftover(app) == 1


async def test_upload_of_a_refused_job_is_collected(tmp_path: Path, context: bytes, context_base64: str) -> None:
    """A context whose job found the queue full is removed, and so is one sent as base64."""
    async with bare_app(tmp_path, queue_max=1) as app:
        await app.submit()
        requests: list[dict[str, Any]] = [
            {"data": form(("TarFile", context), ("Json", '{"image_name": "a"}'))},
            {"json": {"image_name": "a", "TarFile": context_base64}},
        ]
        for request in requests:
            async with app.client.post("/api/v1/build", **request) as response:
                assert response.status == 503
        assert await leftover(app) == 0


async def test_upload_over_its_bound(app: BareApp) -> None:
    """413 for a part over kinds.build.upload_max_bytes; its spool file is gone."""
    async with app.client.post("/api/v1/build", data=form(("TarFile", bytes(1024 * 1024 + 1)))) as response:
        assert response.status == 413
        assert "1048576 bytes" in (await response.json())["Error"]
    assert not list((app.folder / "spool").iterdir())


async def test_json_part_over_its_bound(app: BareApp, context: bytes) -> None:
    """413 for a JSON part that is larger than a few fields can be."""
    data = form(("TarFile", context), ("Json", b" " * (1024 * 1024 + 1)))
    async with app.client.post("/api/v1/build", data=data) as response:
        assert response.status == 413
        assert "'Json'" in (await response.json())["Error"]


async def test_many_uploads_at_once(app: BareApp, context: bytes) -> None:
    """Twenty equal contexts at once are twenty jobs and one blob."""

    async def upload() -> int:
        data = form(("TarFile", context), ("Json", '{"image_name": "a"}'))
        async with app.client.post("/api/v1/build", data=data) as response:
            return response.status

    assert await asyncio.gather(*(upload() for _ in range(20))) == [200] * 20
    assert await leftover(app) == 1


async def trickle(sent: bytes, until: asyncio.Event) -> AsyncIterator[bytes]:
    """A body that goes on, byte by byte, as long as it may."""
    yield sent
    while not until.is_set():
        yield b" "
        await asyncio.sleep(0.05)


MULTIPART = {"Content-Type": "multipart/form-data; boundary=b"}
OPEN_JSON_PART = b'\r\n--b\r\nContent-Disposition: form-data; name="Json"\r\n\r\n'
OPEN_TAR_PART = b'--b\r\nContent-Disposition: form-data; name="TarFile"\r\n\r\n'


async def test_uploads_take_turns(tmp_path: Path, context_base64: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past uploads_max another one is refused with 503 and Retry-After, a job without a tar is not; turns return."""
    monkeypatch.setattr("imagejobd.api.intake.SLOT_TIMEOUT_S", 0.1)
    monkeypatch.setattr("imagejobd.api.intake.UPLOAD_WITHOUT_SLOT_MAX_BYTES", 1000)
    with_tar = {"image_name": "a", "TarFile": context_base64}
    async with bare_app(tmp_path, settings=msgspec.structs.replace(SERVER, uploads_max=1)) as app:
        enough = asyncio.Event()
        body = trickle(OPEN_TAR_PART + bytes(2000), enough)
        slow = asyncio.create_task(app.client.post("/api/v1/build", data=body, headers=MULTIPART))
        await until_turns_are_held(app, 1)
        async with app.client.post("/api/v1/build", json=with_tar) as refused:
            assert refused.status == 503
            assert int(refused.headers["Retry-After"]) > 0
            assert "uploads_max" in (await refused.json())["Error"]
        await app.submit()
        enough.set()
        assert (await slow).status == 400
        async with app.client.post("/api/v1/build", json=with_tar) as accepted:
            assert accepted.status == 200


async def until_turns_are_held(app: BareApp, number: int) -> None:
    async with asyncio.timeout(5):
        while app.intake.upload_slots._all._value > app.intake.server.uploads_max - number:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(("uploads_max", "share"), [(4, 2), (3, 1), (2, 1)])
async def test_slow_uploads_leave_turns_to_others(
    tmp_path: Path, context_base64: str, monkeypatch: pytest.MonkeyPatch, uploads_max: int, share: int
) -> None:
    """However many slow uploads a tenant has under way, half of the turns are for others; its own next one is 503."""
    monkeypatch.setattr("imagejobd.api.intake.SLOT_TIMEOUT_S", 0.1)
    monkeypatch.setattr("imagejobd.api.intake.UPLOAD_WITHOUT_SLOT_MAX_BYTES", 1000)
    settings = msgspec.structs.replace(SERVER, uploads_max=uploads_max)
    with_tar = {"image_name": "a", "TarFile": context_base64}
    async with bare_app(tmp_path, settings=settings, auth=by_secret(tmp_path)) as app:
        enough = asyncio.Event()
        headers = MULTIPART | bearer(token(tid=1))
        bodies = [trickle(OPEN_TAR_PART + bytes(2000), enough) for _ in range(uploads_max)]
        slow = [asyncio.create_task(app.client.post("/api/v1/build", data=body, headers=headers)) for body in bodies]
        await until_turns_are_held(app, share)
        async with app.client.post("/api/v1/build", json=with_tar, headers=bearer(token(tid=1))) as refused:
            assert refused.status == 503
            assert f"one tenant's share {share}" in (await refused.json())["Error"]
        for other in (bearer(token(tid=2)), {}):
            async with app.client.post("/api/v1/build", json=with_tar, headers=other) as accepted:
                assert accepted.status == 200
        enough.set()
        statuses = sorted([(await answer).status for answer in slow])
        assert statuses == [400] * share + [503] * (uploads_max - share)
        await until_turns_are_held(app, 0)


@pytest.mark.parametrize(
    "sent", [lambda tar: b"", lambda tar: tar + OPEN_JSON_PART], ids=["a small tar", "what follows a tar"]
)
async def test_what_needs_no_turn(
    tmp_path: Path, context: bytes, monkeypatch: pytest.MonkeyPatch, sent: Callable[[bytes], bytes]
) -> None:
    """While it trickles in, another upload is taken although there is but one turn."""
    monkeypatch.setattr("imagejobd.api.intake.SLOT_TIMEOUT_S", 0.1)
    async with bare_app(tmp_path, settings=msgspec.structs.replace(SERVER, uploads_max=1)) as app:
        enough = asyncio.Event()
        body = trickle(OPEN_TAR_PART + sent(context + bytes(100_000)), enough)
        slow = asyncio.create_task(app.client.post("/api/v1/build", data=body, headers=MULTIPART))
        await asyncio.sleep(0.3)  # it is under way by now
        data = form(("TarFile", context + bytes(100_000)), ("Json", '{"image_name": "a"}'))
        async with app.client.post("/api/v1/build", data=data) as accepted:
            assert accepted.status == 200
        enough.set()
        assert (await slow).status == 400


@pytest.mark.parametrize(
    ("headers", "sent"), [(MULTIPART, OPEN_TAR_PART), ({"Content-Type": "application/json"}, b"{")], ids=["tar", "json"]
)
async def test_a_request_has_an_end(tmp_path: Path, headers: dict[str, str], sent: bytes) -> None:
    """408 after upload_timeout_s although bytes still come; nothing of it stays."""
    settings = msgspec.structs.replace(SERVER, upload_timeout_s=1.0, body_idle_s=20.0)
    async with bare_app(tmp_path, settings=settings) as app:
        body = trickle(sent, asyncio.Event())
        async with app.client.post("/api/v1/build", data=body, headers=headers) as response:
            assert response.status == 408
            assert "server.upload_timeout_s = 1 s" in (await response.json())["Error"]
        assert not list((app.folder / "spool").iterdir())


async def test_json_in_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When all bodies together hold too much, another one is refused with 503; what was held is given back."""
    monkeypatch.setattr("imagejobd.api.intake.JSON_TOTAL_MAX_BYTES", 0)  # so that one body of the largest size fits
    async with bare_app(tmp_path) as app:
        enough = asyncio.Event()
        body = trickle(b"{" + b" " * (SERVER.json_max_bytes - 1000), enough)
        slow = asyncio.create_task(app.client.post("/api/v2/jobs", data=body))
        async with asyncio.timeout(5):
            while app.intake._json_free_bytes > 10_000:
                await asyncio.sleep(0.01)
        large = MINIMAL | {"labels": {}, "context": " " * 10_000}
        async with app.client.post("/api/v2/jobs", json=large) as refused:
            assert refused.status == 503
            assert int(refused.headers["Retry-After"]) > 0
            assert (await refused.json())["code"] == "queue_full"
        await app.submit()
        enough.set()
        assert (await slow).status == 400
        assert app.intake._json_free_bytes == SERVER.json_max_bytes


@pytest.fixture
def large_tar(tmp_path: Path, context: bytes) -> Iterator[Path]:
    """A context with one member of 200 MiB, most of it a hole in the file."""
    path = tmp_path / "large.tar"
    member = tarfile.TarInfo("large")
    member.size = LARGE_BYTES
    with path.open("wb") as file:
        file.write(context[: -context_end(context)])
        file.write(member.tobuf())
        file.write(os.urandom(1024 * 1024))
        file.seek(LARGE_BYTES - 1024 * 1024, os.SEEK_CUR)
        file.write(bytes(2 * BLOCK_BYTES))
    yield path
    path.unlink()


def context_end(context: bytes) -> int:
    """How many bytes of zeros end a tar."""
    return len(context) - (len(context.rstrip(b"\0")) + BLOCK_BYTES - 1) // BLOCK_BYTES * BLOCK_BYTES


def test_large_upload_needs_little_memory(large_tar: Path) -> None:
    """200 MiB through a multipart part are taken in, and the daemon stays below 150 MB all the while."""
    with Daemon() as daemon:
        fields = json.dumps({"image_name": "app"})
        answer = curl(daemon, "/api/v1/build", "-F", f"TarFile=@{large_tar}", "-F", f"Json={fields}")
        assert answer.status == 200, answer.text
        assert peak_rss_bytes(daemon) < RSS_MAX_BYTES


def peak_rss_bytes(daemon: Daemon) -> int:
    [line] = [line for line in Path(f"/proc/{daemon.pid}/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024
