"""What one tenant has in the engine and in the daemon is out of another's reach: each way to it, tried.

Tenant 1 has a build that runs on a private base, one that is being pushed, and one that is pushed in vain over a name
that everybody builds on; then all of them end. Tenant 2 tries to build on what is there, meanwhile and afterwards.
"""

import contextlib
import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from harness.base_image import BUSYBOX
from harness.client import Answer, Client, Fields
from harness.dispatch_box import DispatchBox, Tenant
from harness.engine import PrivateEngine
from harness.holdings import Held, holdings_of
from harness.logins import LOGIN
from harness.marked_image import marks_in, names_in_engine, put_marked, show_mark
from harness.proxy import Answer as Refusal
from harness.proxy import FaultProxy, StallRequest
from harness.registry import Registry
from harness.services import require
from harness.waiting import until
from imagejobd.model.ownership import job_repository, pin_repository

# What could not be removed at once goes with the next sweep, a minute later.
STAND_S = 90.0
DENIED = b'{"errors": [{"code": "DENIED", "message": "not to you"}]}'
LIMITS = {"retry_for_s": 0.0, "build": 32, "per_tenant_running": 32}
PERF = "CMD echo '{\"perf\": 1}' > /data/perf.json"


def build(tenant: Client, image: str, *lines: str, **spec: Any) -> Answer:
    body = {"image": image, "dockerfile": "\n".join([*lines, ""])} | spec
    return tenant.call("POST", "/api/v2/jobs", {"kind": "build", "spec": body})


class Theirs(NamedTuple):
    """Jobs of tenant 1, by UUID, and the names by which an engine would find their images."""

    building: str
    pushing: str
    pushing_in_vain: str
    names: Mapping[str, str]


class Attempt(NamedTuple):
    """A build of tenant 2."""

    dockerfile: str
    answer: Answer


class Matrix(NamedTuple):
    """What tenant 2 tried for each row while the jobs of tenant 1 went on, and after they ended."""

    tenant: Tenant
    theirs: Theirs
    during: Mapping[str, list[Attempt]]
    after: Mapping[str, list[Attempt]]
    in_vain: list[Attempt]


# Each row, with how its name is made of what an engine knows.
ROWS: dict[str, Callable[[Mapping[str, str]], str]] = {
    "image by the job's name": "{job}:1".format_map,
    "image by the job's name on the Hub": "docker.io/{job}:1".format_map,
    "image by the job's name, old host": "index.docker.io/{job}:1".format_map,
    "image by the job's name, other host": "registry-1.docker.io/{job}:1".format_map,
    "image by the job's name, upper case": "DOCKER.IO/{job}:1".format_map,
    "image by the job's name and digest": "{job}@{image_id}".format_map,
    "image by its id": "{image_id}".format_map,
    "image by the digits of its id": "{image_hex}".format_map,
    "image by the beginning of its id": "{image_short}".format_map,
    "image by its id as a digest of the Hub": "docker.io/library/any@{image_id}".format_map,
    "image by the tag that is pushed": "{pushed}:1".format_map,
    "image by the digest that is pushed": "{pushed}@{pushed_digest}".format_map,
    "base by its tag": "{base}:1".format_map,
    "base by its digest": "{base_digest}".format_map,
    "base by its tag and digest": "{base_digest_with_tag}".format_map,
    "base by its digest elsewhere": "{elsewhere}".format_map,
    "base by its id": "{base_id}".format_map,
    "base by the beginning of its id": "{base_short}".format_map,
    "base by the name that holds it": "{held}".format_map,
}
# How tenant 2 uses a name: the lines of a Dockerfile, and what is said of pulling.
WAYS = (
    ("FROM {}", {}),
    ("FROM {}", {"pull": "never"}),
    (f"FROM {BUSYBOX}\nCOPY --from={{}} /mark /mark", {"pull": "never"}),
    (f"FROM {BUSYBOX}\nRUN --mount=from={{}},target=/m cp /m/mark /mark", {}),
)
# What may still be in the engine is all that is left to get.
WAYS_AFTERWARDS = tuple(way for way in WAYS if way[1])


@pytest.fixture(scope="module", params=["buildkit", "classic"])
def box(request: pytest.FixtureRequest, engine: PrivateEngine) -> Iterator[DispatchBox]:
    """The daemon with one of the builders."""
    require("docker-registry")
    is_shared = request.param == "shared"
    settings = {"share_build_cache": True} if is_shared else {}
    builder = "buildkit" if is_shared else request.param
    with DispatchBox(engine, builder=builder, engine=settings, limits=LIMITS) as box:
        yield box
        box.check_healthy()


