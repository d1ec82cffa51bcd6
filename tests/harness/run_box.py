"""A box that runs Dockerfiles, as the run API's client sees it."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from harness.bodies import MULTIPART, multipart
from harness.box import Box
from harness.client import Answer, Fields
from harness.holdings import holdings_of
from harness.waiting import until

MIB = 1024 * 1024
GIB = 1024 * MIB


class RunBox(Box):
    """The run API, and what must hold after a run."""

    def post(self, text: str) -> Answer:
        """The run API's request."""
        return self.call("POST", "/run", multipart({"file": text}), headers={"Content-Type": MULTIPART})

    def launch(self, text: str) -> str:
        """Submit through the run API; the job's id."""
        answer = self.post(text)
        assert answer.status == 200, answer.text
        return answer.text.removeprefix("Job was launched with id ")

    def status(self, job: str) -> Answer:
        return self.call("GET", f"/status?id={job}")

    def outcome(self, job: str) -> str:
        """What the run API says of a job that has ended, after `was`, in one line; nothing of the job is left."""
        until(lambda: self.status(job).status == 200, what=f"job {job} to end")
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


@contextmanager
def launched(box: RunBox, texts: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Many runs at once, so that a test waits for little more than its own; ids by the names of the texts."""
    jobs = {name: box.launch(text) for name, text in texts.items()}
    yield jobs
    for job in jobs.values():
        box.ended(job)


def script(*lines: str) -> str:
    """A CMD that runs these lines of shell."""
    return f"CMD {json.dumps(['/bin/sh', '-c', chr(10).join(lines)])}"


def writes(content: str, path: str = "/data/perf.json") -> str:
    """A line of shell that writes `content`, which has no single quotes."""
    return f"printf '%s' '{content}' > {path}"


PERF = writes('{"perf": 0.5}')
