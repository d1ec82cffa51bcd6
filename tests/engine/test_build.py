"""Builds on a real engine, by both builders."""

import asyncio
import json
from pathlib import Path

import pytest
from builds import FROM_BASE, output, request, run

from harness.base_image import BUSYBOX
from harness.engine import PrivateEngine
from imagejobd.engine import images
from imagejobd.engine.client import Engine
from imagejobd.engine.stream import BuildEvent, Built, Output, Step
from imagejobd.model.errors import ErrorCode, Permanent
from imagejobd.model.job import uuid7
from imagejobd.model.reference import ImageReference

LINES = 20_000
# Docker 20.10 loses what waits beyond 1 MiB of a burst.
LONG_LINE_BYTES = 700_000
# More than 20.10 can follow.
NOISE_BYTES = 8 * 1024**2
NOISE_TIMEOUT_S = 60.0
NOISE_ENDS = r"exit code: 3|non-zero code: 3|lost the rest(.|\n)*last output(.|\n)*noise"


async def test_a_build_ends_with_the_id_of_an_image_that_has_all_its_tags(
    client: Engine, builder: str, tmp_path: Path
) -> None:
    """The last event is Built; the engine knows the image by every tag that was asked for."""
    tags = (f"imagejobd/{uuid7()}:1", f"imagejobd/{uuid7()}:2")
    events = await run(client, request(tmp_path, builder, FROM_BASE + "RUN true\n", tags=tags))
    assert isinstance(events[-1], Built)
    for tag in tags:
        image = await images.inspect(client, tag)
        assert image is not None
        assert image.id == events[-1].image_id
        assert await images.remove(client, ImageReference.parse(tag))


async def test_output_carries_step_and_stream(client: Engine, builder: str, tmp_path: Path) -> None:
    """What a RUN prints comes with the number of its step and the stream it was printed to."""
    dockerfile = FROM_BASE + "RUN echo to-out; echo to-err >&2; printf 'no end'\n"
    events = await run(client, request(tmp_path, builder, dockerfile, no_cache=True))
    step = _step(events, "RUN echo to-out", "started")
    printed = [e for e in events if isinstance(e, Output) and e.step == step.number]
    assert "to-out\n" in "".join(e.text for e in printed if e.stream == "out")
    assert "no end" in "".join(e.text for e in printed if e.stream == "out")
    assert "".join(e.text for e in printed if e.stream == "err") == "to-err\n"


async def test_steps_are_timed(client: Engine, builder: str, tmp_path: Path) -> None:
    """A step that sleeps 0.7 s is said to have taken that long, and what the engine needs around it."""
    events = await run(client, request(tmp_path, builder, FROM_BASE + "RUN sleep 0.7\n", no_cache=True))
    seconds = _step(events, "RUN sleep 0.7", "done").seconds
    assert seconds is not None
    assert 0.7 <= seconds < 30


async def test_every_step_starts_once_and_ends_once(client: Engine, builder: str, tmp_path: Path) -> None:
    """Numbers count up without a gap, and each number has one start and one end."""
    dockerfile = FROM_BASE + "RUN echo a > /a\nRUN echo b > /b\n"
    events = await run(client, request(tmp_path, builder, dockerfile, no_cache=True))
    steps = [e for e in events if isinstance(e, Step)]
    started = [e.number for e in steps if e.state == "started"]
    assert started == list(range(1, len(started) + 1))
    assert sorted(e.number for e in steps if e.state != "started") == started


async def test_a_repeated_build_is_cached(client: Engine, builder: str, tmp_path: Path) -> None:
    """The second build of the same Dockerfile says that the step came from the cache."""
    wanted = request(tmp_path, builder, FROM_BASE + f"RUN echo {uuid7()} > /unique\n")
    first = await run(client, wanted)
    second = await run(client, wanted)
    assert _step(first, "/unique", "done")
    assert _step(second, "/unique", "cached")


async def test_a_failing_run_ends_with_exit_code_and_last_lines(client: Engine, builder: str, tmp_path: Path) -> None:
    """The fault names the exit code and the last ten lines of the step that failed, and no earlier ones."""
    events: list[BuildEvent] = []
    dockerfile = FROM_BASE + "RUN echo other-step\nRUN for i in $(seq 1 30); do echo line-$i-; done; exit 42\n"
    with pytest.raises(Permanent) as caught:
        await run(client, request(tmp_path, builder, dockerfile, no_cache=True), events)
    assert caught.value.code is ErrorCode.BUILD_FAILED
    message, _, tail = caught.value.message.partition("\n")
    assert message.rstrip().endswith("42")
    assert tail.splitlines()[1:] == [f"line-{i}-" for i in range(21, 31)]
    assert _step(events, "exit 42", "failed").error is not None


async def test_the_last_words_are_bounded(client: Engine, builder: str, tmp_path: Path) -> None:
    """A failing step that printed one long line adds at most 2 KiB of it to the fault."""
    dockerfile = FROM_BASE + "RUN head -c 100000 /dev/zero | tr '\\0' x; exit 1\n"
    with pytest.raises(Permanent) as caught:
        await run(client, request(tmp_path, builder, dockerfile, no_cache=True))
    assert 2000 < caught.value.message.count("x") < 2100


@pytest.mark.parametrize(
    ("dockerfile", "files", "reason"),
    [
        ("RUM true\n", {}, "unknown instruction: RUM"),
        ("COPY absent /\n", {}, "absent"),
    ],
)
async def test_what_is_wrong_with_a_dockerfile_reaches_the_user(
    client: Engine, builder: str, tmp_path: Path, dockerfile: str, files: dict[str, bytes], reason: str
) -> None:
    """The engine's own words about a bad Dockerfile are the permanent fault's message."""
    with pytest.raises(Permanent, match=reason) as caught:
        await run(client, request(tmp_path, builder, FROM_BASE + dockerfile, files))
    assert caught.value.code is ErrorCode.BUILD_FAILED


