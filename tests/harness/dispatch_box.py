"""A box that takes payloads: the daemon with a secret for tokens, its tenants, and what becomes of an image."""

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

from harness.base_image import BUSYBOX
from harness.bodies import dockerfile, envelope, tar
from harness.box import Box
from harness.client import Answer, Client, Fields
from harness.daemon import Daemon
from harness.engine import PrivateEngine
from harness.logins import JWT_SECRET, mint
from harness.services import program
from harness.waiting import until

COMMAND_TIMEOUT_S = 60.0
ADMIN = "the-admin"


class Tenant(Client):
    """One tenant as a client of the dispatcher API."""

    def __init__(self, daemon: Daemon, number: int, **claims: object) -> None:
        super().__init__(daemon, token=mint(number, **claims))

    def send(self, payload: bytes | str, *, md5: str | None = None, **headers: str) -> Answer:
        """The dispatcher's request, with the right MD5 unless another one is given."""
        return self.call("POST", "/api/v1/job", envelope(payload, md5=md5), headers=headers)

    def dispatch(self, payload: bytes | str) -> str:
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
        until(lambda: self.status(job) != "RUNNING", what=f"job {job} to end")
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


class DispatchBox(Box):
    """The dispatcher's API for tenants; the box itself is a caller without a token."""

    def __init__(self, engine: PrivateEngine, /, **settings: Any) -> None:
        super().__init__(engine, **settings)
        secret_file = self.daemon.folder / "jwt.secret"
        secret_file.write_text(JWT_SECRET)
        secret_file.chmod(0o600)
        with self.daemon.config_file.open("a") as config:
            config.write(f'\n["auth"]\njwt_secret_file = "{secret_file}"\nadmin_subjects = ["{ADMIN}"]\n')

    def tenant(self, number: int = 1, **claims: object) -> Tenant:
        return Tenant(self.daemon, number, **claims)


def context(greeting: str) -> bytes:
    """A build context whose image prints `greeting`."""
    text = dockerfile("COPY greeting /", 'CMD ["cat", "/greeting"]')
    return tar({"Dockerfile": text, "greeting": greeting})


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