def boxes(*names: str) -> pytest.MarkDecorator:
    """Only with these: `buildkit`, `classic`, or BuildKit with a cache that tenants share."""
    return pytest.mark.parametrize("box", names, indirect=True, scope="module")


@pytest.fixture(scope="module")
def matrix(box: DispatchBox, registry: Registry, private_registry: Registry) -> Iterator[Matrix]:
    """All attempts at once, since what they wait for is the same."""
    one, two = box.tenant(1), box.tenant(2)
    with ExitStack() as stack:
        private = stack.enter_context(FaultProxy(private_registry.host))
        public = stack.enter_context(FaultProxy(registry.host))
        put_marked(private_registry, "team/base", "secret")
        everybodys = put_marked(registry, "everybodys/base", "public").replace(registry.host, public.host)
        # Not the layers: all builds share the engine's five uploads at a time.
        private.add("PUT", "/v2/one/app/manifests/.*", StallRequest(), times=None)
        public.add("POST", "/v2/everybodys/base/blobs/.*", StallRequest(), times=None)
        public.add("PUT", "/v2/everybodys/base/manifests/.*", Refusal(403, body=DENIED), times=None)
        theirs = start(box, one, private, private_registry, everybodys)
        during = {row: attempts(two, registry, name(theirs.names)) for row, name in ROWS.items()}
        in_vain = attempts(two, registry, everybodys)
        # Whoever of them did not wait for tenant 1 has had his turn when this one has.
        two.succeeded(build(two, f"{registry.host}/two/last:1", f"FROM {BUSYBOX}").json["id"])
        private.release()
        public.release()
        finish(one, theirs)
        for attempt in [*in_vain, *(attempt for row in during.values() for attempt in row)]:
            settle(two, attempt)
        after = {row: attempts(two, registry, name(theirs.names), WAYS_AFTERWARDS) for row, name in ROWS.items()}
        for attempt in (attempt for row in after.values() for attempt in row):
            settle(two, attempt)
        yield Matrix(two, theirs, during, after, in_vain)


def start(box: DispatchBox, one: Tenant, private: FaultProxy, registry: Registry, everybodys: str) -> Theirs:
    """Tenant 1's jobs, each at its place."""
    engine, own = box.engine, box.daemon.installation
    base, pushed = f"{private.host}/team/base", f"{private.host}/one/app"
    secret = f"RUN echo {uuid.uuid4()} > /secret"
    building = build(one, f"{pushed}:2", f"FROM {base}:1", "RUN echo started; sleep 600", **LOGIN).json["id"]
    pushing = build(one, f"{pushed}:1", f"FROM {base}:1", secret, **LOGIN).json["id"]
    in_vain = build(one, everybodys, f"FROM {BUSYBOX}", "RUN echo poison > /mark", secret).json["id"]
    one.prints(building, "RUN echo started")
    for job in (pushing, in_vain):
        one.prints(job, "pushing ")
    private.wait_for("PUT", "/v2/one/app/manifests/.*", timeout_s=STAND_S)
    image_id = engine.docker("inspect", "--format", "{{.Id}}", f"{job_repository(own, pushing)}:1")
    base_id, by_digest = names_in_engine(engine, registry, f"{registry.host}/team/base:1")
    digest = by_digest.partition("@")[2]
    held = engine.docker("images", "--format", "{{.Repository}}:{{.Tag}}", pin_repository(own, building)).split()
    names = {
        "job": job_repository(own, pushing),
        "image_id": image_id,
        "image_hex": image_id.removeprefix("sha256:"),
        "image_short": image_id.removeprefix("sha256:")[:12],
        "pushed": pushed,
        "pushed_digest": image_id,
        "base": base,
        "base_digest": f"{base}@{digest}",
        "base_digest_with_tag": f"{base}:1@{digest}",
        "elsewhere": f"{everybodys.rpartition(':')[0]}@{digest}",
        "base_id": base_id,
        "base_short": base_id.removeprefix("sha256:")[:12],
        "held": held[0] if held else f"{pin_repository(own, building)}:base-0",
    }
    return Theirs(building, pushing, in_vain, names)


def finish(one: Tenant, theirs: Theirs) -> None:
    one.succeeded(theirs.pushing)
    assert one.ended(theirs.pushing_in_vain)["state"] == "failed"
    one.cancel(theirs.building)
    one.ended(theirs.building)


