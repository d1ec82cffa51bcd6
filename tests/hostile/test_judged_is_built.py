"""What is built is what was judged: Dockerfiles that two readers read differently, and names that mean the same image.

A hostile tenant tries each through the API, with both of the engine's builders, under the default policy and under one
that allows some images. With the former the aim is the private base that another tenant's build uses at the time, which
the engine has. Whatever is not refused must be built on the very image that the daemon has judged: `/mark` tells.
"""

import json
import re
from collections.abc import Iterator, Set
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import pytest

from harness.client import Answer, Fields
from harness.dispatch_box import DispatchBox, Tenant
from harness.engine import PrivateEngine
from harness.marked_image import marks_in, names_in_engine, put_marked, show_mark
from harness.registry import PASSWORD, USERNAME, Registry
from harness.services import require

# Readers differ by builder, and what is judged does not: the stricter policy is tried with one of them.
PLACES = ("default-buildkit", "default-classic", "restrictive-buildkit")
# What a job may fail with: it was judged, could not be read, or there was no right to what it names.
REFUSALS = {"policy", "invalid", "denied"}


class Bases(NamedTuple):
    """What a Dockerfile may be built on (`good`), and what not (`evil`).

    `host` has `x86_64/base:1`, which is good, and `amd64/base:1`, which is not.
    """

    good: str
    evil: str
    host: str

    def text(self, *lines: str) -> str:
        """Lines with the words GOOD, EVIL, HOST, and SHOW for a step that tells the mark."""
        words = {"GOOD": self.good, "EVIL": self.evil, "HOST": self.host, "SHOW": show_mark()}
        return re.sub("|".join(words), lambda word: words[word.group()], "\n".join([*lines, ""]))


class Place(NamedTuple):
    """A daemon with its hostile tenant, and what he may and may not build on there."""

    box: DispatchBox
    tenant: Tenant
    bases: Bases
    evil_registry: Registry
    pushes_to: Registry

    def submit(self, text: str, **spec: Any) -> Answer:
        body = {"image": f"{self.pushes_to.host}/built/app:1", "dockerfile": text, "nocache": True} | spec
        return self.tenant.call("POST", "/api/v2/jobs", {"kind": "build", "spec": body})

    def check(self, answer: Answer, *, refusals: Set[str] = REFUSALS) -> None:
        """It is refused, or built on what is good."""
        if answer.status != 201:
            assert answer.json["code"] in refusals, answer.text
            return
        job = self.tenant.ended(answer.json["id"])
        log = self.tenant.log(job["id"])
        if job["state"] == "succeeded":
            assert marks_in(log, "good", "evil") == {"good"}, log
            good = layers_of(self.pushes_to, self.bases.good)
            assert layers(self.pushes_to, "built/app", job["result"]["digest"])[: len(good)] == good
        else:
            assert job["error"]["code"] in refusals, job["error"]
            assert marks_in(log, "good", "evil") == set(), log


def layers(registry: Registry, repository: str, name: str) -> list[str]:
    """The digests of what the layers of an image unpack to."""
    manifest = json.loads(registry.manifest(repository, name))
    with registry.request("GET", f"/v2/{repository}/blobs/{manifest['config']['digest']}") as answer:
        diff_ids: list[str] = json.load(answer)["rootfs"]["diff_ids"]
    return diff_ids


def layers_of(registry: Registry, image: str) -> list[str]:
    repository, _, tag = image.removeprefix(f"{registry.host}/").rpartition(":")
    return layers(registry, repository, tag)


@pytest.fixture(scope="module")
def open_bases(engine: PrivateEngine, registry: Registry) -> Iterator[Bases]:
    """Both in an open registry, and in the engine: what is evil there is so by the operator's word."""
    put_marked(registry, "x86_64/base", "good")
    put_marked(registry, "amd64/base", "evil")
    bases = Bases(
        put_marked(registry, "allowed/base", "good"), put_marked(registry, "evil/base", "evil"), registry.host
    )
    for name in (bases.good, bases.evil):
        engine.docker("pull", name)
    yield bases
    engine.docker("rmi", bases.good, bases.evil)


