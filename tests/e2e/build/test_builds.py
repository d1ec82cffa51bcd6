"""The main job on a real engine and real registries, and its failures that are the user's to mend."""

import json
import uuid
from itertools import accumulate

import pytest

from harness.base_image import BUSYBOX
from harness.bodies import dockerfile
from harness.build_box import BuildBox, publish_base
from harness.engine import PrivateEngine
from harness.logins import LOGIN
from harness.registry import PASSWORD, Registry
from harness.waiting import until

BUILDERS = ("buildkit", "classic")

MULTI_STAGE = f"""ARG BASE={BUSYBOX}
FROM ${{BASE}} AS compile
ARG WHO=nobody
RUN echo "compiled for $WHO" > /out && cat /out && echo problem >&2
FROM scratch AS small
COPY --from=compile /out /out
LABEL stage=small
FROM ${{BASE}}
RUN echo never reached && false
"""


def test_multi_stage_with_target(either_box: BuildBox, registry: Registry) -> None:
    """RUN steps print into the log, the target's image is pushed under each tag, and the engine keeps nothing."""
    name = f"{registry.host}/multi/{either_box.builder}"
    job = either_box.submit_build(
        f"{name}:1", MULTI_STAGE, target="small", build_args={"WHO": "me"}, labels={"a": "b"}, tags=["2"]
    )
    ended = either_box.succeeded(job)
    log = either_box.logs(job)
    assert "compiled for me" in log
    assert "problem" in log
    assert "never reached" not in log
    assert ended["result"]["digest"] == registry.digest(f"multi/{either_box.builder}", "1")
    assert registry.tags(f"multi/{either_box.builder}") == ["1", "2"]
    assert [phase["name"] for phase in ended["phases"]] == ["building", "pushing", "purging"]
    assert all(phase["finished_at"] for phase in ended["phases"])
    either_box.check_clean()
    with registry.request("GET", f"/v2/multi/{either_box.builder}/manifests/1") as answer:
        config = json.load(answer)["config"]["digest"]
    with registry.request("GET", f"/v2/multi/{either_box.builder}/blobs/{config}") as answer:
        assert json.load(answer)["config"]["Labels"] == {"stage": "small", "a": "b"}


def test_a_build_tells_how_far_it_has_come(either_box: BuildBox, registry: Registry) -> None:
    """Steps of the Dockerfile: those that have begun, of all, and how many have ended; of a job that succeeded all."""
    steps = [f"echo {uuid.uuid4()}", "false", "echo never"]
    text = dockerfile(*(f"RUN {step}" for step in steps))
    progress = either_box.failed(either_box.submit_build(f"{registry.host}/far:1", text))["progress"]
    assert (progress["step"], progress["steps"], progress["percent"]) == (3, 4, 50)
    good = either_box.succeeded(either_box.submit_build(f"{registry.host}/far:1", dockerfile(f"RUN {steps[0]}")))
    assert (good["progress"]["step"], good["progress"]["steps"], good["progress"]["percent"]) == (2, 2, 100)


def test_what_was_pushed_is_counted(either_box: BuildBox, registry: Registry) -> None:
    """The history has a line for each tag with the bytes that were sent: as they are in the registry, and only once."""
    path = f"counted/{either_box.builder}"
    base = dockerfile("RUN head -c 300000 /dev/urandom > /random && head -c 3000000 /dev/zero > /zero")
    job = either_box.submit_build(f"{registry.host}/{path}:1", base, tags=["2"])
    either_box.succeeded(job)
    columns = "kind, registry, repository, tag, digest, sent_bytes, outcome, error"
    rows = either_box.daemon.sqlite(f"SELECT {columns} FROM push_history WHERE uuid = ? ORDER BY tag", (job,))
    digest = registry.digest(path, "1")
    (*first, first_bytes, _, _), (*second, second_bytes, _, _) = rows
    assert first == ["build", registry.host, path, "1", digest]
    assert second == ["build", registry.host, path, "2", digest]
    assert [row[-2:] for row in rows] == [("pushed", None)] * 2
    with registry.request("GET", f"/v2/{path}/manifests/1") as answer:
        manifest = json.load(answer)
    layers = [layer["size"] for layer in manifest["layers"]]
    # The base may have been mounted from a repository of another test, and some engines tell of the config too.
    assert 300_000 <= layers[-1] <= first_bytes <= sum(layers) + manifest["config"]["size"]
    assert second_bytes == 0
    columns = "sent_bytes + mounted_bytes + skipped_bytes, total_bytes, seconds > 0"
    figures = either_box.daemon.sqlite(f"SELECT {columns} FROM push JOIN job ON id = job_id WHERE uuid = ?", (job,))
    assert all(total in (sum(layers), sum(layers) + manifest["config"]["size"]) for total, _, _ in figures)
    assert all((told, timed) == (total, 1) for total, told, timed in figures)


def test_a_push_that_fails_is_in_the_history(box: BuildBox) -> None:
    """With its error, under the registry and the tag that it was for."""
    with Registry(read_only=True) as closed:
        job = box.build(f"{closed.host}/a/b:1", dockerfile("RUN true"))
        assert box.ended(job)["state"] == "failed"
        columns = "registry, repository, tag, digest, sent_bytes, outcome, error"
        (row,) = box.daemon.sqlite(f"SELECT {columns} FROM push_history WHERE uuid = ?", (job,))
    assert row[:6] == (closed.host, "a/b", "1", None, None, "failed")
    assert row[6]


