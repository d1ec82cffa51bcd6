"""The builder API end to end: what arrives in the registry, and what a client sees on the way."""

import json
import re
import subprocess
import threading
import time
from pathlib import Path

from calls import context_tar, curl, ended_stage, post_json, stage, submit, until

from harness.base_image import BUSYBOX
from harness.daemon import Daemon
from harness.engine import PrivateEngine
from harness.registry import PASSWORD, USERNAME, Registry
from harness.services import program, require

DOCKERFILE = f"FROM {BUSYBOX}\n"


def test_curl_form_upload(daemon: Daemon, registry: Registry, tmp_path: Path) -> None:
    """`curl -F TarFile=@… -F Json=…`, the call that users make, builds and pushes under the default tag."""
    context = tmp_path / "context.tar"
    context.write_bytes(context_tar())
    fields = json.dumps({"image_name": f"{registry.host}/builds/form"})
    answer = curl(daemon, "/api/v1/build", "-F", f"TarFile=@{context}", "-F", f"Json={fields}")
    assert answer.status == 200, answer.text
    assert ended_stage(daemon, answer.json["JobIdentifier"]) == "Finished"
    assert registry.tags("builds/form") == ["latest"]


def test_stages_in_order(daemon: Daemon, registry: Registry) -> None:
    """A client that polls sees Building, then Pushing, then Finished, and never a step back."""
    # Random content makes the push long enough to be seen.
    dockerfile = f"{DOCKERFILE}RUN head -c 64000000 /dev/urandom > /large\n"
    job = submit(daemon, image_name=f"{registry.host}/builds/stages", dockerfile=dockerfile)
    seen: list[str] = []

    def look() -> str:
        now = stage(daemon, job)
        if now not in seen[-1:]:
            seen.append(now)
        return now

    until(look, lambda now: now == "Finished" or now.startswith("Failed"))
    assert seen == ["Building", "Pushing", "Finished"]


def test_queued_job_says_building_and_has_empty_logs(lone_daemon: Daemon) -> None:
    """Before anything happened the stage is Building and the log an empty string."""
    fields = {
        "kind": "build",
        "spec": {"image": "app", "dockerfile": "FROM scratch"},
        "not_before": "2999-01-01T00:00:00Z",
    }
    job = post_json(lone_daemon, "/api/v2/jobs", fields).json["id"]
    assert curl(lone_daemon, f"/api/v1/{job}/status").text == '{\n  "Status": "Building"\n}'
    assert curl(lone_daemon, f"/api/v1/{job}/logs").text == '{\n  "Logs": ""\n}'


def test_nocache_is_obeyed(daemon: Daemon, registry: Registry) -> None:
    """The same step runs anew with nocache, and comes from the cache without."""
    dockerfile = f"{DOCKERFILE}RUN head -c 16 /dev/urandom > /chance\n"
    digests = []
    for nocache in (False, False, True):
        fields = {"image_name": f"{registry.host}/builds/nocache", "dockerfile": dockerfile, "nocache": nocache}
        assert ended_stage(daemon, submit(daemon, **fields)) == "Finished"
        digests.append(registry.digest("builds/nocache", "latest"))
    assert digests[0] == digests[1] != digests[2]


def test_localhost_with_a_port_is_a_registry(daemon: Daemon, registry: Registry) -> None:
    """`localhost:5000/x` goes to that registry, not to the Hub."""
    job = submit(daemon, image_name=f"localhost:{registry.port}/builds/local:1", dockerfile=DOCKERFILE)
    assert ended_stage(daemon, job) == "Finished"
    assert registry.tags("builds/local") == ["1"]