@pytest.fixture(scope="module")
def private_bases(engine: PrivateEngine, private_registry: Registry, open_bases: Bases) -> Iterator[Bases]:
    """What is evil is another's; what is good there the engine has already."""
    put_marked(private_registry, "amd64/base", "evil")
    evil = put_marked(private_registry, "team/base", "evil")
    there = f"{private_registry.host}/x86_64/base:1"
    engine.docker("tag", open_bases.good, there)
    yield Bases(open_bases.good, evil, private_registry.host)
    engine.docker("rmi", there)


@pytest.fixture(scope="module", params=PLACES)
def place(
    request: pytest.FixtureRequest,
    engine: PrivateEngine,
    registry: Registry,
    private_registry: Registry,
    open_bases: Bases,
    private_bases: Bases,
) -> Iterator[Place]:
    """One daemon at a time: each takes all that it does not know in an engine for what a crash has left."""
    require("docker-registry")
    policy, _, builder = request.param.partition("-")
    host = registry.host
    images = {
        "restrictive": [f"{host}/allowed/*", f"{host}/x86_64/*"],
        "denying": ["*", "!docker.io/hostile/forbidden*", f"!{host}/evil/*", f"!localhost:{registry.port}/evil/*"],
    }
    tables: Fields = {"policy": {"images": images[policy], "add_urls": []}} if policy in images else {}
    limits = {"retry_for_s": 0.0, "build": 4, "per_tenant_running": 4}
    with ExitStack() as stack:
        box = stack.enter_context(DispatchBox(engine, builder=builder, limits=limits, **tables))
        stack.callback(box.check_healthy)
        if policy == "default":
            stack.enter_context(in_use(box.tenant(1), private_bases))
            yield Place(box, box.tenant(2), private_bases, private_registry, registry)
        else:
            yield Place(box, box.tenant(2), open_bases, registry, registry)


# A daemon that allows all images but some.
denying = pytest.mark.parametrize("place", ["denying-buildkit"], indirect=True, scope="module")


@contextmanager
def in_use(owner: Tenant, bases: Bases) -> Iterator[None]:
    """Another tenant's build on the bases that are his, which goes on for as long as the block lasts."""
    lines = ("FROM HOST/amd64/base:1 AS other", "FROM EVIL", "COPY --from=other /mark /other", "RUN sleep 600")
    login = {"username": USERNAME, "password": PASSWORD}
    spec = {"image": f"{bases.host}/team/app:1", "dockerfile": bases.text(*lines), "nocache": True} | login
    job = owner.call("POST", "/api/v2/jobs", {"kind": "build", "spec": spec}).json["id"]
    owner.prints(job, "RUN sleep")
    yield
    owner.cancel(job)
    owner.ended(job)


def chosen(variable: str) -> tuple[str, ...]:
    """A Dockerfile on what is evil where the variable has a value, and on what is good else."""
    return (f"ARG PICKED=${{{variable}:+EVIL}}", "FROM ${PICKED:-GOOD}", "SHOW")


def chosen_without(variable: str) -> tuple[str, ...]:
    """The other way round."""
    return (f"ARG PICKED=${{{variable}:+GOOD}}", "FROM ${PICKED:-EVIL}", "SHOW")


# From here to the end of the text only engines that read it otherwise see instructions.
HIDDEN = ("FROM EVIL", "SHOW")

