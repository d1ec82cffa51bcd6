"""What a request brings to log in with is found nowhere that anybody can read, while the job lives and after it."""

import base64
import json
from collections.abc import Iterator
from itertools import product
from urllib.parse import quote, urlencode

import pytest

from harness.client import Fields
from harness.distribute_box import DistributeBox, source, target
from harness.images import put_image
from harness.leaks import check_no_leak, native_paths
from harness.logins import PASSWORD, USERNAME
from harness.proxy import Answer, FaultProxy, StallRequest
from harness.registry import Registry
from harness.token_server import SERVICE, TokenServer
from harness.waiting import until

QUERY_SECRET = "s3cret+in/the query"
HEADER_SECRET = "s3cret-in-a-header"
JSON_SECRET = "s3cret-in-a-document"
WRONG_PASSWORD = "wr0ng-password"
FEW_TRIES = {"retry_for_s": 0.6}
SECRETS = (PASSWORD, QUERY_SECRET, HEADER_SECRET, JSON_SECRET, WRONG_PASSWORD)


def needles() -> set[bytes]:
    """Each secret as it is, and in the encodings that credentials travel in."""
    found = {text.encode() for secret in SECRETS for text in (secret, quote(secret, safe=""), quote(secret))}
    for user, secret in product(("", f"{USERNAME}:"), SECRETS):
        found.add(base64.b64encode(f"{user}{secret}".encode()).rstrip(b"="))
    return found


def check(box: DistributeBox, jobs: list[str]) -> None:
    """Both APIs show nothing, and neither does any file."""
    paths = [path for job in jobs for path in (*native_paths(job), f"/api/distribute/image/{job}")]
    check_no_leak(box, paths, needles())


@pytest.fixture
def tokens() -> Iterator[TokenServer]:
    with TokenServer() as made:
        yield made


def auth(url: str, path: str, **more: object) -> Fields:
    scope = {"service": SERVICE, "scope": f"repository:{path}:pull", "key": QUERY_SECRET}
    return {"url": f"{url}?{urlencode(scope)}", "header": {"X-Key": HEADER_SECRET}, **more}


def test_secrets_stay_secret(
    origin: Registry, mirror: Registry, private_registry: Registry, tokens: TokenServer, path: str
) -> None:
    """No job that runs, waits, succeeded, failed, or was cut by a crash shows what it was trusted with."""
    login = {"username": USERNAME, "password": PASSWORD, "key": JSON_SECRET}
    wrong = {"basicauth": {"user": USERNAME, "password": WRONG_PASSWORD}}
    with (
        Registry(tokens=tokens) as guarded,
        FaultProxy(private_registry.host) as proxy,
        DistributeBox(limits=FEW_TRIES) as box,
    ):
        put_image(origin, path, "1", layers=[200_000])
        put_image(guarded, path, "1")
        proxy.add("PUT|PATCH", ".*/blobs/.*", StallRequest(1_000), times=None)
        down = {"endpoint": "http://127.0.0.1:9", "auth": wrong}
        jobs = [
            box.distribute(source(origin, path), [target(proxy, auth=target(private_registry)["auth"])]),
            box.distribute(source(guarded, path, auth=auth(tokens.realm, path, json=login)), [target(mirror)]),
            box.distribute(source(origin, path), [target(private_registry, auth=wrong)]),
            box.distribute(source(origin, path), [down]),
            box.distribute(source(origin, path), [target(mirror, auth=auth("http://127.0.0.1:9/token", path))]),
        ]
        until(lambda: proxy.received_bytes() > 0, what="an upload under way")
        check(box, jobs)
        box.daemon.kill()
        proxy.release()
        box.daemon.start()
        check(box, jobs)
        ended = [box.ended(job)["state"] for job in jobs]
        assert ended == ["succeeded", "succeeded", "failed", "failed", "failed"]
        check(box, jobs)
        assert box.daemon.sqlite("select count(*) from job_secret") == [(0,)]
    assert tokens.granted >= 1


def test_a_registry_that_echoes_secrets(
    box: DistributeBox, origin: Registry, target_proxy: FaultProxy, path: str
) -> None:
    """A peer's error text that repeats a login is not repeated in turn."""
    put_image(origin, path, "1")
    basic = base64.b64encode(f"{USERNAME}:{PASSWORD}".encode()).decode()
    words = json.dumps({"errors": [{"code": "DENIED", "message": f"no: Basic {basic} {PASSWORD}"}]}).encode()
    target_proxy.add("POST", ".*", Answer(403, {"Content-Type": "application/json"}, words), times=None)
    login = {"basicauth": {"user": USERNAME, "password": PASSWORD}}
    uuid = box.distribute(source(origin, path), [target(target_proxy, auth=login)])
    box.failed(uuid)
    check(box, [uuid])


def test_refused_requests_do_not_repeat_secrets(box: DistributeBox, origin: Registry, path: str) -> None:
    """A request that is refused for its form is not quoted in the answer or the log."""
    for field in ({"basicauth": {"user": "a:b", "password": PASSWORD}}, {"url": f"ftp://u:{PASSWORD}@h/"}, [PASSWORD]):
        for name in ("endpoint", "auth"):
            wanted = source(origin, path) | {name: field}
            for answer in (
                box.post(wanted, [target(origin)]),
                box.call("POST", "/api/v2/jobs", {"kind": "distribute", "spec": {"source": wanted, "targets": []}}),
            ):
                assert answer.status == 400
                assert PASSWORD not in answer.text
    assert PASSWORD not in box.daemon.log_text()
