"""Build sessions with a real engine: BuildKit gets the files of the tar, whole and unmixed, and only them."""

import asyncio
import hashlib
import io
import random
import ssl
import tarfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import aiohttp
import msgspec
import pytest
from builds import FROM_BASE, open_files, output, request, run, until

from harness.base_image import BUSYBOX
from harness.engine import PrivateEngine
from harness.tls import issue
from imagejobd.archive import ContextBounds, index, rewrite
from imagejobd.engine import errors
from imagejobd.engine.build import BuildRequest
from imagejobd.engine.client import Engine, Upgraded
from imagejobd.engine.session import Folder, session
from imagejobd.engine.settings import EngineSettings
from imagejobd.engine.stream import Built, messages
from imagejobd.model.entry import Entry
from imagejobd.model.errors import ErrorCode, Permanent, Temporary
from imagejobd.model.job import uuid7

MTIME = 1_600_000_000
LINE_END = " \\\n"
COPY_ALL = FROM_BASE + "COPY . /x\n"


def entry(name: str, content: bytes = b"", /, **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.mtime = len(content), MTIME
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def symlink(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, type=tarfile.SYMTYPE, linkname=target)


def hard_link(name: str, target: str, **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, type=tarfile.LNKTYPE, linkname=target, **fields)


def directory(name: str, mode: int = 0o755, mtime: int = MTIME) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, type=tarfile.DIRTYPE, mode=mode, mtime=mtime)


def checked(folder: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    """A context as the store keeps it."""
    raw, tar = folder / f"{uuid7()}.raw", folder / f"{uuid7()}.tar"
    with tarfile.open(raw, "w", format=tarfile.PAX_FORMAT, encoding="utf-8") as archive:
        for info, content in [entry("Dockerfile", COPY_ALL.encode()), *members]:
            archive.addfile(info, io.BytesIO(content))
    with tar.open("wb") as file:
        rewrite(raw, file, ContextBounds(max_bytes=1 << 32, max_entries=200_000), lambda: False)
    return tar


def wanted(tar: Path, text: str, *, no_cache: bool = False) -> BuildRequest:
    return BuildRequest(
        context=tar,
        entries=index(tar),
        dockerfile=text,
        build_id=uuid7(),
        builder="buildkit",
        network="none",
        bases={BUSYBOX: BUSYBOX},
        tags=(f"imagejobd/{uuid7()}:1",),
        no_cache=no_cache,
    )


async def image_of(client: Engine, tar: Path, text: str) -> str:
    events = await run(client, wanted(tar, text))
    assert isinstance(events[-1], Built)
    return events[-1].image_id


async def image_by_body(client: Engine, tar: Path) -> str:
    """The image that the engine builds of the tar alone, of its own Dockerfile."""
    tag = f"imagejobd/{uuid7()}:1"
    with tar.open("rb") as body:
        params = [("version", "2"), ("networkmode", "none"), ("t", tag)]
        async with client.exchange(
            "POST", "build", params=params, body=body, judge=errors.of_build, idle_timeout_s=None
        ) as reply:
            async for _ in messages(reply.blocks, errors.of_build):
                pass
    return tag


async def files_of(client: Engine, engine: PrivateEngine, image: str) -> dict[str, tuple[object, ...]]:
    """What an image has in /x: type, mode, owner, size, mtime, link and digest of each; names of one file agree."""
    container = engine.docker("create", image, "true")
    try:
        async with client.exchange(
            "GET", f"containers/{container}/archive", params=[("path", "/x")], idle_timeout_s=60
        ) as reply:
            content = b"".join([block async for block in reply.blocks])
    finally:
        engine.docker("rm", container)
    files: dict[str, tuple[object, ...]] = {}
    with tarfile.open(fileobj=io.BytesIO(content), errors="surrogateescape") as tar:
        for info in tar:
            data = tar.extractfile(info) if info.isreg() else None
            digest = hashlib.sha256(data.read()).hexdigest() if data else ""
            # A directory that no member announces has no time, and 20.10 gives the others the time of the build.
            mtime = None if info.isdir() else int(info.mtime)
            value = (info.type, info.mode, info.uid, info.gid, info.size, mtime, info.linkname, digest)
            files[info.name] = files[info.linkname] if info.islnk() else value
    return files


def large(size: int) -> Entry:
    """A folder's only file, which begins where its content begins."""
    return Entry(b"large", size=size, mtime=MTIME)


class WatchedFolder(Folder, frozen=True):
    """Says, in the loop, that BuildKit has begun to read its content."""

    loop: asyncio.AbstractEventLoop
    on_open: Callable[[], None]

    def open(self) -> BinaryIO:
        self.loop.call_soon_threadsafe(self.on_open)
        return super().open()


def sparse(folder: Path, size: int) -> Path:
    """A file of `size` zeros that take no disk."""
    path = folder / "sparse"
    with path.open("wb") as file:
        file.truncate(size)
    return path


async def build_of(client: Engine, folder: Folder) -> None:
    """Build an image that has the whole `folder`."""
    dockerfile = Folder.of_file("Dockerfile", COPY_ALL.encode())
    async with session(client, {"context": folder, "dockerfile": dockerfile}) as session_id:
        params = [("version", "2"), ("networkmode", "none"), ("remote", "client-session"), ("session", session_id)]
        async with client.exchange("POST", "build", params=params, judge=errors.of_build, idle_timeout_s=None) as reply:
            async for _ in messages(reply.blocks, errors.of_build):
                pass


@asynccontextmanager
async def relay(socket: Path, tls: ssl.SSLContext | None) -> AsyncIterator[int]:
    """A port of loopback that leads to `socket`."""
    relays: list[asyncio.Task[None]] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while block := await reader.read(1 << 16):
                writer.write(block)
                await writer.drain()
        writer.close()

    async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_unix_connection(socket)
        await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        relays.append(asyncio.create_task(join(reader, writer)))

    async with await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls) as server:
        yield server.sockets[0].getsockname()[1]
    await asyncio.gather(*relays)