TRICKS: dict[str, tuple[tuple[str, ...], Fields]] = {
    "heredoc: a space before its name": (("FROM GOOD", "SHOW", "COPY << CMD /x", *HIDDEN, "CMD"), {}),
    "heredoc: two out of step": (
        ("FROM GOOD", "SHOW", "COPY << EOF /x", "RUN <<'RUN true'", "EOF", *HIDDEN, "RUN true"),
        {},
    ),
    "heredoc: out of step, tabs": (
        ("FROM GOOD", "SHOW", "COPY <<- EOF /x", "RUN <<'RUN true'", "\tEOF", *HIDDEN, "RUN true"),
        {},
    ),
    "heredoc: out of step in ADD": (
        ("FROM GOOD", "SHOW", "ADD << EOF /x", 'RUN <<"RUN true"', "EOF", *HIDDEN, "RUN true"),
        {},
    ),
    "heredoc: none to old engines": (("FROM GOOD", "SHOW", "COPY <<CMD /x", *HIDDEN, "CMD"), {}),
    "heredoc: none to the classic builder": (("FROM GOOD", "SHOW", "RUN <<CMD", *HIDDEN, "CMD"), {}),
    "replaced: nothing by something": (("ARG Z=", "ARG A=${Z/*/x}", *chosen("A")), {}),
    "replaced: nothing by a name": (("ARG Z=", "ARG A=${Z/*/EVIL}", "FROM ${A:-GOOD}", "SHOW"), {}),
    "replaced: by $0": (("ARG X=a", r"ARG B=${X//a/\$0}", "ARG C=${B#a}", *chosen_without("C")), {}),
    "replaced: by $1": (("ARG X=a", r"ARG B=${X//a/\$1}", *chosen_without("B")), {}),
    "replaced: by $name": (("ARG X=a", r"ARG B=${X//a/\$name}", *chosen_without("B")), {}),
    "replaced: by ${name}": (("ARG X=a", r"ARG B=${X//a/\${name\}}", *chosen_without("B")), {}),
    "line break: replaced": (("ARG X", "ARG A=${X/?/}", *chosen("A")), {"build_args": {"X": "\n"}}),
    "line break: cut in front": (("ARG X", "ARG A=${X#?}", *chosen("A")), {"build_args": {"X": "\n"}}),
    "line break: cut behind": (("ARG X", "ARG A=${X%%*}", *chosen("A")), {"build_args": {"X": "a\nb"}}),
    "line break: in the name": (("ARG X", "FROM ${X}", "SHOW"), {"build_args": {"X": "GOOD\nFROM EVIL"}}),
    "automatic: TARGETSTAGE": (chosen("TARGETSTAGE"), {}),
    "automatic: TARGETSTAGE of a target": (
        ("ARG PICKED=${TARGETSTAGE:+EVIL}", "FROM ${PICKED:-GOOD} AS last", "SHOW"),
        {"target": "last"},
    ),
    "automatic: none in the classic builder": (chosen_without("TARGETOS"), {}),
    "automatic: TARGETARCH of the classic builder": (("FROM HOST/${TARGETARCH:-x86_64}/base:1", "SHOW"), {}),
    "automatic: set by the request": (chosen_without("TARGETOS"), {"build_args": {"TARGETOS": ""}}),
    "automatic: set by a default": (("ARG TARGETOS=", *chosen("TARGETOS")), {}),
    "platform: linux/amd64/v1": (chosen_without("TARGETVARIANT"), {"platform": "linux/amd64/v1"}),
    "platform: linux/x86_64": (("FROM HOST/${TARGETARCH}/base:1", "SHOW"), {"platform": "linux/x86_64"}),
    "platform: linux": (chosen("TARGETARCH"), {"platform": "linux"}),
    "platform: amd64": (chosen("TARGETARCH"), {"platform": "amd64"}),
    "platform: x86_64": (("FROM HOST/${TARGETOS}/base:1", "SHOW"), {"platform": "x86_64"}),
    "platform: of FROM": (
        ("ARG PICKED=${TARGETVARIANT:+GOOD}", "FROM --platform=$TARGETPLATFORM ${PICKED:-EVIL}", "SHOW"),
        {"platform": "linux/amd64/v1"},
    ),
}


