"""Clients of all APIs: they keep what was acknowledged, repeat what was not answered, and now and then cancel.

Each order carries how its job has to end, so that the verdict need not know what was asked for.
"""

import hashlib
import json
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from http.client import HTTPException
from typing import Any

from harness.base_image import BUSYBOX
from harness.bodies import MULTIPART, dockerfile, envelope, multipart, tar
from harness.client import Answer, Client
from harness.daemon import Daemon
from harness.images import Image, random_bytes
from harness.logins import BASIC, LOGIN, USERNAME, mint
from harness.proxy import FaultProxy
from harness.registry import Registry

# One client each; None comes without a token. One tenant has more clients than the others.
TENANTS: Sequence[int | None] = (None, 1, 2, 1, 3)
OPEN_JOBS_MAX = 4
PAUSE_S = 0.5
LOOKS_PER_PAUSE = 2
# Between two tries of a request that was not answered, or answered "later".
REPEAT_PAUSE_S = 0.3
REPEATED_SHARE = 0.1
CANCELLED_SHARE = 0.07
CANCEL_AFTER_MAX_S = 2.0
LATER = frozenset({429, 502, 503, 504})
# Mostly short: a phase has to fit between two kills.
STEP_SECONDS = (0.0, 0.0, 0.1, 0.1, 0.3, 0.3, 1.0, 3.0)
PAYLOAD_MAX_BYTES = 200_000


@dataclass(frozen=True)
class Site:
    """What orders name: registries with the image to copy, and bases to build on. `proxy` stands before `registry`."""

    registry: Registry
    private: Registry
    mirror: Registry
    proxy: FaultProxy
    sources: Mapping[str, Image]
    public_base: str
    private_base: str

    def registry_at(self, host: str) -> Registry:
        """The registry that answers at `host` (`address:port`)."""
        own = {known.host: known for known in (self.registry, self.private, self.mirror)}
        return (own | {self.proxy.host: self.registry})[host]


@dataclass(frozen=True)
class Ending:
    """How a job has to end: with one of `errors` (codes), or, where there are none, with success.

    `images` are references that have to be there either way, with `digest` or else with the one that the result tells;
    `payload` is the digest of the bytes that have to be kept, `perf` what has to be measured.
    """

    errors: frozenset[str] = frozenset()
    images: tuple[str, ...] = ()
    digest: str = ""
    payload: str = ""
    perf: float | None = None


@dataclass(frozen=True)
class Order:
    """One request for a job. With a `key` its repetition is the same job; without, a client has to ask anew."""

    path: str
    body: object
    ending: Ending
    id_field: str = "id"
    content_type: str = "application/json"
    key: str = ""

    def headers(self) -> dict[str, str]:
        headers = {"Content-Type": self.content_type, "Accept": "application/json"}
        return headers | ({"Idempotency-Key": self.key} if self.key else {})


@dataclass
class Job:
    """A job that was acknowledged as `name` (UUID or number). `first_end` is the final state that its client saw."""

    name: str
    order: Order
    cancel_at: float | None = None
    was_cancelled: bool = False
    first_end: str = ""


@dataclass
class Records:
    """What the clients together have to tell, whole at any time."""

    jobs: list[Job] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)


MakeOrder = Callable[[Site, random.Random, str], Order]


