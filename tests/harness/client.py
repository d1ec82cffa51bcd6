"""A client of the daemon: one request at a time, and jobs followed to their end through the native API."""

import datetime as dt
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from email.message import Message
from typing import Any, NamedTuple

from harness.daemon import Daemon
from harness.waiting import END_TIMEOUT_S, until

REQUEST_TIMEOUT_S = 30.0

Fields = dict[str, Any]


class Answer(NamedTuple):
    """An HTTP answer; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """Talks to `daemon`, with a token where one is given."""

    def __init__(self, daemon: Daemon, *, token: str = "") -> None:
        self.daemon = daemon
        self.token = token

    def call(self, method: str, path: str, body: object = None, *, headers: Mapping[str, str] | None = None) -> Answer:
        """One request; a body that is not bytes goes as JSON. Raises `OSError` when the daemon is not there or dies."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.daemon.url + path, data=data, method=method, headers=dict(headers or {}))
        if self.token:
            request.add_header("Authorization", f"Bearer {self.token}")
        try:
            with urllib.request.urlopen(request, timeout=REQUEST_TIMEOUT_S) as response:
                return _answer(response.status, response.headers, response.read())
        except urllib.error.HTTPError as error:
            with error:
                return _answer(error.code, error.headers, error.read())

    def submit(self, kind: str, spec: Fields, *, key: str | None = None) -> str:
        """Submit through the native API; the job's UUID. With a `key` a repetition is the same job."""
        headers = {"Idempotency-Key": key} if key else {}
        answer = self.call("POST", "/api/v2/jobs", {"kind": kind, "spec": spec}, headers=headers)
        assert answer.status in (200, 201), answer.text
        uuid: str = answer.json["id"]
        return uuid

    def job(self, job: str) -> Fields:
        """A job, by UUID or number."""
        fields: Fields = self.call("GET", f"/api/v2/jobs/{job}").json
        return fields

    def log(self, job: str) -> str:
        return self.call("GET", f"/api/v2/jobs/{job}/log").text

    def cancel(self, job: str) -> int:
        return self.call("POST", f"/api/v2/jobs/{job}/cancel").status

    def prints(self, job: str, text: str) -> None:
        """Wait until the job's log has `text`."""
        until(lambda: text in self.log(job), what=f"{text!r} in the log of {job}")

    def ended(self, job: str, *, timeout_s: float = END_TIMEOUT_S) -> Fields:
        """The job once it has ended."""
        until(lambda: self.job(job)["finished_at"] is not None, timeout_s=timeout_s, what=f"job {job} to end")
        return self.job(job)

    def succeeded(self, job: str, *, timeout_s: float = END_TIMEOUT_S) -> Fields:
        """The job once it has ended; it must have succeeded."""
        ended = self.ended(job, timeout_s=timeout_s)
        assert ended["state"] == "succeeded", f"{ended['error']}\n{self.log(job)}\n{self.daemon.log_text()[-3000:]}"
        return ended

    def failed(self, job: str, code: str | None = None, *, timeout_s: float = END_TIMEOUT_S) -> Fields:
        """The job once it has ended; it must have failed, with this code where one is given."""
        ended = self.ended(job, timeout_s=timeout_s)
        assert ended["state"] == "failed", f"{ended['state']}: {ended['result']}"
        assert code is None or ended["error"]["code"] == code, ended["error"]
        return ended


def stopped_after_s(job: Fields) -> float:
    """Seconds from the request to cancel a job to its end, by its own times: a test on a busy machine looks later."""
    asked, ended = (dt.datetime.fromisoformat(job[key]) for key in ("cancel_requested_at", "finished_at"))
    return (ended - asked).total_seconds()


def phase_s(job: Fields, name: str) -> float:
    """Seconds that the last phase of this name took, by the job's own times."""
    phase = [phase for phase in job["phases"] if phase["name"] == name][-1]
    began, ended = (dt.datetime.fromisoformat(phase[key]) for key in ("started_at", "finished_at"))
    return (ended - began).total_seconds()


def _answer(status: int, headers: Message, body: bytes) -> Answer:
    return Answer(status, {name.lower(): value for name, value in headers.items()}, body)
