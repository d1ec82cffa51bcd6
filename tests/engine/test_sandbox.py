"""What a sandboxed image may do, sees and says, in a real engine."""

import asyncio
import re
from typing import Any

import pytest
from builds import FROM_BASE
from sandboxes import LIMITS, MIB, image_of, run, sandboxed, volumes

from harness.base_image import BUSYBOX
from harness.engine import PrivateEngine
from imagejobd.engine.client import Engine
from imagejobd.engine.sandbox import Exit, Sandbox, create, discard, leftovers
from imagejobd.model.errors import ErrorCode, Permanent
from imagejobd.model.job import uuid7
from imagejobd.model.ownership import NO_INSTALLATION, Owner, resource_name


def shell(script: str) -> str:
    """A CMD that runs a script."""
    return f"CMD {script}\n"


async def test_output_and_exit_code_are_told_by_stream(client: Engine, engine: PrivateEngine) -> None:
    """What a quick container says is complete, and its exit code is its own."""
    async with sandboxed(client, engine, shell("echo grüße; echo bad >&2; exit 3")) as sandbox:
        assert await run(sandbox) == ("grüße\n", "bad\n", Exit(3, is_out_of_memory=False))


async def test_there_is_no_network(client: Engine, engine: PrivateEngine) -> None:
    """Only loopback, and no route leads anywhere."""
    async with sandboxed(client, engine, shell("ls /sys/class/net; tail -n +2 /proc/net/route")) as sandbox:
        assert (await run(sandbox)).out == "lo\n"


async def test_root_has_no_rights(client: Engine, engine: PrivateEngine) -> None:
    """No capability in any set, no new privileges, and a read-only root."""
    script = "grep -E '^(Cap|NoNew)' /proc/self/status; touch /x /bin/x /etc/passwd; ls /dev/shm"
    async with sandboxed(client, engine, shell(script)) as sandbox:
        out, err, _ = await run(sandbox)
    status = dict(re.findall(r"(\w+):\s+(\w+)", out))
    assert status.pop("NoNewPrivs") == "1"
    assert set(status.values()) == {"0" * 16}
    assert len(status) == 5
    assert err.count("Read-only file system") == 3
    assert "/dev/shm: No such file" in err


