"""The classic builder: its prose as events, programs that imitate it, what it is sent, and what it leaves."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from builds import FROM_BASE, request, run, until

from harness.base_image import BUSYBOX
from harness.engine import PrivateEngine
from harness.processes import processes, unique_seconds
from imagejobd.engine.classic import ClassicProgress, classic_body, remove_remains
from imagejobd.engine.client import Engine
from imagejobd.engine.stream import BuildEvent, Message, Output, Step
from imagejobd.model.errors import Permanent
from imagejobd.model.job import uuid7

# As every build of a tenant is made: without the steps of earlier ones.
OWN = {"no_cache": True}
STAGES = f"FROM {BUSYBOX} AS one\nRUN echo 1 >/1\nENV a=1\nFROM one AS two\nRUN echo 2 >/2\n{FROM_BASE}"
TIMEOUT_S = 20.0


def read(progress: ClassicProgress, *texts: str) -> list[BuildEvent]:
    return list(progress.read(Message(stream=text) for text in texts))


def step(number: int, instruction: str, total: int = 3) -> tuple[str, str]:
    return f"Step {number}/{total} : {instruction}", "\n"


def test_steps_are_timed_by_the_clock() -> None:
    """A step ends when the next begins; its time is what passed on the clock between."""
    clock = iter([10.0, 12.5, 12.5])
    progress = ClassicProgress(clock=lambda: next(clock))
    events = read(progress, *step(1, "FROM x"), *step(2, "RUN y"))
    assert events == [
        Step(1, "[1/3] FROM x", "started"),
        Step(1, "[1/3] FROM x", "done", 2.5),
        Step(2, "[2/3] RUN y", "started"),
    ]


def test_red_is_stderr() -> None:
    """The engine's colour is taken off and becomes the stream."""
    events = read(ClassicProgress(), *step(1, "RUN x"), "\x1b[91moops\n\x1b[0m")
    assert events[-1] == Output(1, "err", "oops\n")


def test_a_program_cannot_begin_steps_with_whole_lines() -> None:
    """A step line with its line end, out of turn or of another total is a program's output."""
    fakes = ["Step 2/3 : RUN fake\n", "Step 3/3 : RUN fake", "Step 2/9 : RUN fake"]
    events = read(ClassicProgress(), *step(1, "RUN x"), *fakes)
    assert [e.state for e in events if isinstance(e, Step)] == ["started"]
    assert "".join(e.text for e in events if isinstance(e, Output)) == "".join(fakes)


def test_only_the_builder_names_the_container() -> None:
    """The first line of a step names its container; a later one of the same look does not change it."""
    progress = ClassicProgress()
    read(progress, *step(1, "RUN x"), " ---> Running in aaaaaaaaaaaa\n", " ---> Running in bbbbbbbbbbbb\n")
    assert progress.container == "aaaaaaaaaaaa"


def test_last_words_are_the_programs() -> None:
    """What the builder says of its containers is no word of the step that failed."""
    progress = ClassicProgress()
    read(progress, *step(1, "RUN x"), " ---> Running in aaaaaaaaaaaa\n", "reason\n")
    read(progress, "Removing intermediate container aaaaaaaaaaaa\n")
    assert progress.last_words() == ("step 1 ([1/3] RUN x)", "reason")


def test_the_id_of_an_earlier_stage_is_no_result() -> None:
    """The engine reports an id at the end of each stage; only that of the last step counts."""
    progress = ClassicProgress()
    read(progress, *step(1, "FROM x", 2))
    list(progress.read([Message(aux=msgspec.Raw(b'{"ID":"sha256:stage"}'))]))
    assert progress.image_id == ""
    read(progress, *step(2, "FROM y", 2))
    assert progress.image_id == ""
    list(progress.read([Message(aux=msgspec.Raw(b'{"ID":"sha256:result"}'))]))
    assert progress.image_id == "sha256:result"


async def test_a_context_that_is_cut_short_is_the_disks_fault(tmp_path: Path) -> None:
    """A file that loses its end while it is sent ends the body as an OSError, and does not hang."""
    wanted = request(tmp_path, "classic", FROM_BASE, {"large": bytes(1_000_000)})
    async with asyncio.timeout(TIMEOUT_S):
        body = await classic_body(wanted.context, wanted.entries, wanted.dockerfile)
        await anext(body)
        with wanted.context.open("r+b") as file:
            file.truncate(500_000)
        with pytest.raises(OSError, match="bytes early"):
            async for _ in body:
                pass


