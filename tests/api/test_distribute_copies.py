"""Whole distributions by curl against a real daemon and real registries."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from calls import Answer, curl, post_json, until

from harness.daemon import Daemon
from harness.process import free_port
from harness.registry import PASSWORD, USERNAME, Registry
from harness.services import require

PATH = "/api/distribute/image"
RETRY_FOR_S = 2.0
IMAGE = "copies/app"
ENDED = ("FINISHED", "FAILED")
WRONG = "wr0ng-password"


@pytest.fixture(scope="module")
def strict_registry() -> Iterator[Registry]:
    """A registry with TLS of its own authority and a login, both of which the daemon is configured for."""
    require("docker-registry")
    with Registry(htpasswd=True, use_tls=True) as registry:
        registry.put_image(IMAGE, "1")
        yield registry


@pytest.fixture(scope="module")
def copier(strict_registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon without an engine, which copies need not, and that soon gives up."""
    require("curl")
    password_file = tmp_path_factory.mktemp("login") / "password"
    password_file.write_text(PASSWORD)
    host = {
        "ca_file": str(strict_registry.ca_file),
        "username": USERNAME,
        "password_file": str(password_file),
    }
    limits = {"retry_first_s": 0.5, "retry_max_s": 0.5, "retry_for_s": RETRY_FOR_S}
    with Daemon({"limits": limits, "registry": {strict_registry.host: host}}) as daemon:
        yield daemon


def post(daemon: Daemon, source: dict[str, Any], *targets: dict[str, Any]) -> Answer:
    return post_json(daemon, PATH, {"source": {"image": IMAGE, "ref": "1"} | source, "targets": targets})


def started(daemon: Daemon, source: dict[str, Any], *targets: dict[str, Any]) -> str:
    answer = post(daemon, source, *targets)
    assert answer.status == 201, answer.text
    return str(answer.json["id"])


def told(daemon: Daemon, job: str) -> dict[str, Any]:
    return dict(curl(daemon, f"{PATH}/{job}").json)


def ended(daemon: Daemon, job: str) -> dict[str, Any]:
    return until(lambda: told(daemon, job), lambda body: body["value"] in ENDED)


def test_configured_host_needs_no_words(copier: Daemon, strict_registry: Registry, registry: Registry) -> None:
    """A host's configured login and authority are used where the request says nothing of TLS, to read and to write."""
    out = started(copier, {"endpoint": strict_registry.url}, {"endpoint": registry.url, "image": "copies/out"})
    assert ended(copier, out)["finished_endpoints"] == [registry.url]
    assert registry.digest("copies/out", "1") == strict_registry.digest(IMAGE, "1")
    back = started(
        copier, {"endpoint": registry.url, "image": "copies/out"}, {"endpoint": strict_registry.url, "ref": "2"}
    )
    assert ended(copier, back)["value"] == "FINISHED"
    assert strict_registry.tags("copies/out") == ["2"]


def test_weakened_host_gets_no_configured_login(copier: Daemon, strict_registry: Registry, registry: Registry) -> None:
    """Who asks for any certificate has to bring the login too."""
    weak = {"endpoint": strict_registry.url, "verify_tls": False}
    target = {"endpoint": registry.url, "image": "copies/weak"}
    answer = post(copier, weak, target)
    assert (answer.status, answer.json["status"]) == (400, "error")
    login = {"basicauth": {"user": USERNAME, "password": PASSWORD}}
    assert ended(copier, started(copier, weak | {"auth": login}, target))["value"] == "FINISHED"


def test_unconfigured_host_is_not_verified_by_default(copier: Daemon, registry: Registry) -> None:
    """As in the original: any certificate will do, unless the request wants it verified."""
    with Registry(use_tls=True) as foreign:
        foreign.put_image(IMAGE, "1")
        endpoint = foreign.url.replace("127.0.0.1", "localhost")
        target = {"endpoint": registry.url, "image": "copies/foreign"}
        assert ended(copier, started(copier, {"endpoint": endpoint}, target))["value"] == "FINISHED"
        strict = ended(copier, started(copier, {"endpoint": endpoint, "verify_tls": True}, target))
    assert strict["value"] == "FAILED"
    assert "certificate" in strict["failed_endpoints"][0]["error"]


def test_one_target_is_down(copier: Daemon, registry: Registry) -> None:
    """The others are done and told so while the job goes on; at its end it names the one that failed."""
    registry.put_image(IMAGE, "1")
    down = f"http://127.0.0.1:{free_port()}/v2/"
    good = {"endpoint": f"{registry.url}/v2", "image": "copies/good"}
    job = started(copier, {"endpoint": registry.url}, {"endpoint": down}, good)
    running = until(lambda: told(copier, job), lambda body: bool(body["finished_endpoints"]))
    assert running["value"] == "RUNNING"
    assert "failed_endpoints" not in running
    failed = ended(copier, job)
    assert list(failed) == [
        *("value", "started_at", "finished_endpoints", "skipped_clusters", "finished_at", "failed_endpoints")
    ]
    assert failed["value"] == "FAILED"
    assert failed["finished_endpoints"] == [good["endpoint"]]
    [endpoint] = failed["failed_endpoints"]
    assert endpoint["endpoint"] == down
    assert "refused" in endpoint["error"].lower()
    assert copier.sqlite("select attempt from job where uuid = ?", (job,)) != [(1,)]


def test_target_comes_back(copier: Daemon, registry: Registry) -> None:
    """A target that was down when the job began gets its image all the same."""
    registry.put_image(IMAGE, "1")
    with Registry() as late:
        late.stop()
        job = started(copier, {"endpoint": registry.url}, {"endpoint": late.url})
        until(lambda: told(copier, job), lambda body: body["value"] == "RUNNING")
        late.start()
        assert ended(copier, job)["finished_endpoints"] == [late.url]
        assert late.tags(IMAGE) == ["1"]


def test_times(copier: Daemon, registry: Registry) -> None:
    """ISO 8601 with microseconds and +00:00, and no job ends before it was submitted."""
    registry.put_image(IMAGE, "1")
    body = ended(copier, started(copier, {"endpoint": registry.url}, {"endpoint": registry.url, "ref": "times"}))
    for name in ("started_at", "finished_at"):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00", body[name])
    assert body["started_at"] <= body["finished_at"]


def test_logins_are_told_nowhere(copier: Daemon, registry: Registry, private_registry: Registry) -> None:
    """What stood in `auth` is in no answer, log or file, whether it was right or not."""
    registry.put_image(IMAGE, "1")
    right = {"basicauth": {"user": USERNAME, "password": PASSWORD}}
    wrong = {"basicauth": {"user": USERNAME, "password": WRONG}}
    private = {"endpoint": private_registry.url}
    jobs = [
        started(copier, {"endpoint": registry.url}, private | {"auth": right}),
        started(copier, {"endpoint": registry.url}, private | {"auth": wrong, "image": "copies/wrong"}),
    ]
    assert [ended(copier, job)["value"] for job in jobs] == ["FINISHED", "FAILED"]
    texts = [copier.log_text().encode()]
    for job in jobs:
        for path in (f"{PATH}/{job}", *(f"/api/v2/jobs/{job}{part}" for part in ("", "/log", "/events"))):
            texts.append(curl(copier, path).body)
    texts += [file.read_bytes() for file in Path(copier.state_dir).rglob("*") if file.is_file()]
    for text in texts:
        assert PASSWORD.encode() not in text
        assert WRONG.encode() not in text