async def test_limits_are_set(client: Engine, engine: PrivateEngine) -> None:
    """Open files, file size and core dumps are bounded; /tmp is small and runs nothing."""
    script = (
        "ulimit -n; ulimit -f; ulimit -c; cp /bin/busybox /tmp/b; /tmp/b true || echo noexec;"
        " dd if=/dev/zero of=/tmp/x bs=1M count=3 || echo full"
    )
    async with sandboxed(client, engine, shell(script)) as sandbox:
        out, err, _ = await run(sandbox)
    assert out.split() == ["256", str(4 * MIB // 512), "0", "noexec", "full"]
    assert "No space left on device" in err


async def test_the_engine_was_given_every_setting(client: Engine, engine: PrivateEngine) -> None:
    """What no process inside can tell is asked of the engine."""
    uuid = uuid7()
    try:
        await create(client, uuid=uuid, attempt=7, image=BUSYBOX, limits=LIMITS)
        settings = engine.docker(
            "inspect",
            resource_name(NO_INSTALLATION, uuid, 7),
            "--format",
            "{{with .HostConfig}}{{.Memory}} {{.MemorySwap}} {{.NanoCpus}} {{.PidsLimit}} {{.Init}} {{.IpcMode}}"
            " {{.CgroupnsMode}} {{.RestartPolicy.Name}} {{.AutoRemove}} {{.LogConfig.Type}}{{end}}",
        )
        assert await leftovers(client) == {Owner(NO_INSTALLATION, uuid)}
    finally:
        await discard(client, uuid)
    assert settings == f"{64 * MIB} {64 * MIB} 1000000000 64 true none private no false local"


async def looked_at_twice(sandbox: Sandbox, name: str) -> bytes | None:
    """As the run kind does it: a busy engine may miss a file at first."""
    data = await sandbox.read_data(name, max_bytes=100)
    if data is None:
        await asyncio.sleep(0.5)
        data = await sandbox.read_data(name, max_bytes=100)
    return data


@pytest.mark.parametrize(
    ("user", "folder"),
    [
        ("", ""),
        ("USER root:nogroup\n", ""),
        ("USER nobody\n", ""),
        ("USER nobody\n", "RUN mkdir /data && echo x >/data/old\n"),
        ("USER nobody\n", "RUN mkdir -m 700 /data\nVOLUME /data\n"),
        ("USER nobody\n", "RUN mkdir /elsewhere && ln -s /elsewhere /data\n"),
        ("USER 4242:4243\n", ""),
    ],
)
async def test_every_user_may_write_data(client: Engine, engine: PrivateEngine, user: str, folder: str) -> None:
    """`/data` is empty and writable, whoever the image runs as and whatever it has there."""
    text = f"{folder}{user}" + shell("ls /data; echo '{}' >/data/perf.json")
    async with sandboxed(client, engine, text) as sandbox:
        assert await run(sandbox) == ("", "", Exit(0, is_out_of_memory=False))
        assert await looked_at_twice(sandbox, "perf.json") == b"{}\n"


@pytest.mark.parametrize("there", ["echo >", "ln -s /etc ", "ln -s /absent ", "mkdir -m 700 "])
async def test_what_has_the_jobs_name_in_the_image_is_no_hindrance(
    client: Engine, engine: PrivateEngine, there: str
) -> None:
    """A build knows its job's id, but no path that it can know of is used to open `/data`."""
    uuid = uuid7()
    steps = "".join(
        f"RUN {there}/{name}\n"
        for name in (f"imagejobd-{NO_INSTALLATION}-{uuid}", resource_name(NO_INSTALLATION, uuid, 1))
    )
    image = image_of(engine, f"{steps}USER 1000\n" + shell("echo 1 >/data/x && cat /data/x"))
    try:
        sandbox = await create(client, uuid=uuid, attempt=1, image=image, limits=LIMITS)
        assert await run(sandbox) == ("1\n", "", Exit(0, is_out_of_memory=False))
    finally:
        await discard(client, uuid)


async def test_volumes_of_the_image_are_the_jobs_own(client: Engine, engine: PrivateEngine) -> None:
    """A VOLUME keeps what the image has there, and its owner; no anonymous volume appears, not even while it runs."""
    before = volumes(engine)
    folder = "RUN mkdir /cache && echo old >/cache/x && chown nobody /cache\n"
    text = f'{folder}VOLUME ["/cache", "/a/b/", "/tmp", "/data"]\nUSER nobody\n' + shell("cat /cache/x; echo >/cache/y")
    async with sandboxed(client, engine, text) as sandbox:
        assert await run(sandbox) == ("old\n", "", Exit(0, is_out_of_memory=False))
        new = volumes(engine) - before
        assert len(new) == 3
        assert all(name.startswith("imagejobd-") for name in new)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([f"/v{number}" for number in range(17)], "17 VOLUMEs; at most 16"),
        # The engine would copy its content once for every level.
        (["/a", "/a-b", "/a/b/c"], "VOLUME /a/b/c inside VOLUME /a;"),
    ],
    ids=["many", "nested"],
)
async def test_volumes_that_cannot_be_given_are_refused(
    client: Engine, engine: PrivateEngine, paths: list[str], message: str
) -> None:
    """Too many, with how many there are and may be, or one inside another."""
    with pytest.raises(Permanent, match=message) as caught:
        async with sandboxed(client, engine, f"VOLUME {' '.join(paths)}\nCMD true\n"):
            pass
    assert caught.value.code is ErrorCode.RUN_FAILED


async def test_a_healthcheck_does_not_run(client: Engine, engine: PrivateEngine) -> None:
    """The image's own probe is off."""
    text = "HEALTHCHECK --interval=1s CMD touch /data/probed\n" + shell("sleep 1.6; ls /data")
    async with sandboxed(client, engine, text) as sandbox:
        assert (await run(sandbox)).out == ""


async def test_entrypoint_command_and_environment_are_honoured(client: Engine, engine: PrivateEngine) -> None:
    """The image is run as it says, in its folder."""
    text = 'ENV WHO=you\nWORKDIR /etc\nENTRYPOINT ["sh", "-c", "echo $0 $WHO; pwd"]\nCMD ["hello"]\n'
    async with sandboxed(client, engine, text) as sandbox:
        assert (await run(sandbox)).out == "hello you\n/etc\n"


