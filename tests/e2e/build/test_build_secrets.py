"""Passwords and tokens are found nowhere that anybody can read, while a job lives and after it."""

import base64
import json
from itertools import product

from harness.bodies import dockerfile
from harness.build_box import BuildBox
from harness.engine import PrivateEngine
from harness.file_server import FileServer
from harness.leaks import check_no_leak, native_paths
from harness.logins import LOGIN
from harness.registry import PASSWORD, USERNAME, Registry

TOKEN = "t0ken-in-a-query"
URL_PASSWORD = "passw0rd-in-a-url"
WRONG_PASSWORD = "wr0ng-password"
SECRETS = (PASSWORD, TOKEN, URL_PASSWORD, WRONG_PASSWORD)


def needles() -> set[bytes]:
    """Each secret as it is, and in the encodings that credentials travel in."""
    found = {secret.encode() for secret in SECRETS}
    for user, secret in product((USERNAME, "user"), SECRETS):
        found |= {base64.b64encode(text.encode()).rstrip(b"=") for text in (secret, f"{user}:{secret}")}
        found |= {base64.urlsafe_b64encode(json.dumps({"password": secret}).encode()).rstrip(b"=")}
    return found


def check(b: BuildBox, jobs: list[str]) -> None:
    """Both APIs show nothing, and neither does any file."""
    builders = [f"/api/v1/{job}/{part}" for job in jobs for part in ("status", "logs")]
    check_no_leak(b, [*builders, *(path for job in jobs for path in native_paths(job))], needles())


def test_secrets_stay_secret(engine: PrivateEngine, private_registry: Registry) -> None:
    """No job that runs, succeeded, failed, or was cut by a crash shows what it was trusted with."""
    host = private_registry.host
    with FileServer() as web, BuildBox(engine, limits={"retry_for_s": 5.0}) as b:
        web.redirects["/moved"] = f"/gone?token={TOKEN}"
        user = f"user:{URL_PASSWORD}@"
        slow = dockerfile(f"RUN echo {PASSWORD[:4]} && sleep 2")
        jobs = [
            b.build(f"{host}/secrets/good", slow, **LOGIN),
            b.build(f"{host}/secrets/wrong", dockerfile("RUN true"), username="user", password=WRONG_PASSWORD),
            b.build(f"{host}/secrets/gone", "", tarUrl=f"http://{user}{web.host}/gone?token={TOKEN}"),
            b.build(f"{host}/secrets/moved", "", tarUrl=f"http://{user}{web.host}/moved"),
            b.build(f"{host}/secrets/egress", "", tarUrl=f"http://{user}169.254.169.254/c.tar?token={TOKEN}"),
            b.build(f"{host}/secrets/down", "", tarUrl=f"http://{user}127.0.0.1:9/c.tar?token={TOKEN}"),
        ]
        b.prints(jobs[0], "sleep 2")
        check(b, jobs)
        b.restart()
        check(b, jobs)
        ended = [b.ended(job)["state"] for job in jobs]
        assert ended == ["succeeded", *["failed"] * 5]
        check(b, jobs)
        b.check_clean()
    assert web.count("/gone") == 2
    assert URL_PASSWORD.encode() in base64.b64decode(web.requests[0].headers["Authorization"].partition(" ")[2])


def test_a_retry_is_trusted_with_the_right_password(engine: PrivateEngine, private_registry: Registry) -> None:
    """A push that was denied is tried again with what the request gives anew, which is found as little as the first."""
    with BuildBox(engine) as b:
        image = f"{private_registry.host}/secrets/again:1"
        wrong = {"username": LOGIN["username"], "password": WRONG_PASSWORD}
        denied = b.submit_build(image, dockerfile("RUN true"), **wrong)
        b.failed(denied, "denied")
        assert b.call("POST", f"/api/v2/jobs/{denied}/retry").status == 409
        answer = b.call("POST", f"/api/v2/jobs/{denied}/retry", {"secrets": {"password": LOGIN["password"]}})
        assert answer.status == 201, answer.text
        job = b.succeeded(answer.json["id"])
        assert job["retry_of"] == denied
        check(b, [denied, job["id"]])
        b.check_clean()