async def test_the_image_has_the_files_of_the_tar(client: Engine, engine: PrivateEngine, tmp_path: Path) -> None:
    """Content, modes, times, links and odd names are as the engine itself unpacks them from the same tar."""
    noise = random.Random(1)
    tar = checked(
        tmp_path,
        entry("a.txt", b"before a/"),
        directory("a", 0o700, MTIME + 1),
        entry("a/b/c/deep.txt", b"deep", mode=0o4755),
        entry("a/b.txt", b"behind a/b/", mode=0o000),
        directory("empty folder", 0o1777),
        entry("a/zero", b""),
        entry("a name with spaces", b"spaces"),
        entry("späße/ü", b"UTF-8"),
        entry("long/" + "n" * 200 + "/" + "m" * 200, b"long"),
        symlink("link", "a/b/c/deep.txt"),
        symlink("absolute", "/etc/passwd"),
        symlink("dangling", "no where/ü"),
        symlink("up", "../../up"),
        entry("m/file", b"three names", mode=0o640),
        hard_link("z/link", "m/file"),
        hard_link("b/link", "z/link", mode=0o600, mtime=MTIME + 5),
        entry("large.bin", noise.randbytes(20 * 1024**2), mode=0o755),
        entry("older", b"of 1970", mtime=0),
        entry("set", b"group", mode=0o2711),
    )
    of_body = await files_of(client, engine, await image_by_body(client, tar))
    of_session = await files_of(client, engine, await image_of(client, tar, COPY_ALL + "ENV other=text\n"))
    assert of_session.keys() == of_body.keys()
    assert {name: (of_body[name], of_session[name]) for name in of_body if of_body[name] != of_session[name]} == {}


async def test_the_dockerfile_is_not_the_one_in_the_context(client: Engine, tmp_path: Path) -> None:
    """What is built is the text of the request; what is copied is the user's own file."""
    tar = checked(tmp_path)
    events = await run(client, wanted(tar, FROM_BASE + "COPY Dockerfile /user\nRUN cat /user # printed\n"))
    assert output(events) == COPY_ALL


async def test_what_is_ignored_is_not_sent(client: Engine, tmp_path: Path) -> None:
    """BuildKit has of the context what `.dockerignore` leaves of it, and that file itself, to be copied alone."""
    ignore = entry(".dockerignore", b"secret\n*.txt\n!b.txt\n")
    tar = checked(tmp_path, ignore, *(entry(name, name.encode()) for name in ("secret", "a.txt", "b.txt")))
    events = await run(client, wanted(tar, FROM_BASE + "COPY . /x\nRUN ls -A /x\n"))
    assert output(events).split() == [".dockerignore", "Dockerfile", "b.txt"]
    events = await run(client, wanted(tar, FROM_BASE + "COPY .dockerignore /y\nRUN head -n 1 /y\n"))
    assert output(events) == "secret\n"