@pytest.mark.parametrize(
    ("text", "base", "message"),
    [
        ("COPY --from=b /etc/passwd /x\n", f"FROM {BUSYBOX} AS b\nFROM scratch\n", "[Nn]o command specified"),
        ("USER ghost\n", FROM_BASE, "unable to find user ghost"),
        ("RUN echo >/data\n", FROM_BASE, "/data.* not a directory"),
    ],
)
async def test_an_image_that_cannot_start_is_its_own_fault(
    client: Engine, engine: PrivateEngine, text: str, base: str, message: str
) -> None:
    """The engine's words reach the user, without its floors."""
    with pytest.raises(Permanent, match=message) as caught:
        async with sandboxed(client, engine, text, base=base) as sandbox:
            await run(sandbox)
    assert caught.value.code is ErrorCode.RUN_FAILED
    assert "OCI" not in caught.value.message
    assert str(engine.folder) not in caught.value.message


async def test_a_command_that_is_not_there_says_so(client: Engine, engine: PrivateEngine) -> None:
    """The init process tells it, and exits as a shell does."""
    async with sandboxed(client, engine, 'CMD ["/nope"]\n') as sandbox:
        _, err, ended = await run(sandbox)
    assert "/nope failed: No such file or directory" in err
    assert ended.code == 127


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"memory_bytes": MIB}, "Minimum memory limit allowed is 6MB"),
        ({"cpus": 1000.0}, "[Rr]ange of CPUs is from 0.01"),
        ({"runtime": "nonesuch"}, "nonesuch"),
    ],
)
async def test_limits_that_the_engine_refuses_are_the_operators(
    client: Engine, engine: PrivateEngine, limits: dict[str, Any], message: str
) -> None:
    """The image is not to blame, and the fault names the table to look at."""
    with pytest.raises(Permanent, match=rf"\[kinds\.run\]: .*{message}") as caught:
        async with sandboxed(client, engine, shell("true"), **limits):
            pass
    assert caught.value.code is ErrorCode.ENGINE_UNAVAILABLE


async def test_the_least_that_may_be_set_runs_a_shell(client: Engine, engine: PrivateEngine) -> None:
    """The lower bounds of the settings leave room for what starts a container."""
    least = {"memory_bytes": 6 * MIB, "cpus": 0.01, "pids": 8, "files": 64}
    async with sandboxed(client, engine, shell("ls /data; echo ran"), **least) as sandbox:
        assert await run(sandbox) == ("ran\n", "", Exit(0, is_out_of_memory=False))


async def test_no_such_image_is_permanent(client: Engine) -> None:
    """An image that is gone is not found, and nothing is made for it."""
    uuid = uuid7()
    with pytest.raises(Permanent, match="imagejobd-test/absent:1") as caught:
        await create(client, uuid=uuid, attempt=1, image="imagejobd-test/absent:1", limits=LIMITS)
    assert caught.value.code is ErrorCode.NOT_FOUND
    assert uuid not in {owner.uuid for owner in await leftovers(client)}


async def test_a_second_attempt_replaces_the_first(client: Engine, engine: PrivateEngine) -> None:
    """Nothing of the attempt before is seen by the next."""
    uuid, image = uuid7(), image_of(engine, shell("ls /data; echo >/data/old"))
    try:
        for attempt in (1, 1, 2):
            sandbox = await create(client, uuid=uuid, attempt=attempt, image=image, limits=LIMITS)
            assert (await run(sandbox)).out == ""
        assert engine.docker("ps", "--all", "--format", "{{.Names}}") == resource_name(NO_INSTALLATION, uuid, 2)
    finally:
        await discard(client, uuid)
        await discard(client, uuid)


async def test_strangers_are_left_alone(client: Engine, engine: PrivateEngine) -> None:
    """The label alone, as an image hands it on, or the name alone makes nothing ours."""
    uuid = uuid7()
    label = f"imagejobd.job={uuid}"
    strangers = [
        engine.docker("create", "--network=none", "--label", label, BUSYBOX),
        engine.docker("create", "--network=none", "--name", resource_name(NO_INSTALLATION, uuid, 1), BUSYBOX),
    ]
    engine.docker("volume", "create", "--label", label, "stranger")
    try:
        assert uuid not in {owner.uuid for owner in await leftovers(client)}
        await discard(client, uuid)
        assert set(engine.docker("ps", "--all", "--quiet", "--no-trunc").split()) == set(strangers)
        assert "stranger" in volumes(engine)
    finally:
        engine.docker("rm", *strangers)
        engine.docker("volume", "rm", "stranger")
