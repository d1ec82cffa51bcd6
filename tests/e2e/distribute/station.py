"""The daemon as one who distributes images sees it: no engine, two APIs, and what must hold of every copy."""

import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

from harness.daemon import Daemon
from harness.images import Image
from harness.logins import PASSWORD, USERNAME
from harness.registry import Registry
from harness.waiting import until

END_TIMEOUT_S = 40.0
REQUEST_TIMEOUT_S = 20.0
# Retries that a test waits for.
QUICK = {"retry_first_s": 0.2, "retry_max_s": 0.5}
BASIC = {"basicauth": {"user": USERNAME, "password": PASSWORD}}
MIB = 1024 * 1024

Fields = dict[str, Any]


class Peer(Protocol):
    """A registry, or a proxy in front of one."""

    @property
    def url(self) -> str: ...


class Answer(NamedTuple):
    status: int
    body: Any


class Station:
    """A running daemon and the clients of its APIs."""

    def __init__(self, **tables: Mapping[str, Any]) -> None:
        self.daemon = Daemon({**tables, "limits": QUICK | dict(tables.get("limits", {}))}, env=_without_proxies())

    def call(self, method: str, path: str, body: object = None) -> Answer:
        """One request. Raises `OSError` when the daemon is not there or dies before it answers."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.daemon.url + path, data=data, method=method)
        try:
            with urllib.request.urlopen(request, timeout=REQUEST_TIMEOUT_S) as response:
                return _answer(response.status, response.read())
        except urllib.error.HTTPError as error:
            with error:
                return _answer(error.code, error.read())

    def submit(self, source: Fields, targets: Sequence[Fields], **options: Any) -> str:
        """Submit through the native API; the job's UUID."""
        body = {"kind": "distribute", "spec": {"source": source, "targets": list(targets), **options}}
        answer = self.call("POST", "/api/v2/jobs", body)
        assert answer.status == 201, answer.body
        uuid: str = answer.body["id"]
        return uuid

    def distribute(self, source: Fields, targets: Sequence[Fields]) -> Answer:
        """Submit through the distribute API."""
        return self.call("POST", "/api/distribute/image", {"source": source, "targets": list(targets)})

    def job(self, uuid: str) -> Fields:
        body: Fields = self.call("GET", f"/api/v2/jobs/{uuid}").body
        return body

    def status(self, uuid: str) -> Fields:
        """What the distribute API says of a job."""
        body: Fields = self.call("GET", f"/api/distribute/image/{uuid}").body
        return body

    def log(self, uuid: str) -> str:
        return str(self.call("GET", f"/api/v2/jobs/{uuid}/log").body)

    def cancel(self, uuid: str) -> int:
        return self.call("POST", f"/api/v2/jobs/{uuid}/cancel").status

    def ended(self, uuid: str, *, timeout_s: float = END_TIMEOUT_S) -> Fields:
        """The job once it has ended."""
        until(lambda: self.job(uuid)["finished_at"] is not None, timeout_s=timeout_s, what=f"job {uuid} to end")
        return self.job(uuid)

    def succeeded(self, uuid: str, *, timeout_s: float = END_TIMEOUT_S) -> Fields:
        """The job once it has ended; it must have succeeded."""
        job = self.ended(uuid, timeout_s=timeout_s)
        assert job["state"] == "succeeded", f"{job['error']}\n{self.log(uuid)}\n{self.daemon.log_text()[-3000:]}"
        return job

    def failed(self, uuid: str, *, timeout_s: float = END_TIMEOUT_S) -> Fields:
        """The job once it has ended; it must have failed."""
        job = self.ended(uuid, timeout_s=timeout_s)
        assert job["state"] == "failed", job["result"]
        return job

    def copy(self, source: Fields, targets: Sequence[Fields], **options: Any) -> Fields:
        """Submit and wait for success; the job."""
        return self.succeeded(self.submit(source, targets, **options))

    def restart(self) -> None:
        """Up again after a crash, without any crash armed."""
        self.daemon.kill()
        self.daemon.start()

    def spooled(self) -> list[str]:
        """Files that a copy keeps beside its memory."""
        return [str(path) for path in (self.daemon.state_dir / "spool").rglob("*") if path.is_file()]


@contextmanager
def station(*, failpoints: str = "", **tables: Any) -> Iterator[Station]:
    """A running station, removed afterwards. `failpoints` arms crashes for its first life."""
    made = Station(**tables)
    try:
        made.daemon.start(failpoints=failpoints)
        yield made
    finally:
        made.daemon.remove()


def source(peer: Peer, image: str, ref: str = "1", **fields: Any) -> Fields:
    return {"endpoint": peer.url, "image": image, "ref": ref, **_trust(peer), **fields}


def registry_of(peer: Peer, **fields: Any) -> Fields:
    """A source that is not one image: with `image` and `tags`, or with `images`."""
    return {"endpoint": peer.url, **_trust(peer), **fields}


def target(peer: Peer, **fields: Any) -> Fields:
    return {"endpoint": peer.url, **_trust(peer), **fields}


def results(job: Fields, image: int = 0) -> dict[str, Fields]:
    """What the job's result says of each target of an image, by endpoint."""
    return {entry["endpoint"]: entry for entry in job["result"]["images"][image]["targets"]}


def check_copied(image: Image, origin: Registry, path: str, *targets: Registry, ref: str = "1") -> None:
    """Every manifest of `image` is at every target byte for byte, and so is every blob; the tag points at it."""
    for registry in targets:
        assert registry.digest(path, ref) == image.digest
        for digest in image.manifests:
            assert registry.manifest(path, digest) == origin.manifest(path, digest)
        for digest in image.blobs:
            assert registry.has_blob(path, digest)


def has_tag(registry: Registry, path: str, tag: str = "1") -> bool:
    """Whether the tag is there now; for looking at it while it may be written."""
    try:
        return registry.digest(path, tag) is not None
    except urllib.error.HTTPError as error:
        if error.code == 500:  # docker-registry has made the file of the tag and not yet filled it
            return False
        raise


def nothing_of(image: Image, path: str, *targets: Registry) -> bool:
    """Whether no target has any part of `image`."""
    return not any(
        registry.tags(path) or any(registry.has_blob(path, digest) for digest in image.blobs) for registry in targets
    )


def named(text: str) -> str:
    """`text` as a repository's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _trust(peer: Peer) -> Fields:
    """How a request gets into this peer."""
    return {"auth": BASIC} if isinstance(peer, Registry) and peer.is_private else {}


def _answer(status: int, body: bytes) -> Answer:
    try:
        return Answer(status, json.loads(body))
    except ValueError:
        return Answer(status, body.decode())


def _without_proxies() -> dict[str, str]:
    """Registries on loopback are reached directly, whatever the caller's environment says."""
    names = {name for name in os.environ if name.lower() in ("http_proxy", "https_proxy", "all_proxy")}
    return dict.fromkeys(names, "")
