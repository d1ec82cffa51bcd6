"""The main job end to end, as a user would do it: curl in, image out, history in sqlite3.

Runs on an engine and a registry of its own, so nothing on the machine is touched. Each command is printed before it is
run; the demo fails when one of its promises does not hold.
"""

import json
import secrets
import shlex
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from harness.base_image import BUSYBOX, load_busybox
from harness.daemon import Daemon
from harness.engine import PrivateEngine
from harness.registry import Registry

DOCKERFILE = f"""FROM {BUSYBOX}
RUN echo "building as $(id -un)" && for i in 1 2 3; do echo "step $i of 3"; sleep 0.3; done
LABEL org.example.demo=yes
CMD ["echo", "hello"]
"""
PERF_DOCKERFILE = (
    f"FROM {BUSYBOX}\n"
    r"""ARG version
ENV version=$version
RUN seq 1000 > /numbers
CMD echo "measuring version $version" && \
    awk '{ sum += $1 } END { printf "{\"perf\": %f, \"sum\": %d}", sum / 505000, sum }' /numbers \
    > /data/perf-$version.json
"""
)
DISPATCHED_DOCKERFILE = f"""FROM {BUSYBOX}
RUN echo "made for a tenant" > /greeting
CMD ["cat", "/greeting"]
"""


def main() -> int:
    with ExitStack() as stack:
        say("Starting a private Docker Engine, a registry and imagejobd")
        engine = stack.enter_context(PrivateEngine())
        load_busybox(engine)
        registry = stack.enter_context(Registry())
        mirrors = [stack.enter_context(Registry()) for _ in range(2)]
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="imagejobd-demo-")))
        secret = folder / "jwt.secret"
        secret.write_text(secrets.token_urlsafe(32))
        daemon = stack.enter_context(Daemon({"auth": {"jwt_secret_file": str(secret)}}, engine_host=engine.host))
        print(f"engine {engine.host}\nregistry {registry.host}\nimagejobd {daemon.url}")
        json_build(daemon, registry, folder)
        multipart_build(daemon, registry, folder)
        prove_push(registry, "demo/json")
        prove_push(registry, "demo/multipart")
        prove_purge(engine)
        distribute(daemon, registry, mirrors, folder)
        run_dockerfile(daemon, folder)
        dispatch(daemon, engine, folder)
        show_history(daemon)
    say("Done: images built, pushed, proved, purged and distributed; a Dockerfile run; a payload dispatched")
    return 0


def json_build(daemon: Daemon, registry: Registry, folder: Path) -> None:
    say("1. The builder API: a Dockerfile in JSON")
    request = folder / "build.json"
    request.write_text(json.dumps({"image_name": f"{registry.host}/demo/json:1.0", "dockerfile": DOCKERFILE}, indent=2))
    answer = shell(f"curl -sS -X POST {daemon.url}/api/v1/build --data @{request}")
    follow(daemon, json.loads(answer)["JobIdentifier"])


def multipart_build(daemon: Daemon, registry: Registry, folder: Path) -> None:
    say("2. The builder API: a context as a multipart tar")
    context = folder / "context.tar.gz"
    (folder / "Dockerfile").write_text(f"FROM {BUSYBOX}\nCOPY greeting /greeting\nRUN cat /greeting\n")
    (folder / "greeting").write_text("hello from the context\n")
    with tarfile.open(context, "w:gz") as tar:
        tar.add(folder / "Dockerfile", "Dockerfile")
        tar.add(folder / "greeting", "greeting")
    fields = json.dumps({"image_name": f"{registry.host}/demo/multipart"})
    answer = shell(f"curl -sS {daemon.url}/api/v1/build -F TarFile=@{context} -F {shlex.quote('Json=' + fields)}")
    follow(daemon, json.loads(answer)["JobIdentifier"])


def follow(daemon: Daemon, job: str) -> None:
    """Show the log as it grows; it ends with the job."""
    shell(f"curl -sSN '{daemon.url}/api/v2/jobs/{job}/log?follow=1'")
    status = json.loads(shell(f"curl -sS {daemon.url}/api/v1/{job}/status"))
    expect(status == {"Status": "Finished"}, f"the job ended as {status}")


def prove_push(registry: Registry, repository: str) -> None:
    say(f"3. skopeo sees {repository} in the registry")
    tag = registry.tags(repository)[0]
    image = f"docker://{registry.host}/{repository}:{tag}"
    seen = shell(f"skopeo inspect --tls-verify=false --format '{{{{.Digest}}}}' {image}")
    expect(seen.strip() == registry.digest(repository, tag), "skopeo and the registry disagree")


def prove_purge(engine: PrivateEngine) -> None:
    say("4. The engine has only the base image left")
    left = shell(f"docker -H {engine.host} images --format '{{{{.Repository}}}}:{{{{.Tag}}}}'").split()
    expect(left == [BUSYBOX], f"the engine still has {left}")