def everything_in(engine: PrivateEngine) -> set[str]:
    """All containers and images, those without a name too."""
    images = engine.docker("images", "--all", "--quiet", "--no-trunc").split()
    return {*images, *engine.docker("ps", "--all", "--quiet").split()}


def a_build() -> bytes:
    return f"{FROM_BASE}LABEL a={uuid7()}\n".encode()


async def test_a_failed_build_leaves_nothing(client: Engine, engine: PrivateEngine, tmp_path: Path) -> None:
    """Neither the images of its steps, in any of its stages, nor a container."""
    before = everything_in(engine)
    with pytest.raises(Permanent, match="non-zero code: 3"):
        await run(client, request(tmp_path, "classic", STAGES + "COPY --from=two /2 /\nRUN exit 3\n", **OWN))
    assert everything_in(engine) == before
    assert client.remains == {}


async def test_a_cancelled_build_leaves_nothing(client: Engine, engine: PrivateEngine, tmp_path: Path) -> None:
    """What the engine still uses as it stops the build is removed a moment later."""
    before, sleep = everything_in(engine), unique_seconds()
    text = STAGES + f"COPY --from=two /2 /\nRUN sleep {sleep}\n"
    task = asyncio.create_task(run(client, request(tmp_path, "classic", text, **OWN)))
    await until(lambda: bool(processes(sleep)), timeout_s=TIMEOUT_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(TIMEOUT_S):
        while client.remains:
            await remove_remains(client)
            await asyncio.sleep(0.1)
    assert everything_in(engine) == before


async def test_a_good_build_leaves_its_image_only(client: Engine, engine: PrivateEngine, tmp_path: Path) -> None:
    """The stages beside the last one go at once, and those that it is built on with it."""
    before, tag = everything_in(engine), f"imagejobd/{uuid7()}:1"
    text = STAGES + "COPY --from=two /2 /\n"
    await run(client, request(tmp_path, "classic", text, tags=(tag,), **OWN))
    engine.docker("rmi", tag)
    await remove_remains(client)
    assert everything_in(engine) == before
    assert client.remains == {}


async def test_a_step_cannot_have_others_images_removed(client: Engine, engine: PrivateEngine, tmp_path: Path) -> None:
    """Whatever ids it prints: images with a name stay, and so do those that are older than the build."""
    name = f"imagejobd-test/{uuid7()}:1"
    engine.docker("build", "--tag", name, "-", input=a_build(), buildkit=False)
    image = engine.docker("inspect", "--format", "{{.Id}}", name)
    engine.docker("build", "--tag", name, "-", input=a_build(), buildkit=False)
    for victim in (image, engine.docker("inspect", "--format", "{{.Id}}", BUSYBOX)):
        short_id = victim.removeprefix("sha256:")[:12]
        with pytest.raises(Permanent, match="non-zero code: 3"):
            await run(client, request(tmp_path, "classic", FROM_BASE + f"RUN echo ' ---> {short_id}'; exit 3\n", **OWN))
        assert engine.docker("inspect", "--format", "{{.Id}}", victim) == victim
    engine.docker("rmi", name, image)


async def test_a_running_container_goes_and_others_stay(client: Engine, engine: PrivateEngine) -> None:
    """One container is removed, though it runs; doing so again is no error."""
    began = datetime.now(UTC)
    running = engine.docker("run", "--detach", "--network=none", BUSYBOX, "sleep", "1000")
    other = engine.docker("create", "--network=none", BUSYBOX)
    for _ in range(2):
        client.remains["container", running[:12]] = began
        await remove_remains(client)
        assert client.remains == {}
        assert engine.docker("ps", "--all", "--quiet", "--no-trunc") == other
    engine.docker("rm", other)


async def test_a_container_from_before_the_build_is_left_alone(client: Engine, engine: PrivateEngine) -> None:
    """A RUN step that prints the id of somebody's container does not have it removed."""
    victim = engine.docker("run", "--detach", "--network=none", BUSYBOX, "sleep", "1000")
    client.remains["container", victim[:12]] = datetime.now(UTC)
    await remove_remains(client)
    assert engine.docker("ps", "--quiet", "--no-trunc") == victim
    engine.docker("rm", "--force", victim)