async def test_single_files_are_copied_by_name(client: Engine, tmp_path: Path) -> None:
    """BuildKit asks by 70 KiB of names for what one instruction copies; links and what they lead to arrive too."""
    # Few names, but long: of a hundred in one instruction 20.10 says "flightcontrol: exceeded retry timeout".
    names = [f"folder-{number}/{'/'.join(['a-long-name-' * 20] * 15)}/{number}" for number in range(20)]
    tar = checked(
        tmp_path,
        *(entry(name, name.encode()) for name in names),
        symlink("link", names[0]),
        symlink("folder", "folder-1"),
        hard_link("same", names[2]),
    )
    text = (
        f"{FROM_BASE}COPY {LINE_END.join(names)} /all/\nCOPY link folder/*/*/*/*/*/*/*/*/*/*/*/*/*/*/*/1 same /some/\n"
    )
    events = await run(client, wanted(tar, text + "RUN ls /all | wc -l; cd /some && cat link 1 same\n"))
    assert output(events) == f"20\n{names[0]}{names[1]}{names[2]}"


async def test_sessions_never_mix(client: Engine, tmp_path: Path) -> None:
    """Files of equal name, size and time but other content, one build after the other and both at once, stay apart."""
    tars = [checked(tmp_path, entry("secret", owner.encode() * 1000)) for owner in ("alice ", "bobby ")]
    assert tars[0].stat().st_size == tars[1].stat().st_size
    for order in (tars, tars[::-1]):
        for tar in order:
            assert await secret_in_image(client, tar) == secret_in(tar)
    both = await asyncio.gather(*(secret_in_image(client, tar) for tar in tars))
    assert both == [secret_in(tar) for tar in tars]


async def secret_in_image(client: Engine, tar: Path) -> str:
    text = FROM_BASE + "COPY secret /secret\nRUN cat /secret\n"
    return output(await run(client, wanted(tar, text, no_cache=True)))


def secret_in(tar: Path) -> str:
    with tarfile.open(tar) as archive:
        content = archive.extractfile("secret")
        assert content is not None
        return content.read().decode()


async def test_names_that_are_no_text(client: Engine, tmp_path: Path) -> None:
    """Docker 20.10 and 26 take names that are not UTF-8; of 28 the fault says which name it does not take."""
    tar = checked(tmp_path, entry("odd \udcff name", b"odd\n"))
    build = wanted(tar, FROM_BASE + "COPY . /x\nRUN cat /x/odd*\n")
    if int((await client.ping()).version.partition(".")[0]) <= 26:
        assert output(await run(client, build)) == "odd\n"
        return
    with pytest.raises(Permanent, match=r"'odd .*xff name', which is not UTF-8") as caught:
        await run(client, build)
    assert caught.value.code is ErrorCode.INVALID


async def test_many_files_and_large_ones(client: Engine, tmp_path: Path) -> None:
    """Thousands of files, empty ones among them, are each requested and sent while large ones are under way."""
    files = [entry(f"d{number % 97}/f{number}", b"%d\n" % number * (number % 7)) for number in range(5000)]
    large = [entry(f"large{number}", random.Random(number).randbytes(8 * 1024**2 + number)) for number in range(3)]
    tar = checked(tmp_path, *large, *files)
    digests = hashlib.sha256("".join(sorted(_digest(content) + "\n" for _, content in large + files)).encode())
    listing = "find /x -type f ! -name Dockerfile | xargs sha256sum | cut -c-64 | sort | sha256sum"
    text = f"{FROM_BASE}COPY . /x\nRUN {listing}\n"
    events = await run(client, wanted(tar, text))
    assert output(events).split()[0] == digests.hexdigest()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


async def test_a_build_that_is_cancelled_in_mid_transfer_leaves_nothing(client: Engine, tmp_path: Path) -> None:
    """No task, socket or file of the session stays; the engine builds on."""
    size = 8 * 1024**3
    begun = asyncio.Event()
    folder = WatchedFolder([large(size)], sparse(tmp_path, size), asyncio.get_running_loop(), begun.set)
    await client.ping()
    before = open_files()
    tasks = asyncio.all_tasks()
    building = asyncio.create_task(build_of(client, folder))
    await begun.wait()
    building.cancel()
    with pytest.raises(asyncio.CancelledError):
        await building
    assert asyncio.all_tasks() == tasks
    # A block that was being read is read to its end, in its thread.
    await until(lambda: open_files() <= before, timeout_s=10)
    assert output(await run(client, request(tmp_path, "buildkit", FROM_BASE + "RUN echo on\n"))) == "on\n"


