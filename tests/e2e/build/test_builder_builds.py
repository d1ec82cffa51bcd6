"""The builder API end to end: what arrives in the registry, and what a client sees on the way."""

import json
import re
import subprocess
from pathlib import Path

from harness.bodies import dockerfile, tar
from harness.build_box import BuildBox
from harness.processes import unique_seconds
from harness.proxy import FaultProxy, StallRequest
from harness.registry import Registry
from harness.services import program
from harness.waiting import until

FOLLOWED_MAX_S = 60


def test_curl_form_upload(box: BuildBox, registry: Registry, tmp_path: Path) -> None:
    """`curl -F TarFile=@… -F Json=…`, the call that users make, builds and pushes under the default tag."""
    context = tmp_path / "context.tar"
    context.write_bytes(tar({"Dockerfile": dockerfile("COPY greeting /greeting"), "greeting": "hello\n"}))
    fields = json.dumps({"image_name": f"{registry.host}/builds/form"})
    form = ["-F", f"TarFile=@{context}", "-F", f"Json={fields}"]
    command = [str(program("curl")), "-sS", "--fail", *form, f"{box.daemon.url}/api/v1/build"]
    answer = subprocess.run(command, capture_output=True, check=True)
    assert box.outcome(json.loads(answer.stdout)["JobIdentifier"]) == "Finished"
    assert registry.tags("builds/form") == ["latest"]


def test_stages_in_order(box: BuildBox, registry: Registry) -> None:
    """A client that polls sees Building, then Pushing, then Finished, and never a step back."""
    seen: list[str] = []

    def look(job: str) -> str:
        now = box.status(job)
        if now not in seen[-1:]:
            seen.append(now)
        return now

    with FaultProxy(registry.host) as proxy:
        proxy.add("PUT", ".*/manifests/.*", StallRequest())
        job = box.build(f"{proxy.host}/builds/stages", dockerfile("RUN sleep 1"))
        until(lambda: look(job) == "Pushing", what="the push")
        proxy.release()
        until(lambda: look(job) not in ("Building", "Pushing"), what="the end")
    assert seen == ["Building", "Pushing", "Finished"]


def test_queued_job_says_building_and_has_empty_logs(box: BuildBox) -> None:
    """Before anything happened the stage is Building and the log an empty string."""
    spec = {"image": "app", "dockerfile": "FROM scratch"}
    answer = box.call("POST", "/api/v2/jobs", {"kind": "build", "spec": spec, "not_before": "2999-01-01T00:00:00Z"})
    job = answer.json["id"]
    assert box.call("GET", f"/api/v1/{job}/status").text == '{\n  "Status": "Building"\n}'
    assert box.call("GET", f"/api/v1/{job}/logs").text == '{\n  "Logs": ""\n}'
    box.cancel(job)


def test_nocache_is_obeyed(box: BuildBox, registry: Registry) -> None:
    """The same step runs anew with nocache, and comes from the cache without."""
    digests = []
    for nocache in (False, False, True):
        text = dockerfile("RUN head -c 16 /dev/urandom > /chance")
        assert box.outcome(box.build(f"{registry.host}/builds/nocache", text, nocache=nocache)) == "Finished"
        digests.append(registry.digest("builds/nocache", "latest"))
    assert digests[0] == digests[1] != digests[2]


def test_localhost_with_a_port_is_a_registry(box: BuildBox, registry: Registry) -> None:
    """`localhost:5000/x` goes to that registry, not to the Hub."""
    assert box.outcome(box.build(f"localhost:{registry.port}/builds/local:1", dockerfile())) == "Finished"
    assert registry.tags("builds/local") == ["1"]


def test_logs_of_many_lines_are_one_string_in_order(box: BuildBox, registry: Registry) -> None:
    """A long log comes whole, in order, with its special characters."""
    text = dockerfile("RUN seq 1 20000 && echo 'say \"é\" & <b>'")
    job = box.build(f"{registry.host}/builds/noisy", text)
    assert box.outcome(job) == "Finished"
    numbers = [int(number) for number in re.findall(r"^#\d+ (\d+)$", box.logs(job), re.MULTILINE)]
    assert numbers == list(range(1, 20001))
    assert 'say "é" & <b>' in box.logs(job)


def test_follow_streams_while_the_job_runs(box: BuildBox, registry: Registry) -> None:
    """A follower reads a line while the step that printed it still runs, and the stream ends with the job."""
    text = dockerfile(f"RUN echo early && sleep {unique_seconds()}")
    job = box.build(f"{registry.host}/builds/followed", text)
    command = [str(program("curl")), "-sSN", "--max-time", str(FOLLOWED_MAX_S)]
    url = f"{box.daemon.url}/api/v2/jobs/{job}/log?follow=1"
    with subprocess.Popen([*command, url], stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None
        # The step itself, not the instruction that BuildKit shows before it.
        next(line for line in follower.stdout if re.fullmatch(r"#\d+ early\n", line))
        assert box.cancel(job) == 202
        assert follower.stdout.read().endswith("cancelled\n")
    assert follower.returncode == 0
    assert box.ended(job)["state"] == "cancelled"
