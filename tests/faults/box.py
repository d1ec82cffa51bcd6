"""A build box for one test: the daemon on the session's engine, a client that talks to it, and what must hold after."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from sqlite3 import connect
from typing import Any, NamedTuple

from harness.base_image import BUSYBOX, publish_busybox
from harness.daemon import Daemon
from harness.engine import PrivateEngine
from harness.holdings import ALIVE, holdings
from harness.registry import PASSWORD, USERNAME, Registry
from harness.waiting import until
from imagejobd.model.reserved import job_repository

# A minute between sweeps, and what one takes.
SWEPT_S = 90.0
END_TIMEOUT_S = 60.0
REQUEST_TIMEOUT_S = 20.0
# Retries that a test waits for.
QUICK_RETRIES = {"retry_first_s": 0.3, "retry_max_s": 1.0}
LOGIN = {"username": USERNAME, "password": PASSWORD}
BASES = "private/bases"


class Answer(NamedTuple):
    """An HTTP answer: JSON where it is JSON, else text."""

    status: int
    body: Any
    headers: Mapping[str, str]


class Box:
    """The daemon with the two APIs as a client sees them."""

    def __init__(
        self,
        private_engine: PrivateEngine,
        /,
        *,
        builder: str = "buildkit",
        engine_host: str | None = None,
        **tables: Mapping[str, Any],
    ) -> None:
        config = {
            "engine": {"builder": builder, **tables.pop("engine", {})},
            "limits": QUICK_RETRIES | dict(tables.pop("limits", {})),
            **tables,
        }
        self.engine = private_engine
        self.daemon = Daemon(config, engine_host=engine_host or private_engine.host)

    def call(self, method: str, path: str, body: object = None, *, headers: Mapping[str, str] | None = None) -> Answer:
        """One request. Raises `OSError` when the daemon is not there or dies before it answers."""
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.daemon.url + path, data=data, method=method, headers=dict(headers or {}))
        try:
            with urllib.request.urlopen(request, timeout=REQUEST_TIMEOUT_S) as response:
                return _answer(response.status, response.headers, response.read())
        except urllib.error.HTTPError as error:
            with error:
                return _answer(error.code, error.headers, error.read())

    def built(self, uuid: str, attempt: int = 1) -> str:
        """The name of the image that an attempt has built, as the engine shows it."""
        return f"{job_repository(self.daemon.installation, uuid)}:{attempt}"

    def build(self, image: str, dockerfile: str, **fields: Any) -> str:
        """Submit through the builder API; the job's UUID."""
        answer = self.call("POST", "/api/v1/build", {"image_name": image, "dockerfile": dockerfile, **fields})
        assert answer.status == 200, answer.body
        uuid: str = answer.body["JobIdentifier"]
        return uuid

    def submit(self, image: str, dockerfile: str, *, key: str | None = None, **spec: Any) -> str:
        """Submit through the native API; the job's UUID."""
        body = {"kind": "build", "spec": {"image": image, "dockerfile": dockerfile, **spec}}
        answer = self.call("POST", "/api/v2/jobs", body, headers={"Idempotency-Key": key} if key else {})
        assert answer.status in (200, 201), answer.body
        uuid: str = answer.body["id"]
        return uuid

    def job(self, uuid: str) -> dict[str, Any]:
        body: dict[str, Any] = self.call("GET", f"/api/v2/jobs/{uuid}").body
        return body

    def status(self, uuid: str) -> str:
        """The builder API's word for where a job is."""
        status: str = self.call("GET", f"/api/v1/{uuid}/status").body["Status"]
        return status

    def logs(self, uuid: str) -> str:
        logs: str = self.call("GET", f"/api/v1/{uuid}/logs").body["Logs"]
        return logs

    def cancel(self, uuid: str) -> int:
        return self.call("POST", f"/api/v2/jobs/{uuid}/cancel").status

    def ended(self, uuid: str, *, timeout_s: float = END_TIMEOUT_S) -> dict[str, Any]:
        """The job once it has ended."""
        until(lambda: self.job(uuid)["finished_at"] is not None, timeout_s=timeout_s, what=f"job {uuid} to end")
        return self.job(uuid)

    def succeeded(self, *uuids: str, timeout_s: float = END_TIMEOUT_S) -> list[dict[str, Any]]:
        """The jobs once they have ended; each must have succeeded."""
        jobs = [self.ended(uuid, timeout_s=timeout_s) for uuid in uuids]
        for job in jobs:
            assert job["state"] == "succeeded", f"{job['error']}\n{self.logs(job['id'])}"
        return jobs

    def prints(self, uuid: str, text: str) -> None:
        """Wait until the job's log has `text`."""
        until(lambda: text in self.logs(uuid), timeout_s=END_TIMEOUT_S, what=f"{text!r} in the log of {uuid}")

    def restart(self) -> None:
        """Up again, without any crash armed."""
        self.daemon.kill()
        self.daemon.start()

    def check_clean(self) -> None:
        """Nothing of any job is left in engine, spool or a half-written database, and nothing of ended ones in the
        engine's history. What the engine could not remove at the time, a sweep does within a minute."""
        until(lambda: leftovers(self) == [], timeout_s=SWEPT_S, what="what jobs left in the engine to go")
        until(lambda: not self._recorded(), timeout_s=10, what="the records of builds to go")
        assert list((self.daemon.state_dir / "spool").iterdir()) == []
        self.check_database()

    def _recorded(self) -> set[str]:
        with closing(connect(f"file:{self.daemon.database_file}?mode=ro", uri=True)) as db:
            ended = {uuid for (uuid,) in db.execute("select uuid from job where state not in ('queued', 'running')")}
        return ended & {held.name.rpartition("/")[2] for held in holdings(self.engine) if held.sort == "build"}

    def check_database(self) -> None:
        with closing(connect(f"file:{self.daemon.database_file}?mode=ro", uri=True)) as db:
            assert db.execute("pragma integrity_check").fetchall() == [("ok",)]
            assert db.execute("pragma foreign_key_check").fetchall() == []
            assert db.execute("select count(*) from job_secret").fetchall() == [(0,)]