@pytest.fixture(scope="module")
def tricked(place: Place) -> dict[str, Answer]:
    """All of them at once, so that a test waits for little more than its own."""
    answers = {}
    for name, (lines, spec) in TRICKS.items():
        args = {key: place.bases.text(value)[:-1] for key, value in spec.get("build_args", {}).items()}
        answers[name] = place.submit(place.bases.text(*lines), **spec | {"build_args": args})
    return answers


@pytest.mark.parametrize("trick", TRICKS)
def test_tricks(place: Place, tricked: dict[str, Answer], trick: str) -> None:
    """What readers read differently leads nobody to an image that was not judged."""
    place.check(tricked[trick])


def test_without_tricks(place: Place) -> None:
    """What is allowed is built, for each spelling of the platform; what is not is refused when it is named plainly."""
    platforms = ("", "linux/amd64/v1", "linux/x86_64", "linux", "amd64")
    answers = [place.submit(place.bases.text("FROM GOOD", "SHOW"), platform=platform) for platform in platforms]
    for answer in answers:
        assert answer.status == 201, answer.text
        place.tenant.succeeded(answer.json["id"])
        assert marks_in(place.tenant.log(answer.json["id"]), "good", "evil") == {"good"}
    refused = place.submit(place.bases.text("FROM EVIL", "SHOW"))
    code = refused.json.get("code") or place.tenant.ended(refused.json["id"])["error"]["code"]
    assert code in REFUSALS


TRIGGERS: dict[str, tuple[str, ...]] = {
    "copies an image": ("COPY --from=EVIL /mark /mark",),
    "copies by an id": ("COPY --from=IMAGEID /mark /mark",),
    "copies by a short id": ("COPY --from=SHORTID /mark /mark",),
    "copies by a digest": ("COPY --from=BYDIGEST /mark /mark",),
    "mounts an image": ("RUN --mount=from=EVIL,target=/m cp /m/mark /mark",),
    "mounts by an id": ("RUN --mount=from=IMAGEID,target=/m cp /m/mark /mark",),
    "copies what may be a stage": ("COPY --from=other /mark /mark",),
    "heredoc": ("COPY <<CMD /x\nCOPY --from=EVIL /mark /mark\nCMD",),
    "heredoc with a space": ("COPY << CMD /x\nCOPY --from=EVIL /mark /mark\nCMD",),
    "two lines": ("RUN true\nCOPY --from=EVIL /mark /mark",),
    "a stage in a second line": ("RUN true\nFROM EVIL",),
    "continued in the next one": ("RUN true \\", "COPY --from=EVIL /mark /mark"),
    "a trigger": ("ONBUILD COPY --from=EVIL /mark /mark",),
    "a stage": ("FROM EVIL",),
}


@pytest.fixture(scope="module")
def evil_names(engine: PrivateEngine, place: Place) -> dict[str, str]:
    """Other names of the evil base for an engine that has it."""
    image_id, digest = names_in_engine(engine, place.evil_registry, place.bases.evil)
    hex_id = image_id.removeprefix("sha256:")
    return {"IMAGEID": image_id, "HEXID": hex_id, "SHORTID": hex_id[:12], "BYDIGEST": digest}


@pytest.mark.parametrize("name", TRIGGERS)
def test_triggers(place: Place, evil_names: dict[str, str], name: str) -> None:
    """What a base has in store for those who build on it gets them no image that was not judged."""
    triggers = tuple(place.bases.text(text)[:-1] for text in TRIGGERS[name])
    for word, value in evil_names.items():
        triggers = tuple(text.replace(word, value) for text in triggers)
    tag = str(sorted(TRIGGERS).index(name))
    base = put_marked(place.pushes_to, "allowed/triggering", "good", triggers=triggers, tag=tag)
    # Engines refuse by themselves a trigger of more than one instruction, some also one with a heredoc.
    answer = place.submit(place.bases.text(f"FROM {base}", "SHOW"), pull="always")
    place.check(answer, refusals=REFUSALS | {"build_failed"})