class Customer:
    """One client, of `tenant` or without a token, that has up to `OPEN_JOBS_MAX` jobs at a time."""

    def __init__(
        self, name: str, site: Site, daemon: Daemon, records: Records, *, seed: str, tenant: int | None
    ) -> None:
        self._name = name
        self._site = site
        self._records = records
        self._random = random.Random(f"{seed}-{name}")
        self._client = Client(daemon, token=mint(tenant) if tenant else "")
        self._orders = {make: weight for make, weight in ORDERS.items() if tenant or make not in NEED_TOKEN}
        self._open: list[Job] = []
        self._number = 0

    def serve(self, over: threading.Event) -> None:
        """Ask for jobs and look after them until `over`."""
        while not over.wait(PAUSE_S):
            if len(self._open) < OPEN_JOBS_MAX:
                self._ask(over)
            self._look()

    def _ask(self, over: threading.Event) -> None:
        [make] = self._random.choices(list(self._orders), weights=list(self._orders.values()))
        order = self._make(make)
        while (answer := self._call("POST", order.path, order)) is None or answer.status in LATER:
            self._records.repeated.append(order.path)
            if over.wait(REPEAT_PAUSE_S):
                return
            order = order if order.key else self._make(make)
        if answer.status >= 300:
            self._records.refused.append(f"{order.path}: {answer.status} {answer.body[:300]!r}")
            return
        self._keep(Job(str(answer.json[order.id_field]), order))

    def _make(self, make: MakeOrder) -> Order:
        self._number += 1
        return make(self._site, self._random, f"{self._name}-{self._number}")

    def _keep(self, job: Job) -> None:
        self._records.jobs.append(job)
        self._open.append(job)
        if self._random.random() < CANCELLED_SHARE:
            job.cancel_at = time.monotonic() + self._random.uniform(0, CANCEL_AFTER_MAX_S)
        if job.order.key and self._random.random() < REPEATED_SHARE:
            answer = self._call("POST", job.order.path, job.order)
            if answer is not None and answer.status < 300 and answer.json[job.order.id_field] != job.name:
                self._records.doubled.append(f"{job.name} again as {answer.json[job.order.id_field]}")

    def _look(self) -> None:
        for job in self._random.sample(self._open, min(LOOKS_PER_PAUSE, len(self._open))):
            if job.cancel_at is not None and time.monotonic() > job.cancel_at:
                self._cancel(job)
            answer = self._call("GET", f"/api/v2/jobs/{job.name}")
            if answer is not None and answer.status == 200 and answer.json["finished_at"] is not None:
                job.first_end = answer.json["state"]
                self._open.remove(job)

    def _cancel(self, job: Job) -> None:
        job.was_cancelled = True  # also where the answer is lost
        answer = self._call("POST", f"/api/v2/jobs/{job.name}/cancel")
        if answer is not None and answer.status not in LATER:
            job.cancel_at = None

    def _call(self, method: str, path: str, order: Order | None = None) -> Answer | None:
        """The answer, or None where the connection broke before there was one."""
        try:
            if order is None:
                return self._client.call(method, path)
            return self._client.call(method, path, order.body, headers=order.headers())
        except (OSError, HTTPException):
            return None


def builder_build(site: Site, rng: random.Random, unique: str) -> Order:
    image = f"{rng.choice([site.registry.host, site.proxy.host])}/soak/builder:{unique}"
    body = {"image_name": image, "dockerfile": _dockerfile(rng, unique)}
    return Order("/api/v1/build", body, Ending(images=(image,)), id_field="JobIdentifier")


def builder_context(site: Site, rng: random.Random, unique: str) -> Order:
    image = f"{site.registry.host}/soak/context:{unique}"
    body = multipart({"TarFile": _context(rng, unique), "Json": json.dumps({"image_name": image}).encode()})
    return Order("/api/v1/build", body, Ending(images=(image,)), id_field="JobIdentifier", content_type=MULTIPART)


def native_build(site: Site, rng: random.Random, unique: str) -> Order:
    image = f"{rng.choice([site.mirror.host, site.proxy.host])}/soak/native:{unique}"
    spec = {"image": image, "tags": [f"{unique}-too"], "dockerfile": _dockerfile(rng, unique, base=site.public_base)}
    return _native("build", spec, unique, Ending(images=(image, f"{image}-too")))


def native_context(site: Site, rng: random.Random, unique: str) -> Order:
    image = f"{site.mirror.host}/soak/native-context:{unique}"
    job = json.dumps({"kind": "build", "spec": {"image": image}}).encode()
    body = multipart({"job": job, "context": _context(rng, unique)})
    return Order("/api/v2/jobs", body, Ending(images=(image,)), content_type=MULTIPART, key=unique)


def private_build(site: Site, rng: random.Random, unique: str) -> Order:
    image = f"{site.private.host}/soak/private:{unique}"
    spec = {"image": image, "dockerfile": _dockerfile(rng, unique, base=site.private_base), **LOGIN}
    return _native("build", spec, unique, Ending(images=(image,)))


def run(site: Site, rng: random.Random, unique: str) -> Order:
    text, perf = _measuring(rng, unique)
    body = multipart({"file": text.encode()})
    return Order("/run", body, Ending(perf=perf), content_type=MULTIPART)


def native_run(site: Site, rng: random.Random, unique: str) -> Order:
    text, perf = _measuring(rng, unique)
    return _native("run", {"dockerfile": text}, unique, Ending(perf=perf))


def dispatch_build(site: Site, rng: random.Random, unique: str) -> Order:
    payload = rng.choice([_dockerfile(rng, unique).encode(), _context(rng, unique)])
    return Order("/api/v1/job", envelope(payload), Ending())


def dispatch_bytes(site: Site, rng: random.Random, unique: str) -> Order:
    payload = random_bytes(rng.randrange(1, PAYLOAD_MAX_BYTES), unique)
    kept = f"sha256:{hashlib.sha256(payload).hexdigest()}"
    return Order("/api/v1/job", envelope(payload), Ending(payload=kept))