def distribute(daemon: Daemon, registry: Registry, mirrors: Sequence[Registry], folder: Path) -> None:
    say("5. The distribute API: the image that was built, to two more registries, read once")
    request = folder / "distribute.json"
    source = {"endpoint": registry.url, "image": "demo/json", "ref": "1.0"}
    targets = [{"endpoint": mirror.url} for mirror in mirrors]
    request.write_text(json.dumps({"source": source, "targets": targets}, indent=2))
    shell(f"cat {request}")
    job = json.loads(shell(f"curl -sS -X POST {daemon.url}/api/distribute/image --data @{request}"))["id"]
    shell(f"curl -sSN '{daemon.url}/api/v2/jobs/{job}/log?follow=1'")
    status = json.loads(shell(f"curl -sS {daemon.url}/api/distribute/image/{job}"))
    expect(status["value"] == "FINISHED", f"the distribution ended as {status}")
    show_targets(daemon, job)
    for mirror in mirrors:
        digest = mirror.digest("demo/json", "1.0")
        print(f"{mirror.host}/demo/json:1.0 is {digest}")
        expect(digest == registry.digest("demo/json", "1.0"), f"{mirror.host} has another image")


def show_targets(daemon: Daemon, job: str) -> None:
    """What went where, straight from the database."""
    query = f"SELECT source, endpoint, tags, sent_bytes, seconds, error FROM copy_history WHERE uuid = '{job}'"
    shell(f"sqlite3 -readonly -header -column {daemon.database_file} {shlex.quote(query)}")


def run_dockerfile(daemon: Daemon, folder: Path) -> None:
    say("6. The run API: a Dockerfile is built, run without network or rights, and its perf is read")
    (folder / "perf.Dockerfile").write_text(PERF_DOCKERFILE)
    answer = shell(f"curl -sS {daemon.url}/run -F file=@{folder}/perf.Dockerfile")
    job = answer.split()[-1]
    shell(f"curl -sSN '{daemon.url}/api/v2/jobs/{job}/log?follow=1'")
    status = shell(f"curl -sS '{daemon.url}/status?id={job}'; echo")
    expect(status.strip() == f"Job {job} was Successful - Model performance : 0.991089", "another perf was expected")
    query = "SELECT job_id, perf, metrics FROM run_result"
    shell(f"sqlite3 -readonly -header -column {daemon.database_file} {shlex.quote(query)}")


def dispatch(daemon: Daemon, engine: PrivateEngine, folder: Path) -> None:
    say("7. The dispatcher API: a tenant's payload, with a token; what is made of it is served")
    payload, request = folder / "payload", folder / "payload.json"
    payload.write_text(DISPATCHED_DOCKERFILE)
    mint = f"{sys.executable} -m imagejobd token --tenant 1 --client 7 --config {daemon.config_file} > {folder}/token"
    shell(mint)
    curl = f'curl -sS -H "Authorization: Bearer $(cat {folder}/token)"'
    shell(
        f"""printf '{{"encoding": "base64", "MD5": "%s", "content": "%s"}}' """
        f'"$(md5sum < {payload} | cut -c-32)" "$(base64 -w0 {payload})" > {request}'
    )
    job = json.loads(shell(f"{curl} {daemon.url}/api/v1/job --data @{request}"))["id"]
    shell(f"{curl} -N '{daemon.url}/api/v2/jobs/{job}/log?follow=1'")
    shown = json.loads(shell(f"{curl} {daemon.url}/api/v1/job/{job}"))
    expect(shown["status"] == "SUCCESS", f"the job ended as {shown}")
    shell(f"{curl} -o {folder}/image.tar {daemon.url}{shown['payload_location']} && ls -l {folder}/image.tar")
    loaded = shell(f"docker -H {engine.host} load -q -i {folder}/image.tar").split()[-1]
    greeting = shell(f"docker -H {engine.host} run --rm --network none {loaded}")
    expect(greeting == "made for a tenant\n", "the image says something else")


def show_history(daemon: Daemon) -> None:
    say("8. The history, in SQLite")
    for query in (
        "SELECT id, state, image, seconds_waited, seconds_working FROM job_history",
        "SELECT job_id, phase, seconds FROM phase_history",
    ):
        shell(f"sqlite3 -readonly -header -column {daemon.database_file} {shlex.quote(query)}")


def shell(command: str) -> str:
    """Print and run a command; its output is shown as it comes, and returned."""
    print(f"\n$ {command}", flush=True)
    output = []
    with subprocess.Popen(command, shell=True, stdout=subprocess.PIPE, text=True) as running:
        for line in running.stdout or ():
            print(line, end="", flush=True)
            output.append(line)
    expect(running.returncode == 0, f"exit code {running.returncode}")
    return "".join(output)


def say(text: str) -> None:
    print(f"\n\033[1m== {text}\033[0m", flush=True)


def expect(is_so: bool, otherwise: str) -> None:
    if not is_so:
        sys.exit(f"demo failed: {otherwise}")


if __name__ == "__main__":
    sys.exit(main())
