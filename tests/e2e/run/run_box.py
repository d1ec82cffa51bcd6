"""A box that runs Dockerfiles: the daemon on the session's engine, the run API's client, what must hold after a run."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from harness.base_image import BUSYBOX
from harness.client import Answer, Client, Fields
from harness.daemon import Daemon
from harness.engine import PrivateEngine
from harness.health import check_healthy
from harness.holdings import holdings_of
from harness.waiting import until

# Retries that a test waits for.
QUICK_RETRIES = {"retry_first_s": 0.3, "retry_max_s": 1.0}
END_TIMEOUT_S = 60.0
BOUNDARY = "a-boundary-of-our-own"
MIB = 1024 * 1024
GIB = 1024 * MIB


class RunBox(Client):
    """The daemon as one who runs Dockerfiles sees it."""

    def __init__(self, engine: PrivateEngine, *, builder: str = "buildkit", **tables: Mapping[str, Any]) -> None:
        limits = QUICK_RETRIES | dict(tables.pop("limits", {}))
        super().__init__(Daemon({"engine": {"builder": builder}, "limits": limits, **tables}, engine_host=engine.host))
        self.engine = engine

    def post(self, dockerfile: str) -> Answer:
        """The run API's request."""
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="Dockerfile"\r\n\r\n'
        body = f"{head}{dockerfile}\r\n--{BOUNDARY}--\r\n".encode()
        return self.call("POST", "/run", body, headers={"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"})

    def launch(self, dockerfile: str) -> str:
        """Submit through the run API; the job's id."""
        answer = self.post(dockerfile)
        assert answer.status == 200, answer.text
        return answer.text.removeprefix("Job was launched with id ")

    def status(self, job: str) -> Answer:
        return self.call("GET", f"/status?id={job}")

    def outcome(self, job: str, *, timeout_s: float = END_TIMEOUT_S) -> str:
        """What the run API says of a job that has ended, after `was`, in one line; nothing of the job is left."""
        until(lambda: self.status(job).status == 200, timeout_s=timeout_s, what=f"job {job} to end")
        text = self.status(job).text
        assert text.splitlines() == [text]
        assert text.startswith(f"Job {job} was ")
        assert holdings_of(self.engine, job) == []
        return text.removeprefix(f"Job {job} was ")

    def metrics(self, job: str) -> Fields:
        """The whole JSON object that a successful run has left."""
        metrics: Fields = self.succeeded(job)["result"]["metrics"]
        assert holdings_of(self.engine, job) == []
        return metrics

    def restart(self) -> None:
        """Up again after a crash, without any crash armed."""
        self.daemon.kill()
        self.daemon.start()

    def check_healthy(self) -> None:
        """See `harness.health`."""
        check_healthy(self.daemon)


@contextmanager
def run_box(engine: PrivateEngine, *, failpoints: str = "", **settings: Any) -> Iterator[RunBox]:
    """A running box, removed afterwards. With `failpoints` it may crash before it is ready."""
    made = RunBox(engine, **settings)
    try:
        if failpoints:
            made.daemon.spawn(failpoints=failpoints)
        else:
            made.daemon.start()
        yield made
    finally:
        made.daemon.remove()


@contextmanager
def launched(box: RunBox, texts: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Many runs at once, so that a test waits for little more than its own; ids by the names of the texts."""
    jobs = {name: box.launch(text) for name, text in texts.items()}
    yield jobs
    for job in jobs.values():
        box.ended(job)


def dockerfile(*lines: str) -> str:
    return "\n".join([f"FROM {BUSYBOX}", *lines, ""])


def script(*lines: str) -> str:
    """A CMD that runs these lines of shell."""
    return f"CMD {json.dumps(['/bin/sh', '-c', chr(10).join(lines)])}"


def writes(content: str, path: str = "/data/perf.json") -> str:
    """A line of shell that writes `content`, which has no single quotes."""
    return f"printf '%s' '{content}' > {path}"


PERF = writes('{"perf": 0.5}')
