"""`/metrics` of a daemon at work, and what the documents for monitoring make of it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.bodies import dockerfile
from harness.build_box import BuildBox
from harness.distribute_box import source, target
from harness.engine import PrivateEngine
from harness.metrics import Scrape
from harness.registry import Registry
from harness.waiting import until
from harness.webhook_receiver import WebhookReceiver

DOCS = Path(__file__).parents[1] / "docs"
NAME = re.compile(r"\b((?:imagejobd|process|python)_[a-z_]+)\b(?:\{([^}]*)\})?")
GROUPING = re.compile(r"\b(?:by|on|without|ignoring)\s*\(([^)]*)\)")
# Which a scrape adds by itself, and which only the buckets of histograms have.
OWN_LABELS = {"job", "instance", "le"}


@pytest.fixture(scope="module")
def box(engine: PrivateEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BuildBox]:
    secret_file = tmp_path_factory.mktemp("webhooks") / "secret"
    secret_file.write_text("a secret of more than thirty-two bytes")
    with WebhookReceiver() as receiver:
        ci = {"url": receiver.url, "secret_file": str(secret_file)}
        with BuildBox(engine, limits={"queue_max": 77}, webhooks={"ci": ci}) as box:
            yield box


@pytest.fixture(scope="module")
def mirror() -> Iterator[Registry]:
    with Registry() as registry:
        yield registry


@pytest.fixture(scope="module")
def scrape(box: BuildBox, registry: Registry, mirror: Registry) -> Scrape:
    """After a build that was pushed, two copies of it, a build that failed, and one that was cancelled in the queue."""
    text = dockerfile("RUN head -c 300000 /dev/urandom > /random")
    box.succeeded(box.submit_build(f"{registry.host}/metrics/built:1", text))
    targets = [target(registry, image="metrics/copied"), target(mirror, image="metrics/copied")]
    box.succeeded(box.submit("distribute", {"source": source(registry, "metrics/built"), "targets": targets}))
    broken = {"image": f"{registry.host}/metrics/none", "dockerfile": dockerfile("RUN false")}
    box.failed(box.submit("build", broken))
    delayed = {"kind": "build", "spec": broken, "not_before": "2100-01-01T00:00:00Z"}
    later = box.call("POST", "/api/v2/jobs", delayed).json["id"]
    until(lambda: read(box).value("imagejobd_queue_depth", kind="build", state="delayed") == 1, what="a delayed job")
    assert box.cancel(later) in (200, 202)
    until(
        lambda: read(box).value("imagejobd_jobs_finished_total", kind="build", state="cancelled", code="") == 1,
        what="the cancel to count",
    )
    return read(box)


def read(box: BuildBox) -> Scrape:
    answer = box.call("GET", "/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return Scrape(answer.text)


def test_jobs_are_counted(scrape: Scrape) -> None:
    """Every end counts by kind, state and code, wherever it happened."""
    finished = "imagejobd_jobs_finished_total"
    assert scrape.value(finished, kind="build", state="succeeded", code="") == 1
    assert scrape.value(finished, kind="distribute", state="succeeded", code="") == 1
    assert scrape.value(finished, kind="build", state="failed", code="build_failed") == 1
    assert scrape.value(finished, kind="build", state="cancelled", code="") == 1
    assert scrape.value(finished, kind="run", state="failed", code="quarantined") == 0
    assert scrape.value("imagejobd_jobs_submitted_total", kind="build") == 3
    assert scrape.value("imagejobd_jobs", kind="build", state="queued") == 0


def test_durations_are_measured(box: BuildBox, scrape: Scrape) -> None:
    """Waits, phases and jobs are in histograms that agree with the history."""
    for kind, phase in (("build", "building"), ("build", "pushing"), ("distribute", "copying")):
        count, seconds = (
            scrape.value(f"imagejobd_phase_duration_seconds_{what}", kind=kind, phase=phase)
            for what in ("count", "sum")
        )
        jobs = "select uuid from job where kind = ?"
        query = f"select count(*), sum(seconds) from phase_history where phase = ? and uuid in ({jobs})"
        assert [(count, pytest.approx(seconds, abs=0.01))] == box.daemon.sqlite(query, (phase, kind))
    assert scrape.value("imagejobd_job_wait_seconds_count", kind="build") == 2
    assert scrape.value("imagejobd_job_duration_seconds_count", kind="build", state="failed") == 1


def test_bytes_are_counted_by_registry(scrape: Scrape, registry: Registry, mirror: Registry) -> None:
    """What was built is sent to one registry, mounted there for the first copy, and read and sent for the other."""

    def moved(how: str, registry: str) -> float:
        return scrape.value(f"imagejobd_registry_{how}_bytes_total", registry=registry)

    sent_bytes = moved("sent", registry.host)
    assert sent_bytes > 300_000
    # What others have pushed there before the engine mounts for builds, too.
    assert moved("mounted", registry.host) >= moved("read", registry.host) == moved("sent", mirror.host) > 0
    assert moved("read", mirror.host) == moved("skipped", mirror.host) == moved("read", "other") == 0


def test_the_machine_is_measured(scrape: Scrape) -> None:
    """The store, the disk, the engine, the loop and the process say how they are."""
    assert scrape.value("imagejobd_store_up") == 1
    assert scrape.value("imagejobd_engine_up") == 1
    assert scrape.value("imagejobd_queue_max") == 77
    assert scrape.value("imagejobd_commit_seconds_count") > 20
    assert scrape.value("imagejobd_wal_bytes") > 0
    assert 0 < scrape.value("imagejobd_disk_free_bytes") <= scrape.value("imagejobd_disk_size_bytes")
    assert scrape.value("imagejobd_event_loop_lag_seconds_count") > 0
    assert scrape.value("process_open_fds") > 10


def test_webhooks_are_counted(box: BuildBox, scrape: Scrape) -> None:
    """Each of the four ends was taken."""
    assert scrape.value("imagejobd_webhook_messages_total", webhook="ci", outcome="given_up") == 0

    def delivered() -> float:
        return read(box).value("imagejobd_webhook_messages_total", webhook="ci", outcome="delivered")

    until(lambda: delivered() == 4, what="four messages to be delivered")


def test_it_is_as_open_as_healthz(box: BuildBox) -> None:
    """Without a token, but not for web pages that bring their own name for the daemon."""
    assert box.call("GET", "/metrics", headers={"Host": "rebound.example"}).status == 403
    assert box.call("GET", "/metrics", headers={"Host": f"localhost:{box.daemon.port}"}).status == 200


def test_every_metric_is_documented(scrape: Scrape) -> None:
    """docs/monitoring.md has a line for each, and none that is not there."""
    text = (DOCS / "monitoring.md").read_text()
    documented = set(re.findall(r"(?m)^\| `(imagejobd_\w+)", text))
    assert documented == {name for name in scrape.families if name.startswith("imagejobd_")}


def expressions() -> Iterator[tuple[str, str]]:
    """Where in the documents an expression stands, and the expression."""
    rules: dict[str, Any] = yaml.safe_load((DOCS / "monitoring/alerts.yml").read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            yield f"alerts.yml: {rule['alert']}", rule["expr"]
    dashboard = json.loads((DOCS / "monitoring/dashboard.json").read_text())
    for panel in dashboard["panels"]:
        for query in panel.get("targets", ()):
            yield f"dashboard.json: {panel['title']}", query["expr"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield f"dashboard.json: {variable['name']}", variable["query"]["query"]


def test_expressions_name_what_there_is(scrape: Scrape) -> None:
    """Each names time series that are exported, with labels that they have."""
    labels = scrape.labels()
    for place, expression in expressions():
        used = NAME.findall(expression)
        assert used or expression.startswith("up{"), place
        for name, matchers in used:
            assert name in labels, f"{place}: {name}"
            assert set(re.findall(r"(\w+)\s*[=!]", matchers)) <= labels[name] | OWN_LABELS, f"{place}: {name}"
        known = OWN_LABELS.union(*(labels[name] for name, _ in used))
        for grouping in GROUPING.findall(expression):
            assert {label.strip() for label in grouping.split(",") if label.strip()} <= known, place


def test_alerts_say_what_to_do() -> None:
    """Each has a severity, a summary, and what to do next; names are unique."""
    rules = [
        rule
        for group in yaml.safe_load((DOCS / "monitoring/alerts.yml").read_text())["groups"]
        for rule in group["rules"]
    ]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert rule["labels"]["severity"] in ("warning", "critical"), rule["alert"]
        assert {"summary", "description"} <= rule["annotations"].keys(), rule["alert"]
