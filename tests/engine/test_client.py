"""Finding an engine and agreeing on a version with it."""

import asyncio
import os
from pathlib import Path

import pytest
from aiohttp import web
from builds import FROM_BASE, fake_engine, lines, request, run

from harness.base_image import load_busybox
from harness.engine import PrivateEngine
from imagejobd.engine import images
from imagejobd.engine.build import prune_build_cache
from imagejobd.engine.buildkit import delete_history
from imagejobd.engine.client import API_VERSION_MAX, Engine
from imagejobd.engine.settings import DEFAULT_HOST, Builder, EngineSettings
from imagejobd.model.errors import ENGINE, ErrorCode, Permanent, Temporary
from imagejobd.model.reference import ImageReference

# The user `nobody` of Debian, whom no engine's socket is for.
NOBODY = 65534


async def test_a_real_engine_says_who_it_is(client: Engine) -> None:
    """Version, API version within what we know, and platform."""
    info = await client.ping()
    assert info.version
    assert (1, 41) <= tuple(map(int, info.api_version.split("."))) <= API_VERSION_MAX
    assert info.os == "linux"


@pytest.mark.parametrize(("theirs", "spoken"), [("1.41", "1.41"), ("1.44", "1.44"), ("1.99", "1.52"), ("2.0", "1.52")])
async def test_the_version_is_the_highest_that_both_know(tmp_path: Path, theirs: str, spoken: str) -> None:
    """Requests go to the path of that version."""
    paths: list[str] = []

    async def answer(asked: web.Request) -> web.Response:
        paths.append(asked.path)
        return web.json_response([])

    async with fake_engine(tmp_path, answer, ApiVersion=theirs) as engine:
        assert (await engine.ping()).api_version == spoken
        await engine.request("GET", "images/json")
    assert paths == [f"/v{spoken}/images/json"]