def attempts(two: Tenant, registry: Registry, name: str, ways: Sequence[tuple[str, Fields]] = WAYS) -> list[Attempt]:
    """Build on `name` in each of these ways."""
    tried = []
    for number, (way, spec) in enumerate(ways):
        text = way.format(name)
        answer = build(two, f"{registry.host}/two/app:{number}", text, show_mark(), nocache=True, **spec)
        tried.append(Attempt(text, answer))
    return tried


def settle(two: Tenant, attempt: Attempt) -> None:
    if attempt.answer.status == 201:
        two.ended(attempt.answer.json["id"])


def check_refused(two: Tenant, attempt: Attempt) -> None:
    """Refused at submission, or a job that failed; in no case has anything of tenant 1 been seen."""
    if attempt.answer.status != 201:
        assert attempt.answer.json["code"] in ("policy", "invalid"), attempt
        return
    job = two.ended(attempt.answer.json["id"])
    assert job["state"] == "failed", attempt
    assert job["error"]["code"] in ("denied", "not_found", "invalid", "policy", "registry_unavailable"), job["error"]
    assert marks_in(two.log(job["id"]), "secret", "poison") == set()


@pytest.mark.parametrize("row", ROWS)
def test_while_it_is_there(matrix: Matrix, row: str) -> None:
    """Nothing that a job of tenant 1 has in the engine is anybody else's base, by none of its names."""
    for attempt in matrix.during[row]:
        check_refused(matrix.tenant, attempt)


@pytest.mark.parametrize("row", ROWS)
def test_after_it_has_gone(matrix: Matrix, row: str) -> None:
    """Nor is it when the job has ended, though parts of it may still be in the engine."""
    for attempt in matrix.after[row]:
        check_refused(matrix.tenant, attempt)


def test_a_tag_that_is_borrowed(box: DispatchBox, matrix: Matrix) -> None:
    """A name that everybody builds on means to them what the registry has, also while tenant 1 pushes over it."""
    for attempt in matrix.in_vain:
        job = matrix.tenant.ended(attempt.answer.json["id"])
        assert marks_in(matrix.tenant.log(job["id"]), "poison") == set(), attempt
    first = matrix.in_vain[0].answer.json["id"]
    matrix.tenant.succeeded(first)
    assert marks_in(matrix.tenant.log(first), "public", "poison") == {"public"}


def test_nothing_is_left(engine: PrivateEngine, box: DispatchBox, matrix: Matrix) -> None:
    """The engine holds nothing of an ended job."""
    for job in (matrix.theirs.building, matrix.theirs.pushing, matrix.theirs.pushing_in_vain):

        def holds(job: str = job) -> list[Held]:
            return holdings_of(engine, job)

        def held_and_why(job: str = job) -> str:
            lines = [line for line in box.daemon.log_text().splitlines() if job in line or "level=warning" in line]
            return "\n".join([f"the engine to let go of {holds(job)}; the daemon says:", *lines])

        until(lambda: not holds(), timeout_s=STAND_S, what=held_and_why)


OTHERS_TARGETS = ("imagejobd/{}:1", "docker.io/imagejobd/{}:1", "index.docker.io/imagejobd/{}:1")
OTHERS_TARGETS += ("registry-1.docker.io/imagejobd/{}:1", "DOCKER.IO/imagejobd/{}:1", "127.0.0.1:1/imagejobd/{}:1")


@pytest.mark.parametrize("image", OTHERS_TARGETS)
def test_no_push_over_a_jobs_image(matrix: Matrix, image: str) -> None:
    """Nobody gives his own image the name of another's."""
    answer = build(
        matrix.tenant, image.format(matrix.theirs.names["job"].removeprefix("imagejobd/")), f"FROM {BUSYBOX}"
    )
    assert (answer.status, answer.json["code"]) == (422, "policy"), answer.text


class Records(NamedTuple):
    """Ended jobs of tenant 1, and what their logs say."""

    jobs: Mapping[str, str]
    number: str
    word: str


@pytest.fixture(scope="module")
def records(box: DispatchBox) -> Records:
    one, word = box.tenant(1), str(uuid.uuid4())
    # The steps themselves stay in the cache of builds; what they print need not.
    said = {kind: f"RUN : {kind}; printf '%s-%s\\n' said {word}" for kind in ("run", "build", "dispatch")}
    run = {"dockerfile": f"FROM {BUSYBOX}\n{said['run']}\n{PERF}\n"}
    jobs = {
        "run": one.call("POST", "/api/v2/jobs", {"kind": "run", "spec": run}).json["id"],
        "build": build(one, "127.0.0.1:9/nobody/there", f"FROM {BUSYBOX}", said["build"]).json["id"],
    }
    number = one.dispatch(f"FROM {BUSYBOX}\n{said['dispatch']}\n".encode())
    jobs["dispatch"] = one.job(number)["id"]
    for kind, job in jobs.items():
        one.ended(job)
        assert f"said-{word}" in one.log(job), kind
    return Records(jobs, number, f"said-{word}")