def test_wrong_password_is_denied_and_shown_nowhere(daemon: Daemon, private_registry: Registry) -> None:
    """The registry's refusal reaches the status; the password reaches neither status nor logs nor the database."""
    job = submit(
        daemon,
        image_name=f"{private_registry.host}/builds/wrong",
        dockerfile=DOCKERFILE,
        username=USERNAME,
        password="wrong-horse-battery",
    )
    assert ended_stage(daemon, job).startswith("Failed: ")
    shown = curl(daemon, f"/api/v1/{job}/logs").text + curl(daemon, f"/api/v2/jobs/{job}").text
    assert "wrong-horse-battery" not in shown + daemon.log_text()
    assert b"wrong-horse-battery" not in daemon.database_file.read_bytes()


def test_private_push_is_readable_with_the_same_login(daemon: Daemon, private_registry: Registry) -> None:
    """What was pushed with the request's credentials is in the private registry."""
    require("skopeo")
    skopeo = str(program("skopeo"))
    job = submit(
        daemon,
        image_name=f"{private_registry.host}/builds/login:2",
        dockerfile=DOCKERFILE,
        username=USERNAME,
        password=PASSWORD,
    )
    assert ended_stage(daemon, job) == "Finished"
    image = f"docker://{private_registry.host}/builds/login:2"
    done = subprocess.run(
        [
            skopeo,
            "inspect",
            "--tls-verify=false",
            "--creds",
            f"{USERNAME}:{PASSWORD}",
            "--format",
            "{{.Digest}}",
            image,
        ],
        capture_output=True,
        check=True,
        text=True,
    )
    assert done.stdout.strip() == private_registry.digest("builds/login", "2")


def test_engine_keeps_nothing(daemon: Daemon, engine: PrivateEngine, registry: Registry) -> None:
    """After success and after failure no image of the job is left in the engine."""
    good = submit(daemon, image_name=f"{registry.host}/builds/purged", dockerfile=DOCKERFILE)
    bad = submit(daemon, image_name=f"{registry.host}/builds/purged", dockerfile=f"{DOCKERFILE}RUN false\n")
    assert ended_stage(daemon, good) == "Finished"
    assert ended_stage(daemon, bad).startswith("Failed: ")
    names = engine.docker("images", "--format", "{{.Repository}}")
    assert "builds/purged" not in names
    assert good not in names
    assert bad not in names


def test_logs_of_many_lines_are_one_string_in_order(daemon: Daemon, registry: Registry) -> None:
    """A long log comes whole, in order, with its special characters."""
    dockerfile = f"{DOCKERFILE}RUN seq 1 20000 && echo 'say \"é\" & <b>'\n"
    job = submit(daemon, image_name=f"{registry.host}/builds/noisy", dockerfile=dockerfile)
    assert ended_stage(daemon, job) == "Finished"
    text = curl(daemon, f"/api/v1/{job}/logs").json["Logs"]
    numbers = [int(number) for number in re.findall(r"^#\d+ (\d+)$", text, re.MULTILINE)]
    assert numbers == list(range(1, 20001))
    assert 'say "é" & <b>' in text


def test_follow_streams_while_the_job_runs(daemon: Daemon, registry: Registry) -> None:
    """A follower reads a line while the step that printed it still runs, and the stream ends with the job."""
    dockerfile = f"{DOCKERFILE}RUN echo early && sleep 2 && echo late\n"
    job = submit(daemon, image_name=f"{registry.host}/builds/followed", dockerfile=dockerfile)
    arrivals: dict[str, float] = {}
    with subprocess.Popen(
        ["curl", "-sSN", f"{daemon.url}/api/v2/jobs/{job}/log?follow=1"], stdout=subprocess.PIPE, text=True
    ) as follower:
        killer = threading.Timer(40, follower.kill)
        killer.start()
        for line in follower.stdout or ():
            arrivals[re.sub(r"^#\d+ ", "", line.strip())] = time.monotonic()
        killer.cancel()
    assert follower.returncode == 0
    assert arrivals["late"] - arrivals["early"] > 1
    assert curl(daemon, f"/api/v2/jobs/{job}").json["state"] == "succeeded"