@contextmanager
def box(private_engine: PrivateEngine, /, *, failpoints: str = "", **settings: Any) -> Iterator[Box]:
    """A running box, removed afterwards. With `failpoints` it may crash before it is ready."""
    made = Box(private_engine, **settings)
    try:
        if failpoints:
            made.daemon.spawn(failpoints=failpoints)
        else:
            made.daemon.start()
        yield made
    finally:
        made.daemon.remove()


def leftovers(b: Box) -> list[str]:
    """Images, bases and volumes of the box's jobs that the engine has, and all containers."""
    own = b.daemon.installation
    images = b.engine.docker("images", "--format", "{{.Repository}}:{{.Tag}}").split()
    containers = b.engine.docker("ps", "--all", "--quiet").split()
    listed = b.engine.docker("volume", "ls", "--quiet").split()
    volumes = [name for name in listed if name.startswith(f"imagejobd-{own}-") and ALIVE not in name]
    return [name for name in images if f"/{own}/" in f"/{name}" or f"/{BASES}:" in name] + containers + volumes


def publish_base(engine: PrivateEngine, registry: Registry, tag: str) -> str:
    """Put the base image into a private registry, and away from the engine; returns its name there."""
    return publish_busybox(engine, registry, BASES, tag)


def is_clean(b: Box) -> bool:
    return not leftovers(b)


def multipart(fields: Mapping[str, Any], tar: bytes) -> tuple[bytes, str]:
    """The builder API's multipart body, tar first, and its Content-Type."""
    boundary = "a-boundary-of-our-own"
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="TarFile"; filename="c.tar"\r\n\r\n'
    middle = f'\r\n--{boundary}\r\nContent-Disposition: form-data; name="Json"\r\n\r\n'
    body = head.encode() + tar + (middle + json.dumps(fields) + f"\r\n--{boundary}--\r\n").encode()
    return body, f"multipart/form-data; boundary={boundary}"


def dockerfile(*lines: str) -> str:
    return "\n".join([f"FROM {BUSYBOX}", *lines, ""])


def _answer(status: int, headers: Any, body: bytes) -> Answer:
    text = body.decode()
    is_json = "json" in headers.get("Content-Type", "")
    return Answer(status, json.loads(text) if is_json else text, dict(headers))
