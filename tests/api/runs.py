"""What the tests of the run API share: a job that is launched and followed, and its log."""

from calls import curl, until

from harness.base_image import BUSYBOX
from harness.daemon import Daemon

FROM = f"FROM {BUSYBOX}\n"
PERF = """CMD echo '{"perf": 0.5}' > /data/perf.json"""
LAUNCHED = "Job was launched with id "


def launch(daemon: Daemon, dockerfile: str) -> str:
    answer = curl(daemon, "/run", "--form-string", f"file={dockerfile}")
    assert answer.status == 200, answer.text
    assert answer.text.startswith(LAUNCHED)
    return answer.text.removeprefix(LAUNCHED)


def said(daemon: Daemon, job: str) -> str:
    """The last word on a job, without its name."""
    answer = until(lambda: curl(daemon, f"/status?id={job}"), lambda answer: answer.status != 202)
    assert answer.status == 200, answer.text
    return answer.text.removeprefix(f"Job {job} was ")


def log_of(daemon: Daemon, job: str) -> str:
    return curl(daemon, f"/api/v2/jobs/{job}/log").text