async def test_a_target_stage_is_built_and_no_more(client: Engine, builder: str, tmp_path: Path) -> None:
    """With a target, later stages are not built; files come over from earlier stages."""
    dockerfile = (
        f"FROM {BUSYBOX} AS first\nRUN echo made > /made\n"
        f"FROM {BUSYBOX} AS second\nCOPY --from=first /made /made\nRUN cat /made\n"
        f"FROM {BUSYBOX}\nRUN echo never; exit 1\n"
    )
    events = await run(client, request(tmp_path, builder, dockerfile, target="second", no_cache=True))
    assert "made\n" in output(events)
    assert "never\n" not in output(events)


async def test_arguments_and_labels_arrive(client: Engine, engine: PrivateEngine, builder: str, tmp_path: Path) -> None:
    """Build args keep every character; labels are the user's and no others."""
    tag, value = f"imagejobd/{uuid7()}:1", "a b&c=d+e%20'\"ü"
    dockerfile = FROM_BASE + 'ARG VALUE\nRUN echo "<$VALUE>"\n'
    wanted = request(
        tmp_path, builder, dockerfile, build_args={"VALUE": value}, labels={"my.label": value}, tags=(tag,)
    )
    events = await run(client, wanted)
    assert f"<{value}>\n" in output(events)
    labels = json.loads(engine.docker("inspect", "--format", "{{json .Config.Labels}}", tag))
    assert labels == {"my.label": value}
    await images.remove(client, ImageReference.parse(tag))


async def test_a_long_line_arrives_whole(client: Engine, builder: str, tmp_path: Path) -> None:
    """A line longer than the 512 KiB of aiohttp's reader is no error and loses no byte."""
    dockerfile = FROM_BASE + f"RUN head -c {LONG_LINE_BYTES} /dev/zero | tr '\\0' '#'; echo; echo end\n"
    events = await run(client, request(tmp_path, builder, dockerfile, no_cache=True))
    assert output(events).count("#") == LONG_LINE_BYTES
    assert "#\nend\n" in output(events)


async def test_many_lines_arrive_in_order(client: Engine, builder: str, tmp_path: Path) -> None:
    """Twenty thousand lines are all there, in the order of their printing."""
    events = await run(client, request(tmp_path, builder, FROM_BASE + f"RUN seq 1 {LINES}\n", no_cache=True))
    numbers = [line for line in output(events).splitlines() if line.isdecimal()]
    assert numbers == [str(n) for n in range(1, LINES + 1)]


async def test_a_noisy_step_that_fails_ends_the_build(client: Engine, builder: str, tmp_path: Path) -> None:
    """Docker 20.10 may lose its end in the flood, and never says so: it is found out, and what is known is reported."""
    noise = f"RUN yes {'noise' * 20} | head -c {NOISE_BYTES}; echo; exit 3\n"
    async with asyncio.timeout(NOISE_TIMEOUT_S):
        with pytest.raises(Permanent, match=NOISE_ENDS) as caught:
            await run(client, request(tmp_path, builder, FROM_BASE + noise, no_cache=True))
    assert caught.value.code is ErrorCode.BUILD_FAILED


async def test_a_noisy_step_that_goes_on_is_waited_for(client: Engine, builder: str, tmp_path: Path) -> None:
    """Silence after a flood is no end: what still works may succeed."""
    noise = f"RUN yes {'noise' * 20} | head -c {NOISE_BYTES}; sleep 6\nRUN sleep 3\n"
    events = await run(client, request(tmp_path, builder, FROM_BASE + noise, no_cache=True))
    assert isinstance(events[-1], Built)


async def test_the_network_is_the_one_that_was_asked_for(client: Engine, builder: str, tmp_path: Path) -> None:
    """Without a network a RUN step sees the loopback device only."""
    events = await run(client, request(tmp_path, builder, FROM_BASE + "RUN ls /sys/class/net\n", no_cache=True))
    assert "lo\n" in output(events)
    assert "eth" not in output(events)


async def test_cache_mounts_are_apart_by_namespace(client: Engine, tmp_path: Path) -> None:
    """What one tenant leaves in a cache mount another does not find."""
    mount = f"RUN --mount=type=cache,id={uuid7()},target=/c "
    write = request(tmp_path, "buildkit", FROM_BASE + mount + "echo left > /c/file\n", cache_scope="one")
    await run(client, write)
    read = FROM_BASE + mount + "cat /c/file || echo nothing\n"
    same = await run(client, request(tmp_path, "buildkit", read, cache_scope="one"))
    other = await run(client, request(tmp_path, "buildkit", read, cache_scope="two"))
    assert "left\n" in output(same)
    assert "nothing\n" in output(other)


async def test_a_classic_build_leaves_no_container(client: Engine, engine: PrivateEngine, tmp_path: Path) -> None:
    """Neither a build that succeeds nor one that fails leaves the containers of its steps behind."""
    await run(client, request(tmp_path, "classic", FROM_BASE + "RUN true\n", no_cache=True))
    with pytest.raises(Permanent):
        await run(client, request(tmp_path, "classic", FROM_BASE + "RUN false\n", no_cache=True))
    assert engine.docker("ps", "--all", "--quiet") == ""


def _step(events: list[BuildEvent], name: str, state: str) -> Step:
    found = [e for e in events if isinstance(e, Step) and name in e.name and e.state == state]
    assert len(found) == 1, f"expected one {state} step {name!r} in {events}"
    return found[0]