def test_harmless_triggers(place: Place) -> None:
    """Those that name nothing are obeyed."""
    triggers = ("RUN echo triggered > /triggered",)
    base = put_marked(place.pushes_to, "allowed/triggering", "good", triggers=triggers, tag="harmless")
    answer = place.submit(
        place.bases.text(f"FROM {base}", f"RUN : {base}; echo $(cat /triggered /mark)"), pull="always"
    )
    place.tenant.succeeded(answer.json["id"])
    assert "triggered good" in place.tenant.log(answer.json["id"])


IDS = ("FROM IMAGEID", "FROM SHORTID", "FROM HEXID", "FROM BYDIGEST", "COPY --from=IMAGEID /mark /mark")
IDS += ("COPY --from=SHORTID /mark /mark", "COPY --from=HEXID /mark /mark", "COPY --from=BYDIGEST /mark /mark")
IDS += ("RUN --mount=from=IMAGEID,target=/m cp /m/mark /mark", "RUN --mount=from=SHORTID,target=/m cp /m/mark /mark")
IDS += ("RUN --mount=from=BYDIGEST,target=/m cp /m/mark /mark",)


@pytest.mark.parametrize("line", IDS)
def test_ids(place: Place, evil_names: dict[str, str], line: str) -> None:
    """An image that the engine has is no base by its id, the beginning of it, or its digest."""
    for word, value in evil_names.items():
        line = line.replace(word, value)
    start = () if line.startswith("FROM") else ("FROM GOOD",)
    answers = [place.submit(place.bases.text(*start, line, "SHOW"), pull=pull) for pull in ("missing", "never")]
    for answer in answers:
        if answer.status != 201:
            assert answer.json["code"] in REFUSALS
            continue
        job = place.tenant.ended(answer.json["id"])
        assert (job["state"], marks_in(place.tenant.log(job["id"]), "evil")) == ("failed", set()), job["error"]


ALIASES = (
    "hostile/forbidden:1",
    "docker.io/hostile/forbidden:1",
    "index.docker.io/hostile/forbidden:1",
    "registry-1.docker.io/hostile/forbidden:1",
    "DOCKER.IO/hostile/forbidden:1",
    "Index.Docker.io/hostile/forbidden:1",
    "REGISTRY-1.docker.io/hostile/forbidden:1",
    "localhost:PORT/evil/base:1",
    "LOCALHOST:PORT/evil/base:1",
    "LocalHost:PORT/evil/base:1",
)


@denying
@pytest.mark.parametrize("way", ["FROM {}", "COPY --from={} /mark /m", "RUN --mount=from={},target=/m true"])
@pytest.mark.parametrize("name", ALIASES)
def test_aliases(place: Place, way: str, name: str) -> None:
    """A rule about a registry holds for all of its names."""
    start = "" if way.startswith("FROM") else place.bases.text("FROM GOOD")
    answer = place.submit(start + way.format(name.replace("PORT", str(place.pushes_to.port))) + "\n")
    assert (answer.status, answer.json["code"]) == (422, "policy"), answer.text
    assert "is not allowed [rule image]" in answer.json["detail"]


@denying
def test_an_upper_case_host_is_built_from(place: Place) -> None:
    """It is the same registry to everybody."""
    text = f"FROM LOCALHOST:{place.pushes_to.port}/allowed/base:1\n{show_mark()}\n"
    answer = place.submit(text)
    place.tenant.succeeded(answer.json["id"])
    place.check(answer)