PATHS = {
    "job": "/api/v2/jobs/{uuid}",
    "log": "/api/v2/jobs/{uuid}/log",
    "log as it comes": "/api/v2/jobs/{uuid}/log?follow=1",
    "events": "/api/v2/jobs/{uuid}/events",
    "job by its number": "/api/v2/jobs/{number}",
    "log by its number": "/api/v2/jobs/{number}/log",
    "builder's status": "/api/v1/{uuid}/status",
    "builder's log": "/api/v1/{uuid}/logs",
    "status of a run": "/status?id={uuid}",
    "dispatched job": "/api/v1/job/{number}",
    "status of a dispatched job": "/api/v1/job/{number}/status",
    "dispatched image": "/images/{number}",
    "distribution": "/api/distribute/image/{uuid}",
}


@pytest.mark.parametrize("what", PATHS)
@pytest.mark.parametrize("kind", ["build", "run", "dispatch"])
def test_records(box: DispatchBox, records: Records, kind: str, what: str) -> None:
    """No API has a job of tenant 1 for tenant 2."""
    path = PATHS[what].format(uuid=records.jobs[kind], number=records.number)
    answer = box.tenant(2).call("GET", path)
    assert answer.status == 404, answer.text
    assert records.word not in answer.text


def test_lists_and_cancelling(box: DispatchBox, records: Records) -> None:
    """Nor does any list show one, or any order reach it."""
    two = box.tenant(2)
    for query in ("", "&tenant=1", "&state=succeeded", "&kind=run"):
        listed = {job["id"] for job in two.call("GET", f"/api/v2/jobs?limit=500{query}").json["jobs"]}
        assert listed.isdisjoint(records.jobs.values())
    for job in records.jobs.values():
        assert two.cancel(job) == 404


def test_the_engines_records(engine: PrivateEngine, records: Records) -> None:
    """What the engine keeps of builds, whoever may read it, has nothing of what an ended job has printed."""
    # Docker 26 lets go of the file only as it prunes.
    engine.docker("builder", "prune", "--force", "--keep-storage", "100GB")
    until(lambda: not is_kept(engine, records.word), timeout_s=STAND_S, what="the engine to forget an ended job")


def is_kept(engine: PrivateEngine, word: str) -> bool:
    """Whether any file of the engine holds it; what goes while we look does not."""
    for folder, _, names in os.walk(engine.folder / "data"):
        for name in names:
            path = Path(folder, name)
            with contextlib.suppress(FileNotFoundError):
                if path.is_file() and not path.is_symlink() and word.encode() in path.read_bytes():
                    return True
    return False


class Poison(NamedTuple):
    """What tenant 1 builds, and what tenant 2 builds later, in a stage of its own; `/x` tells who has made it."""

    first: tuple[str, ...]
    second: tuple[str, ...]


def by_argument(name: str) -> Poison:
    """An argument of the proxy's is seen by RUN, and no part of what BuildKit knows a step by."""
    lines = (f"RUN : KEY; echo ${{{name}:-clean}} > /x",)
    return Poison(lines, lines)


def by_mount(options: str) -> Poison:
    """What one finds in a cache mount, the other has put there."""
    mount = f"RUN --mount=type=cache,target=/c,{options}"
    return Poison((f"{mount} echo poison > /c/KEY; touch /x",), (f"{mount} cat /c/KEY > /x 2>&- || echo clean > /x",))


def by_step(options: str) -> Poison:
    """What one finds in it, the other has found in his own."""
    fill, read = by_mount(options)
    return Poison((*fill, *read), read)


PROXY_ARGS = ("http_proxy", "HTTPS_PROXY", "no_proxy", "FTP_PROXY")
POISONS = {
    **{f"step with {name}": by_argument(name) for name in PROXY_ARGS},
    "cache mount": by_mount("sharing=shared"),
    "step with a cache mount": by_step("sharing=shared"),
    "cache mount with an id": by_mount("id=an-id"),
    "step with a cache mount with an id": by_step("id=an-id"),
    "step with a private cache mount": by_step("id=private-id,sharing=private"),
    "step with a locked cache mount": by_step("id=locked-id,sharing=locked"),
    "step with a mode and owner": by_step("id=owned-id,mode=0777,uid=1"),
}