def test_failing_run(either_box: BuildBox, registry: Registry) -> None:
    """A failing RUN ends the job at once; exit code and last lines reach both Status and Logs."""
    name = f"{registry.host}/failing/{either_box.builder}"
    job = either_box.build(name, dockerfile("RUN echo the last words; exit 7"))
    ended = either_box.ended(job)
    assert (ended["state"], ended["attempt"], ended["error"]["code"]) == ("failed", 1, "build_failed")
    for text in (either_box.status(job), either_box.logs(job)):
        assert "7" in text
        assert "the last words" in text
    assert either_box.status(job).startswith("Failed: ")
    assert registry.tags(f"failing/{either_box.builder}") == []
    either_box.check_clean()


@pytest.mark.parametrize("builder", BUILDERS)
def test_private_base(engine: PrivateEngine, private_registry: Registry, builder: str) -> None:
    """A base behind a login comes with the request's credentials or the configured ones, never without, never stays."""
    base = publish_base(engine, private_registry, builder)
    text = f"FROM {base}\nRUN echo on a private base\n"
    result = f"{private_registry.host}/results/{builder}"
    with BuildBox(engine, builder=builder) as b:
        b.succeeded(b.build(f"{result}:request", text, **LOGIN))
        b.check_clean()
        refused = b.ended(b.build(f"{result}:none", text))
        assert (refused["state"], refused["attempt"], refused["error"]["code"]) == ("failed", 1, "denied")
        assert base in refused["error"]["message"]
        assert "check the user name" in refused["error"]["message"]
    password_file = private_registry.folder / "password"
    password_file.write_text(PASSWORD)
    configured = {"username": LOGIN["username"], "password_file": str(password_file), "plain_http": True}
    with BuildBox(engine, builder=builder, registry={private_registry.host: configured}) as b:
        b.succeeded(b.build(f"{result}:configured", text))
        b.check_clean()
    assert private_registry.tags(f"results/{builder}") == ["configured", "request"]


def test_push_denied(box: BuildBox, private_registry: Registry) -> None:
    """A wrong password ends the job at its first push, with a hint and without the password."""
    wrong = LOGIN | {"password": "not-the-password"}
    job = box.build(f"{private_registry.host}/denied", dockerfile("RUN true"), **wrong)
    ended = box.ended(job)
    assert (ended["state"], ended["attempt"], ended["error"]["code"]) == ("failed", 1, "denied")
    assert "check the user name, the password" in box.status(job)
    assert "not-the-password" not in box.status(job) + box.logs(job)
    box.check_clean()


def test_identical_builds_at_once(engine: PrivateEngine, registry: Registry) -> None:
    """Builds that share image and tag all succeed, and an operator's image of that name has it back afterwards."""
    name = f"{registry.host}/same/name:1"
    before = engine.docker("build", "--quiet", "-", input=f"FROM {BUSYBOX}\nLABEL of=operator\n".encode())
    engine.docker("tag", before, name)
    same = dockerfile(f"RUN echo {uuid.uuid4()} > /id")
    with BuildBox(engine, limits={"build": 4}) as b:
        jobs = b.all_succeeded(*[b.build(name, same) for _ in range(6)])
        digests = {job["result"]["digest"] for job in jobs}
        assert registry.digest("same/name", "1") in digests
        assert engine.docker("inspect", "--format", "{{.Id}}", name) == before
        b.check_clean()
    engine.docker("rmi", name)


def test_a_long_queue(engine: PrivateEngine, registry: Registry) -> None:
    """60 builds with two slots: all end, never more than two at once, and the bound on the queue is told with 503."""
    with BuildBox(engine, limits={"build": 2, "queue_max": 65}) as b:
        warm = b.build(f"{registry.host}/queue/warm", dockerfile("LABEL x=y"))
        b.succeeded(warm)
        good, no_base = dockerfile("LABEL x=y"), "FROM no-such/base:1\n"
        no_file = dockerfile("FROM scratch", "COPY --from=0 /nothing /")
        texts = [good, no_file, *[no_base] * 4] * 10
        jobs = [b.submit_build(f"{registry.host}/queue/many:1", text, pull="never") for text in texts]
        extra = b.call("GET", "/healthz")
        while extra.status == 200:
            extra = b.call("POST", "/api/v1/build", {"image_name": "127.0.0.1:9/x", "dockerfile": no_file})
        assert extra.status == 503
        assert int(extra.headers["retry-after"]) > 0
        assert "queue_max" in extra.json["Error"]
        until(lambda: b.daemon.sqlite("select 1 from job where state in ('queued', 'running')") == [], what="the queue")
        for job, text in zip(jobs, texts, strict=True):
            assert b.ended(job)["state"] == ("succeeded" if text == good else "failed")
        assert most_at_once(b) == 2
        b.check_clean()


def most_at_once(b: BuildBox) -> int:
    """How many jobs were running at the same time, by the history."""
    moves = b.daemon.sqlite("select type from event where type in ('claim', 'succeed', 'fail', 'retry') order by id")
    return max(accumulate(1 if move == "claim" else -1 for (move,) in moves))