OWN_FRONTENDS = (
    "# syntax=docker/dockerfile:1",
    "#syntax=docker/dockerfile",
    "# Syntax = docker.io/docker/dockerfile:1.7",
    "# escape=\\\n# syntax=docker/dockerfile:1.4.3",
    "\ufeff# syntax=docker/dockerfile:latest",
)
FOREIGN_FRONTENDS = (
    "# syntax=docker/dockerfile:1-labs",
    "# syntax=docker/dockerfile:master",
    "# syntax=docker/dockerfile-upstream:1",
    "# syntax=docker/dockerfile:1@sha256:" + "0" * 64,
    "# syntax=REGISTRY/allowed/base:1",
    "// syntax=REGISTRY/allowed/base:1",
    "#!/bin/sh\n# syntax=REGISTRY/allowed/base:1",
    '{"syntax": "REGISTRY/allowed/base:1"}',
)


def by_native(place: Place, text: str) -> Answer:
    return place.submit(text)


def by_builder(place: Place, text: str) -> Answer:
    image = f"{place.pushes_to.host}/built/app:1"
    return place.tenant.call("POST", "/api/v1/build", {"image_name": image, "dockerfile": text})


def by_run(place: Place, text: str) -> Answer:
    head = '--limit\r\nContent-Disposition: form-data; name="file"\r\n\r\n'
    perf = "CMD echo '{\"perf\": 1}' > /data/perf.json\n"
    headers = {"Content-Type": "multipart/form-data; boundary=limit", "Accept": "application/json"}
    body = f"{head}{text}{perf}\r\n--limit--\r\n".encode()
    return place.tenant.call("POST", "/run", body, headers=headers)


def by_dispatch(place: Place, text: str) -> Answer:
    return place.tenant.send(text.encode())


# Each API, with the status that it refuses by at submission; the dispatcher takes every payload and looks at it later.
APIS = {"native": (by_native, 422), "builder": (by_builder, 400), "run": (by_run, 422), "dispatch": (by_dispatch, 0)}


@denying
@pytest.mark.parametrize(
    ("api", "directive"),
    [(api, OWN_FRONTENDS[0]) for api in APIS] + [("native", directive) for directive in OWN_FRONTENDS[1:]],
)
def test_the_engines_own_frontend(place: Place, api: str, directive: str) -> None:
    """Its stable versions may be named: the engine reads the text by itself, and fetches nothing."""
    text = place.bases.text(directive, "FROM GOOD", "SHOW")
    answer = APIS[api][0](place, text)
    assert answer.status in (200, 201), answer.text
    job = answer.json.get("id") or answer.json["JobIdentifier"]
    place.tenant.succeeded(job)
    assert "resolve image config" not in place.tenant.log(job)


# What begins as JSON is no Dockerfile to the dispatcher.
FOREIGN_CASES = [(api, line) for api in APIS for line in FOREIGN_FRONTENDS if (api, line[0]) != ("dispatch", "{")]


@denying
@pytest.mark.parametrize(("api", "directive"), FOREIGN_CASES)
def test_foreign_frontends(place: Place, api: str, directive: str) -> None:
    """None else may, in any form that some engine obeys."""
    directive = directive.replace("REGISTRY", place.pushes_to.host)
    call, status = APIS[api]
    answer = call(place, place.bases.text(directive, "FROM GOOD", "SHOW"))
    if api != "dispatch":
        assert answer.status == status, answer.text
        assert "[rule frontend]" in answer.text
        return
    error = place.tenant.ended(answer.json["id"])["error"]
    assert error["code"] == "policy"
    assert "[rule frontend]" in error["message"]


@denying
def test_the_frontend_by_a_build_arg(place: Place) -> None:
    """It cannot be named by an argument either; one that the Dockerfile declares is like any other."""
    text = place.bases.text("ARG BUILDKIT_SYNTAX=GOOD", "FROM GOOD", "SHOW")
    refused = place.submit(text, build_args={"BUILDKIT_SYNTAX": place.bases.good})
    assert refused.json["code"] == "policy"
    answer = place.submit(text)
    place.tenant.succeeded(answer.json["id"])
    place.check(answer)