async def test_a_session_that_breaks_is_temporary(
    client: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the engine then says of the build: it is not the Dockerfile's fault."""
    connections: list[Upgraded] = []

    class Noted(Upgraded):
        def __init__(self, response: aiohttp.ClientResponse) -> None:
            super().__init__(response)
            connections.append(self)

    monkeypatch.setattr("imagejobd.engine.client.Upgraded", Noted)
    size = 1024**3
    loop = asyncio.get_running_loop()
    content = sparse(tmp_path, size)
    folder = WatchedFolder([large(size)], content, loop, lambda: connections[0]._transport.abort())
    with pytest.raises(Temporary) as caught:
        await build_of(client, folder)
    assert caught.value.code is ErrorCode.ENGINE_UNAVAILABLE


async def test_a_context_that_is_cut_short_is_the_disks_fault(client: Engine, tmp_path: Path) -> None:
    """What the folder's entries promise and the file does not hold ends the build as an OSError."""
    with pytest.raises(OSError, match="ends within"):
        await build_of(client, Folder([large(100_000)], sparse(tmp_path, 99_999)))


@pytest.mark.parametrize("is_tls", [False, True], ids=["tcp", "tls"])
async def test_an_engine_behind_tcp(
    engine: PrivateEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_tls: bool
) -> None:
    """A session works over TCP and TLS as it does over the socket."""
    tls = None
    if is_tls:
        certificate = issue(tmp_path)
        certificate.certificate_file.rename(tmp_path / "cert.pem")
        certificate.key_file.rename(tmp_path / "key.pem")
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
        monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
        monkeypatch.setenv("DOCKER_CERT_PATH", str(tmp_path))
    tar = checked(tmp_path, entry("large", random.Random(2).randbytes(3_000_000)))
    async with relay(engine.socket, tls) as port, Engine(EngineSettings(host=f"tcp://127.0.0.1:{port}")) as client:
        events = await run(client, wanted(tar, FROM_BASE + "COPY large /\nRUN wc -c /large\n", no_cache=True))
        assert output(events) == "3000000 /large\n"


@pytest.mark.parametrize(
    ("ignored", "result"),
    [
        (None, None),
        (b"", b"\n.imagejobd.Dockerfile\n"),
        (b"secret\n!.imagejobd.*", b"secret\n!.imagejobd.*\n.imagejobd.Dockerfile\n"),
        (b".dockerignore\n", None),
    ],
    ids=["none", "empty", "pleads", "hides-itself"],
)
async def test_the_classic_builder_sees_the_users_files_only(
    client: Engine, engine: PrivateEngine, tmp_path: Path, ignored: bytes | None, result: bytes | None
) -> None:
    """It builds the text of the request, of which the image has nothing; a `.dockerignore` has one line more."""
    own = () if ignored is None else (entry(".dockerignore", ignored, mode=0o600), hard_link("other", ".dockerignore"))
    tar = checked(tmp_path, entry("a", b"file"), *own)
    build = msgspec.structs.replace(wanted(tar, COPY_ALL + "ENV other=text\n"), builder="classic")
    events = await run(client, build)
    assert isinstance(events[-1], Built)
    files = await files_of(client, engine, events[-1].image_id)
    names = {"x", "x/a", "x/Dockerfile"} | ({"x/other"} if own else set()) | ({"x/.dockerignore"} if result else set())
    assert files.keys() == names
    assert files["x/Dockerfile"][-1] == hashlib.sha256(COPY_ALL.encode()).hexdigest()
    if result is not None:
        assert files["x/.dockerignore"][-1] == hashlib.sha256(result).hexdigest()
        assert files["x/.dockerignore"][5] == MTIME
        assert files["x/other"][-1] == hashlib.sha256(ignored or b"").hexdigest()


async def test_a_name_that_the_classic_builder_cannot_have(client: Engine, tmp_path: Path) -> None:
    """A context whose name stands in the way is refused in plain words."""
    tar = checked(tmp_path, entry(".imagejobd.Dockerfile"))
    build = msgspec.structs.replace(wanted(tar, COPY_ALL), builder="classic")
    with pytest.raises(Permanent, match="rename it") as caught:
        await run(client, build)
    assert caught.value.code is ErrorCode.INVALID