def poisoned(tenant: Client, registry: Registry, key: str, args: Fields, stages: Mapping[str, tuple[str, ...]]) -> str:
    """Build all of `stages`; the log, which tells what each has made."""
    lines: list[str] = []
    for number, steps in enumerate(stages.values()):
        lines += [f"FROM {BUSYBOX} AS s{number}", *(step.replace("KEY", f"{key}-{number}") for step in steps)]
    lines += [f"FROM {BUSYBOX}", *(f"COPY --from=s{number} /x /x/{number}" for number in range(len(stages)))]
    show = f"RUN : {uuid.uuid4()}; cd /x; for x in *; do echo made-$x-$(cat $x); done"
    job = build(tenant, f"{registry.host}/poison/app:1", *lines, show, build_args=args).json["id"]
    tenant.succeeded(job)
    return tenant.log(job)


def found(box: DispatchBox, registry: Registry, second: Client) -> dict[str, str]:
    """What `second` gets for each poison after tenant 1 has built."""
    key = uuid.uuid4().hex
    args = dict.fromkeys(PROXY_ARGS, "poison")
    poisoned(box.tenant(1), registry, key, args, {row: poison.first for row, poison in POISONS.items()})
    log = poisoned(second, registry, key, {}, {row: poison.second for row, poison in POISONS.items()})
    made = dict(re.findall(r"made-(\d+)-(\w+)", log))
    return {row: made[str(number)] for number, row in enumerate(POISONS)}


@pytest.fixture(scope="module")
def got(box: DispatchBox, registry: Registry) -> dict[str, str]:
    return found(box, registry, box.tenant(2))


@pytest.fixture(scope="module")
def got_anonymously(box: DispatchBox, registry: Registry) -> dict[str, str]:
    return found(box, registry, Client(box.daemon))


@boxes("buildkit")
@pytest.mark.parametrize("row", POISONS)
def test_poisoned_steps(got: dict[str, str], got_anonymously: dict[str, str], row: str) -> None:
    """Nobody gets a step or cache mount of another tenant, who could have made anything of it."""
    assert (got[row], got_anonymously[row]) == ("clean", "clean")


RANDOM = ("RUN : KEY; cat /proc/sys/kernel/random/uuid > /x", "RUN : LAST; echo made-$(cat /x)")


def made(tenant: Client, registry: Registry, key: str) -> str:
    """What a step that gives something else each time has given this tenant."""
    text = [line.replace("KEY", key).replace("LAST", uuid.uuid4().hex) for line in RANDOM]
    job = build(tenant, f"{registry.host}/same/app:1", f"FROM {BUSYBOX}", *text).json["id"]
    tenant.succeeded(job)
    return next(iter(re.findall(r"made-[0-9a-f-]{36}", tenant.log(job))))


def test_identical_steps(box: DispatchBox, registry: Registry) -> None:
    """A step is run once for each tenant; BuildKit's cache serves the tenant's own builds."""
    key = uuid.uuid4().hex
    results = [made(tenant, registry, key) for tenant in (box.tenant(1), box.tenant(2), Client(box.daemon))]
    assert len(set(results)) == 3
    if box.builder == "buildkit":
        assert made(box.tenant(1), registry, key) == results[0]


def test_two_builds_at_once(box: DispatchBox, registry: Registry) -> None:
    """Builds of two tenants on one base do not stop each other, nor does one's log name the other's job."""
    tenants, text = (box.tenant(1), box.tenant(2)), (f"FROM {BUSYBOX}", "RUN echo $RANDOM")
    for _ in range(3):
        both = [build(tenant, f"{registry.host}/at-once/app:1", *text).json["id"] for tenant in tenants]
        for tenant, job, other in zip(tenants, both, reversed(both), strict=True):
            tenant.succeeded(job)
            assert other not in tenant.log(job)


@boxes("shared")
@pytest.mark.parametrize("row", POISONS)
def test_steps_that_are_shared(got: dict[str, str], row: str) -> None:
    """Where the operator has tenants share the cache, they get each other's steps and mounts."""
    assert got[row] == "poison"


@boxes("shared")
def test_identical_steps_that_are_shared(box: DispatchBox, registry: Registry) -> None:
    """A step is run once for all."""
    key = uuid.uuid4().hex
    assert made(box.tenant(1), registry, key) == made(box.tenant(2), registry, key)
