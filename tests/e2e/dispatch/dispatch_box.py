"""A box that takes payloads: the daemon with a secret for tokens, its tenants, and what must hold after a job."""

import base64
import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.base_image import BUSYBOX
from harness.client import Answer, Client, Fields
from harness.daemon import Daemon
from harness.engine import PrivateEngine
from harness.health import check_healthy
from harness.holdings import holdings_of
from harness.services import program
from harness.tokens import JWT_SECRET, mint
from harness.waiting import until

# Retries that a test waits for.
QUICK_RETRIES = {"retry_first_s": 0.3, "retry_max_s": 1.0}
COMMAND_TIMEOUT_S = 60.0
END_TIMEOUT_S = 60.0
ADMIN = "the-admin"


class Tenant(Client):
    """One tenant as a client of the dispatcher API."""

    def __init__(self, daemon: Daemon, number: int, **claims: object) -> None:
        super().__init__(daemon, token=mint(number, **claims))

    def send(self, payload: bytes, *, md5: str | None = None, **headers: str) -> Answer:
        """The dispatcher's request, with the right MD5 unless another one is given."""
        return self.call("POST", "/api/v1/job", envelope(payload, md5=md5), headers=headers)

    def dispatch(self, payload: bytes) -> str:
        """Submit; the job's id."""
        answer = self.send(payload)
        assert answer.status == 201, answer.text
        assert list(answer.json) == ["id"]
        job: str = answer.json["id"]
        return job

    def shown(self, job: str) -> Fields:
        """What the dispatcher says of a job."""
        answer = self.call("GET", f"/api/v1/job/{job}")
        assert answer.status == 200, answer.text
        fields: Fields = answer.json
        return fields

    def status(self, job: str) -> str:
        answer = self.call("GET", f"/api/v1/job/{job}/status")
        assert answer.status == 200, answer.text
        status: str = answer.json["status"]
        return status

    def outcome(self, job: str) -> str:
        """The status that a job ends with."""
        until(lambda: self.status(job) != "RUNNING", timeout_s=END_TIMEOUT_S, what=f"job {job} to end")
        return self.status(job)

    def done(self, job: str) -> Fields:
        """The result of a job that succeeds."""
        assert self.outcome(job) == "SUCCESS", f"{self.job(job)['error']}\n{self.log(job)}"
        result: Fields = self.job(job)["result"]
        return result

    def refused(self, job: str) -> Fields:
        """The error of a job that fails."""
        assert self.outcome(job) == "FAILED", self.job(job)["result"]
        error: Fields = self.job(job)["error"]
        return error

    def image(self, job: str) -> bytes:
        """What is served as the job's payload_location; its ETag has the digest."""
        answer = self.call("GET", self.shown(job)["payload_location"])
        assert answer.status == 200, answer.text
        assert int(answer.headers["content-length"]) == len(answer.body)
        assert hashlib.sha256(answer.body).hexdigest() in answer.headers["etag"]
        return answer.body


class DispatchBox:
    """The daemon, its engine and its tenants."""

    def __init__(
        self,
        engine: PrivateEngine,
        *,
        builder: str = "buildkit",
        engine_host: str | None = None,
        engine_settings: Mapping[str, Any] | None = None,
        **tables: Mapping[str, Any],
    ) -> None:
        limits = QUICK_RETRIES | dict(tables.pop("limits", {}))
        self.engine = engine
        self.builder = builder
        config = {"engine": {"builder": builder, **(engine_settings or {})}, "limits": limits, **tables}
        self.daemon = Daemon(config, engine_host=engine_host or engine.host)
        secret_file = self.daemon.folder / "jwt.secret"
        secret_file.write_text(JWT_SECRET)
        secret_file.chmod(0o600)
        with self.daemon.config_file.open("a") as config:
            config.write(f'\n["auth"]\njwt_secret_file = "{secret_file}"\nadmin_subjects = ["{ADMIN}"]\n')

    def tenant(self, number: int = 1, **claims: object) -> Tenant:
        return Tenant(self.daemon, number, **claims)

    def restart(self) -> None:
        """Up again after a crash, without any crash armed."""
        self.daemon.kill()
        self.daemon.start()

    def spooled(self) -> list[Path]:
        return list((self.daemon.state_dir / "spool").iterdir())

    def blobs(self) -> set[str]:
        """Digests of what the content store holds."""
        return {path.name for path in (self.daemon.state_dir / "blobs").rglob("*") if path.is_file()}

    def check_healthy(self) -> None:
        """See `harness.health`."""
        check_healthy(self.daemon)

    def check_clean(self, uuid: str) -> None:
        """Nothing of this job is in the engine."""
        assert holdings_of(self.engine, uuid) == []


@contextmanager
def dispatch_box(engine: PrivateEngine, *, failpoints: str = "", **settings: Any) -> Iterator[DispatchBox]:
    """A running box, removed afterwards. With `failpoints` it may crash before it is ready."""
    made = DispatchBox(engine, **settings)
    try:
        if failpoints:
            made.daemon.spawn(failpoints=failpoints)
        else:
            made.daemon.start()
        yield made
    finally:
        made.daemon.remove()


def envelope(payload: bytes, *, md5: str | None = None) -> Fields:
    """The dispatcher's JSON around a payload."""
    content = base64.b64encode(payload).decode()
    return {"encoding": "base64", "MD5": md5 or hashlib.md5(payload).hexdigest(), "content": content}


def dockerfile(*lines: str) -> bytes:
    return "\n".join([f"FROM {BUSYBOX}", *lines, ""]).encode()


def tar(files: Mapping[str, bytes]) -> bytes:
    """A plain tar of regular files."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as writer:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            writer.addfile(member, io.BytesIO(content))
    return archive.getvalue()


def context(greeting: str) -> bytes:
    """A build context whose image prints `greeting`."""
    text = dockerfile("COPY greeting /", 'CMD ["cat", "/greeting"]')
    return tar({"Dockerfile": text, "greeting": greeting.encode()})


def saved(engine: PrivateEngine, folder: Path, image: str = BUSYBOX) -> bytes:
    """An image as `docker save` writes it."""
    file = folder / "saved.tar"
    engine.docker("save", "--output", str(file), image)
    return file.read_bytes()


def oci_layout(archive: bytes, folder: Path) -> bytes:
    """A `docker save` archive as skopeo turns it into an OCI layout archive."""
    source, target = folder / "docker.tar", folder / "oci.tar"
    source.write_bytes(archive)
    _skopeo("copy", f"docker-archive:{source}", f"oci-archive:{target}:test")
    return target.read_bytes()


def inspected(archive: bytes, folder: Path) -> Fields:
    """What skopeo says of a `docker save` archive."""
    file = folder / "inspected.tar"
    file.write_bytes(archive)
    fields: Fields = json.loads(_skopeo("inspect", f"docker-archive:{file}"))
    return fields


def printed(engine: PrivateEngine, archive: bytes) -> str:
    """What a container of the image in an archive prints: loaded, run, and removed again."""
    said = engine.docker("load", "--quiet", input=archive)
    name = said.splitlines()[-1].partition(": ")[2]
    try:
        return engine.docker("run", "--rm", "--network=none", name)
    finally:
        engine.docker("rmi", name)


def _skopeo(*arguments: str) -> bytes:
    command = [str(program("skopeo")), "--insecure-policy", *arguments]
    return subprocess.run(command, capture_output=True, check=True, timeout=COMMAND_TIMEOUT_S).stdout
