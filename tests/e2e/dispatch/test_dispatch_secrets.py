"""Tokens, and the secret that signs them, are found nowhere that anybody can read."""

import base64

from harness.bodies import dockerfile
from harness.client import Client
from harness.dispatch_box import DispatchBox, Tenant
from harness.engine import PrivateEngine
from harness.leaks import check_no_leak, native_paths
from harness.logins import JWT_SECRET, mint


def needles(tokens: list[str]) -> set[bytes]:
    """The secret, whole tokens and their signatures, and the encodings that they might travel in."""
    found = {JWT_SECRET.encode(), base64.b64encode(JWT_SECRET.encode()).rstrip(b"=")}
    for token in tokens:
        found |= {token.encode(), token.rpartition(".")[2].encode()}
    return found


def paths(tenant: Tenant, job: str) -> list[str]:
    """Wherever a job is shown, by its number and by its UUID."""
    uuid = tenant.job(job)["id"]
    dispatcher = [f"/api/v1/job/{job}", f"/api/v1/job/{job}/status"]
    return [*native_paths(job), *dispatcher, f"/api/v1/{uuid}/status", f"/status?id={uuid}"]


def test_tokens_stay_secret(engine: PrivateEngine) -> None:
    """No job, event, log or file shows a token, good or bad, nor the secret, while it runs and after a crash."""
    with DispatchBox(engine) as box:
        tenant = box.tenant(1, email="somebody@example.com")
        forged = mint(1)[:-4] + "AAAA"
        expired = mint(1, exp=1_000_000_000)
        refused = [Client(box.daemon, token=token).call("GET", "/api/v1/job/1") for token in (forged, expired, "a.b.c")]
        assert [answer.status for answer in refused] == [401] * 3
        jobs = [
            tenant.dispatch(dockerfile("RUN echo started && sleep 1")),
            tenant.dispatch(dockerfile("RUNN")),
            tenant.dispatch(b"kept"),
        ]
        tokens = [tenant.token, forged, expired]
        for answer in refused:
            assert not any(needle in answer.body for needle in needles(tokens))
        tenant.prints(jobs[0], "started")
        for crashes in (False, True):
            if crashes:
                box.restart()
                assert [tenant.outcome(job) for job in jobs] == ["SUCCESS", "FAILED", "SUCCESS"]
            check_no_leak(tenant, [path for job in jobs for path in paths(tenant, job)], needles(tokens))
        assert tenant.job(jobs[2])["submitter"]["email"] == "somebody@example.com"
        box.check_healthy()
