"""What ended runs have left in the engine is swept away."""

import urllib.request
from collections.abc import Iterator

import pytest

from harness.base_image import BUSYBOX
from harness.daemon import Daemon
from harness.engine import PrivateEngine
from harness.services import require
from harness.waiting import until
from imagejobd.model.job import uuid7
from imagejobd.model.ownership import job_repository, resource_name

END_TIMEOUT_S = 40.0
DOCKERFILE = f"""FROM {BUSYBOX}
CMD echo here; echo '{{"perf": 0.25}}' > /data/perf.json
"""


@pytest.fixture
def daemon(engine: PrivateEngine) -> Iterator[Daemon]:
    """A daemon that the test starts itself."""
    require("curl")
    daemon = Daemon(engine_host=engine.host)
    try:
        yield daemon
    finally:
        daemon.remove()


def launch(daemon: Daemon) -> str:
    """The id of a job."""
    body = f'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n{DOCKERFILE}\r\n--b--\r\n'
    request = urllib.request.Request(
        f"{daemon.url}/run", body.encode(), {"Content-Type": "multipart/form-data; boundary=b"}
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        text: str = response.read().decode()
        return text.split()[-1]


def ended(daemon: Daemon) -> tuple[str, float, int]:
    """State, perf and crashes of the only job, once it has ended."""
    select = (
        "select state, perf, (select crashes from job where id = job_id) from run_result where finished is not null"
    )
    until(lambda: bool(daemon.sqlite(select)), timeout_s=END_TIMEOUT_S, what="the job to end")
    [row] = daemon.sqlite(select)
    return row


def test_leftovers_of_ended_jobs_are_swept(daemon: Daemon, engine: PrivateEngine) -> None:
    """Container, volume and image of a job that is over, or that nobody knows, go at the next start; others stay."""
    daemon.start()
    known = launch(daemon)
    assert ended(daemon)[0] == "succeeded"
    daemon.kill()
    for job in (known, uuid7()):
        own, image = daemon.installation, f"{job_repository(daemon.installation, job)}:1"
        name = resource_name(own, job, 1)
        label = ("--label", f"imagejobd.job={job}", "--label", f"imagejobd.installation={own}")
        engine.docker("tag", BUSYBOX, image)
        engine.docker("volume", "create", *label, name)
        volume = ("--volume", f"{name}:/data")
        engine.docker("run", "--detach", "--network=none", "--name", name, *label, *volume, image, "sleep", "600")
    engine.docker("volume", "create", "--label", f"imagejobd.job={known}", "somebody-elses")
    stranger = engine.docker("create", "--network=none", "--label", f"imagejobd.job={known}", BUSYBOX)
    daemon.start()
    own = f"label=imagejobd.installation={daemon.installation}"
    until(
        lambda: (
            not engine.docker("ps", "--all", "--quiet", "--filter", own)
            and not engine.docker("volume", "ls", "--quiet", "--filter", own, "--filter", "label=imagejobd.job")
            and not engine.docker("images", "--quiet", f"imagejobd/{daemon.installation}/*")
        ),
        timeout_s=20,
        what="the sweep",
    )
    assert "somebody-elses" in engine.docker("volume", "ls", "--quiet").split()
    engine.docker("rm", stranger)
    engine.docker("volume", "rm", "somebody-elses")
