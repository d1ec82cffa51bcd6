"""The rule over addresses holds for what the engine fetches and pushes to: nobody at a denied address hears of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness.base_image import BUSYBOX, publish_busybox
from harness.box import Box
from harness.client import Client, Fields
from harness.engine import PrivateEngine
from harness.file_server import FileServer
from harness.names import resolving
from harness.registry import Registry
from harness.services import require

DENIED = "127.0.0.2"
# Neither of them is connected to; the second is one of the addresses that nobody has (RFC 5737).
NAMES = {"denied.test": [DENIED], "twofold.test": ["127.0.0.1", DENIED], "public.test": ["203.0.113.7"]}
FILES = {"/x": b"text\n", "/x.tar": b"text\n"}
PERF = "CMD echo '{\"perf\": 1}' > /data/perf.json"
LIMITS = {"retry_for_s": 0.6, "retry_first_s": 0.1, "retry_max_s": 0.2}


@pytest.fixture(scope="module")
def trap() -> Iterator[FileServer]:
    with FileServer(FILES, address=DENIED) as server:
        yield server


@pytest.fixture(scope="module")
def forbidden() -> Iterator[Registry]:
    """A registry at the denied address."""
    require("docker-registry")
    with Registry(address=DENIED) as registry:
        yield registry


@contextmanager
def client_of(engine: PrivateEngine, folder: Path, **egress: Any) -> Iterator[Client]:
    with Box(engine, egress=egress, limits=LIMITS, env=resolving(NAMES, folder)) as box:
        yield box


@pytest.fixture(scope="module")
def fenced(engine: PrivateEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A daemon with one denied address."""
    with client_of(engine, tmp_path_factory.mktemp("names"), deny=[f"{DENIED}/32"]) as client:
        yield client