async def test_an_engine_that_has_given_up_old_versions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Docker 29 speaks API 1.44 and newer only: everything is asked in a version that it takes."""
    # Engines from 25 on obey it, and then refuse as 29 does of its own.
    monkeypatch.setenv("DOCKER_MIN_API_VERSION", "1.44")
    with PrivateEngine() as old_refused:
        load_busybox(old_refused)
        async with Engine(EngineSettings(host=old_refused.host)) as client:
            tag = ImageReference.parse("imagejobd/modern:1")
            await run(client, request(tmp_path, "buildkit", FROM_BASE + "RUN true\n", tags=(str(tag),)))
            assert await images.list_tags(client, tag.repository) == [str(tag)]
            assert await images.remove(client, tag)
            await delete_history(client, tag.repository)
            await prune_build_cache(client, 0)
            info = await client.ping()
            if not info.version.startswith("20."):
                client._aiodocker().api_version = "v1.43"
                with pytest.raises(Permanent, match="too old"):
                    await client.request("GET", "images/json")


@pytest.mark.parametrize("version", [{"ApiVersion": "1.40"}, {"ApiVersion": "1.60", "MinAPIVersion": "1.53"}])
async def test_jobs_wait_for_an_upgrade(tmp_path: Path, version: dict[str, str]) -> None:
    """Where no version is common to both the fault says what has to be upgraded, and is the engine's, not the job's."""
    async with fake_engine(tmp_path, lines(), **version) as engine:
        with pytest.raises(Temporary, match="upgrade") as caught:
            await engine.ping()
        assert (caught.value.code, caught.value.peer) == (ErrorCode.ENGINE_UNAVAILABLE, ENGINE)


async def test_no_engine_is_temporary(tmp_path: Path) -> None:
    """The fault names the address and the reason."""
    host = f"unix://{tmp_path}/absent.sock"
    async with Engine(EngineSettings(host=host)) as engine:
        with pytest.raises(Temporary, match="No such file") as caught:
            await engine.request("GET", "images/json")
    assert caught.value.code is ErrorCode.ENGINE_UNAVAILABLE
    assert host in caught.value.message


async def test_a_socket_that_is_not_for_us_says_what_to_do(engine: PrivateEngine) -> None:
    """The group that may use it is named instead of asking whether the engine runs."""
    async with Engine(EngineSettings(host=engine.host)) as client:
        os.seteuid(NOBODY)
        try:
            with pytest.raises(Temporary, match=r"Permission denied.*group docker") as caught:
                await client.ping()
        finally:
            os.seteuid(0)
    assert "is it running" not in caught.value.message


async def test_a_silent_engine_is_temporary(tmp_path: Path) -> None:
    """A request that gets no answer ends after its time."""

    async def answer(asked: web.Request) -> web.Response:
        await asyncio.sleep(30)
        return web.Response()

    async with fake_engine(tmp_path, answer) as engine:
        with pytest.raises(Temporary, match="no answer in time"):
            await engine.request("GET", "images/json", timeout_s=1)


async def test_an_upgraded_engine_is_asked_again(tmp_path: Path) -> None:
    """After a fault of the connection the version is agreed on anew."""
    fails = True

    async def answer(asked: web.Request) -> web.Response:
        return web.json_response({"message": "starting"}, status=503) if fails else web.Response(text=asked.path)

    async with fake_engine(tmp_path, answer) as engine:
        with pytest.raises(Temporary, match="starting"):
            await engine.request("GET", "x")
    fails = False
    (tmp_path / "engine.sock").unlink(missing_ok=True)
    async with fake_engine(tmp_path, answer, ApiVersion="1.45"):
        assert await engine.request("GET", "x") == b"/v1.45/x"
        await engine.close()


def test_the_host_is_the_settings_then_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    """`host` wins over $DOCKER_HOST, which wins over the usual socket."""
    monkeypatch.setenv("DOCKER_HOST", "tcp://env:2375")
    assert Engine(EngineSettings(host="unix:///own")).host == "unix:///own"
    assert Engine(EngineSettings()).host == "tcp://env:2375"
    monkeypatch.delenv("DOCKER_HOST")
    assert Engine(EngineSettings()).host == DEFAULT_HOST


def test_a_host_that_is_no_address_is_refused() -> None:
    """A path without a scheme is the usual mistake."""
    with pytest.raises(Permanent, match="unix://"):
        Engine(EngineSettings(host="/var/run/docker.sock"))


async def test_the_engine_is_reached_over_tcp(engine: PrivateEngine) -> None:
    """A tcp:// host works as a socket does."""
    proxy = await asyncio.start_server(lambda r, w: _join(r, w, str(engine.socket)), "127.0.0.1", 0)
    port = proxy.sockets[0].getsockname()[1]
    async with proxy, Engine(EngineSettings(host=f"tcp://127.0.0.1:{port}")) as client:
        assert (await client.ping()).os == "linux"
        assert await client.request("GET", "images/json")


async def _join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, socket: str) -> None:
    there_reader, there_writer = await asyncio.open_unix_connection(socket)

    async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while block := await source.read(65536):
            sink.write(block)
        sink.close()

    await asyncio.gather(copy(reader, there_writer), copy(there_reader, writer))


@pytest.mark.parametrize(
    ("version", "builder", "known"),
    [
        ("23.0.1", "buildkit", True),
        ("27.5.1", "classic", False),
        ("20.10.24+dfsg1", "buildkit", False),
        ("dev", "buildkit", False),
    ],
)
async def test_who_knows_heredocs(tmp_path: Path, version: str, builder: Builder, known: bool) -> None:
    """BuildKit from Engine 23 on; the version is known without asking once the engine has answered."""
    async with fake_engine(tmp_path, lines(), Version=version) as engine:
        assert engine.info is None
        await engine.ping()
        assert engine.info is not None
        assert engine.info.knows_heredocs(builder) is known