def distribute(site: Site, rng: random.Random, unique: str) -> Order:
    request, ending = _distribution(site, rng, unique)
    return Order("/api/distribute/image", request, ending)


def native_distribute(site: Site, rng: random.Random, unique: str) -> Order:
    request, ending = _distribution(site, rng, unique)
    return _native("distribute", request, unique, ending)


def failing_step(site: Site, rng: random.Random, unique: str) -> Order:
    spec = {"image": f"{site.registry.host}/soak/never:{unique}", "dockerfile": f"FROM {BUSYBOX}\nRUN exit 3\n"}
    return _native("build", spec, unique, Ending(errors=frozenset({"build_failed"})))


def denied_push(site: Site, rng: random.Random, unique: str) -> Order:
    image = f"{site.private.host}/soak/never:{unique}"
    spec = {"image": image, "dockerfile": _dockerfile(rng, unique), "username": USERNAME, "password": "wrong"}
    return _native("build", spec, unique, Ending(errors=frozenset({"denied"})))


def failing_run(site: Site, rng: random.Random, unique: str) -> Order:
    text = f'FROM {BUSYBOX}\nCMD ["sh", "-c", "exit 3"]\n'
    return _native("run", {"dockerfile": text}, unique, Ending(errors=frozenset({"run_failed"})))


def denied_distribute(site: Site, rng: random.Random, unique: str) -> Order:
    """One target asks for a login that the request has not; the others get their image all the same."""
    request, ending = _distribution(site, rng, unique)
    closed = {"endpoint": site.private.url, "image": f"never/{unique}"}
    ending = replace(ending, errors=frozenset({"copy_failed", "denied"}))
    return _native("distribute", {**request, "targets": [*request["targets"], closed]}, unique, ending)


# How often each is asked for, beside the others.
ORDERS: dict[MakeOrder, int] = {
    builder_build: 14,
    builder_context: 8,
    native_build: 12,
    native_context: 8,
    private_build: 8,
    run: 8,
    native_run: 8,
    dispatch_build: 12,
    dispatch_bytes: 6,
    distribute: 12,
    native_distribute: 12,
    failing_step: 3,
    denied_push: 3,
    failing_run: 3,
    denied_distribute: 3,
}
NEED_TOKEN = frozenset({dispatch_build, dispatch_bytes})


def _native(kind: str, spec: Mapping[str, Any], unique: str, ending: Ending) -> Order:
    return Order("/api/v2/jobs", {"kind": kind, "spec": spec}, ending, key=unique)


def _dockerfile(rng: random.Random, unique: str, *, base: str = BUSYBOX) -> str:
    """Some steps of different length, none of which another build has made."""
    steps = [f"RUN sleep {rng.choice(STEP_SECONDS)} && echo {unique}-{n} > /step-{n}" for n in range(rng.randint(1, 2))]
    return dockerfile(*steps, base=base)


def _context(rng: random.Random, unique: str) -> bytes:
    text = _dockerfile(rng, unique) + "COPY data /data\n"
    return tar({"Dockerfile": text, "data": random_bytes(PAYLOAD_MAX_BYTES, unique)})


def _measuring(rng: random.Random, unique: str) -> tuple[str, float]:
    """A Dockerfile that leaves a perf, and the perf."""
    perf = rng.randrange(1_000_000) / 1_000_000
    script = f"sleep {rng.choice(STEP_SECONDS)}; printf '%s' '{json.dumps({'perf': perf})}' > /data/perf.json"
    return f"FROM {BUSYBOX}\nRUN echo {unique} > /unique\nCMD {json.dumps(['sh', '-c', script])}\n", perf


def _distribution(site: Site, rng: random.Random, unique: str) -> tuple[dict[str, Any], Ending]:
    """The request for a copy to some registries, each image under a name of its own."""
    name = rng.choice(sorted(site.sources))
    known: list[Registry | FaultProxy] = [site.mirror, site.private, site.proxy]
    peers = rng.sample(known, rng.randint(1, len(known)))
    path = f"copies/{unique}"
    source = {"endpoint": rng.choice((site.registry.url, site.proxy.url)), "image": name, "ref": "1"}
    targets = [{"endpoint": p.url, "image": path, **({"auth": BASIC} if p is site.private else {})} for p in peers]
    images = tuple(f"{peer.host}/{path}:1" for peer in peers)
    return {"source": source, "targets": targets}, Ending(images=images, digest=site.sources[name].digest)