@pytest.fixture(scope="module")
def strict(engine: PrivateEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A daemon that keeps to public addresses."""
    with client_of(engine, tmp_path_factory.mktemp("names"), allow_private=False) as client:
        yield client


def run(client: Client, *lines: str) -> Fields:
    """A run of a Dockerfile, once it has ended; without FROM it begins from the base image."""
    start = [] if any(line.startswith("FROM") for line in lines) else [f"FROM {BUSYBOX}"]
    spec = {"dockerfile": "\n".join([*start, *lines, PERF, ""])}
    return client.ended(client.submit("run", spec))


def check_refused(job: Fields) -> None:
    """It failed by the rule, at once and for good."""
    assert job["state"] == "failed", job["result"]
    assert job["error"]["code"] == "egress", job["error"]
    assert job["attempt"] == 1


SOURCES = {
    "http": "ADD http://{host}/x /x",
    "https": "ADD https://{host}/x.tar /x",
    "git over http": "ADD http://{host}/team/app.git#main /x",
    "git": "ADD git://{host}/team/app /x",
    "git by ssh": "ADD git@127.0.0.2:team/app.git /x",
    "credentials": "ADD http://me:word@{host}/x /x",
    "a number": "ADD http://2130706434:{port}/x /x",
    "in IPv6": "ADD http://[::ffff:127.0.0.2]:{port}/x /x",
    "a name": "ADD http://denied.test:{port}/x /x",
    "one of two addresses": "ADD http://twofold.test:{port}/x /x",
    "quotes": "ADD 'http://{host}/x' /x",
    "JSON": 'ADD ["http://{host}/x", "/x"]',
    "a variable behind the host": "ARG V=x\nADD http://{host}/$V /x",
    "no plain host": "ADD http://good.test\\@{host}/x /x",
    "a trigger": "ONBUILD ADD http://{host}/x /x",
    "a stage that nobody needs": f"FROM {BUSYBOX}\nADD http://{{host}}/x /x\nFROM {BUSYBOX}",
}


@pytest.mark.parametrize("line", SOURCES.values(), ids=SOURCES)
def test_sources(fenced: Client, trap: FileServer, line: str) -> None:
    """ADD gets nothing from a denied address, however it is written."""
    line = line.replace("{host}", f"{DENIED}:{trap.port}").replace("{port}", str(trap.port))
    job = run(fenced, *line.split("\n"))
    check_refused(job)
    assert "Dockerfile line" in job["error"]["message"]
    assert "word" not in job["error"]["message"]
    assert trap.requests == []


def test_a_source_elsewhere(fenced: Client) -> None:
    """ADD gets what is allowed."""
    with FileServer(FILES) as server:
        job = run(fenced, f"ADD http://127.0.0.1:{server.port}/x /x", "RUN grep -q text /x")
        assert job["state"] == "succeeded", job["error"]
        assert server.count("/x") > 0


def test_a_trigger_of_a_base(engine: PrivateEngine, fenced: Client, trap: FileServer) -> None:
    """Nor does what a base image has in store for those who build on it."""
    text = f"FROM {BUSYBOX}\nONBUILD ADD http://{DENIED}:{trap.port}/x /x\n"
    engine.docker("build", "--tag", "imagejobd-test/triggering:1", "-", input=text.encode(), buildkit=False)
    job = run(fenced, "FROM imagejobd-test/triggering:1")
    check_refused(job)
    assert "ONBUILD of" in job["error"]["message"]
    assert trap.requests == []


@pytest.mark.parametrize(
    "lines",
    [
        ("FROM {image}",),
        ("ARG HOST={host}", "FROM $HOST/{name}"),
        ("COPY --from={image} /bin/busybox /x",),
        ("RUN --mount=from={image},target=/x true",),
        ("FROM denied.test:{port}/{name}",),
    ],
)
def test_bases(engine: PrivateEngine, fenced: Client, forbidden: Registry, lines: tuple[str, ...]) -> None:
    """No base is pulled from there."""
    name = "pulled/base"
    words = {"image": f"{forbidden.host}/{name}", "host": forbidden.host, "port": str(forbidden.port), "name": name}
    job = run(fenced, *(line.format_map(words) for line in lines))
    check_refused(job)
    assert "registry" in job["error"]["message"]
    assert name not in forbidden.log_text()


def test_a_base_elsewhere(engine: PrivateEngine, fenced: Client, registry: Registry) -> None:
    """Bases of allowed registries are pulled."""
    base = publish_busybox(engine, registry, "allowed/base", "1")
    assert run(fenced, f"FROM {base}")["state"] == "succeeded"


def test_a_base_that_is_there(engine: PrivateEngine, fenced: Client, forbidden: Registry) -> None:
    """What the engine has is built on without asking its registry, so nobody minds where that is."""
    name = f"{forbidden.host}/there/base:1"
    engine.docker("tag", BUSYBOX, name)
    try:
        job = run(fenced, f"FROM {name}", f"COPY --from={name} /bin/busybox /x")
    finally:
        engine.docker("rmi", name)
    assert job["state"] == "succeeded", job["error"]
    assert "there/base" not in forbidden.log_text()


@pytest.mark.parametrize("host", ["{host}", "denied.test:{port}"])
def test_pushes(fenced: Client, forbidden: Registry, host: str) -> None:
    """Nothing is pushed there, and nothing built in vain."""
    image = f"{host.format(host=forbidden.host, port=forbidden.port)}/pushed/app:1"
    spec = {"image": image, "dockerfile": f"FROM {BUSYBOX}\nRUN echo built\n"}
    answer = fenced.call("POST", "/api/v2/jobs", {"kind": "build", "spec": spec})
    job = fenced.ended(answer.json["id"])
    check_refused(job)
    assert "built" not in fenced.log(job["id"])
    assert "pushed/app" not in forbidden.log_text()


def test_unknown_names_are_the_engines_affair(fenced: Client) -> None:
    """By default a name that means nothing here is left to the engine, which may have a proxy."""
    for line in ("ADD http://unknown.test/x /x", "FROM unknown.test/team/base:1"):
        job = run(fenced, line)
        assert job["state"] == "failed"
        assert job["error"]["code"] != "egress"
        assert "does not resolve here" not in job["error"]["message"]


@pytest.mark.parametrize(
    "lines",
    [
        ("ARG URL=http://public.test/x", "ADD ${URL} /x"),
        ("ADD http://public.test$REST /x",),
        ("ADD ftp://public.test/x /x",),
        ("ADD http://127.0.0.1/x /x",),
        ("ADD http://twofold.test/x /x",),
        ("FROM 127.0.0.1:5000/team/base",),
    ],
)
def test_private_networks_off_limits(strict: Client, lines: tuple[str, ...]) -> None:
    """What is private, and what cannot be told, is refused."""
    check_refused(run(strict, *lines))


@pytest.mark.parametrize("line", ["ADD http://unknown.test/x /x", "FROM unknown.test/team/base:1"])
def test_unknown_names_where_private_networks_are_off_limits(strict: Client, line: str) -> None:
    """A name that means nothing here may do so later: it is tried again, and the engine never asked."""
    job = run(strict, line)
    assert job["state"] == "failed"
    assert job["attempt"] > 1
    assert "does not resolve here" in job["error"]["message"]


def test_what_fetches_nothing_is_built_everywhere(strict: Client) -> None:
    """Builds on what the engine has need no network."""
    job = run(strict, "RUN true")
    assert job["state"] == "succeeded", job["error"]
