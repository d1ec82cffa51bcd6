"""What a request brings to log in with is found nowhere that anybody can read, while the job lives and after it."""

import base64
import json
from collections.abc import Iterator
from itertools import product
from urllib.parse import quote, urlencode

import pytest
from station import Fields, Station, source, station, target

from harness.images import put_image
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


def readable(box: Station, jobs: list[str]) -> dict[str, bytes]:
    """All that the daemon writes or answers: files, its log, both APIs."""
    texts = {str(path): path.read_bytes() for path in box.daemon.state_dir.rglob("*") if path.is_file()}
    texts["daemon.log"] = box.daemon.log_text().encode()
    paths = ["/api/v2/jobs", "/readyz"]
    for job in jobs:
        paths += [f"/api/v2/jobs/{job}{part}" for part in ("", "/log", "/events")]
        paths.append(f"/api/distribute/image/{job}")
    for path in paths:
        body = box.call("GET", path).body
        texts[path] = body.encode() if isinstance(body, str) else json.dumps(body, ensure_ascii=False).encode()
    return texts


def check(box: Station, jobs: list[str]) -> None:
    for (place, text), needle in product(readable(box, jobs).items(), needles()):
        assert needle not in text, f"{needle!r} is readable in {place}"


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
        station(limits=FEW_TRIES) as box,
    ):
        put_image(origin, path, "1", layers=[200_000])
        put_image(guarded, path, "1")
        proxy.add("PUT|PATCH", ".*/blobs/.*", StallRequest(1_000), times=None)
        down = {"endpoint": "http://127.0.0.1:9", "auth": wrong}
        jobs = [
            box.submit(source(origin, path), [target(proxy, auth=target(private_registry)["auth"])]),
            box.submit(source(guarded, path, auth=auth(tokens.realm, path, json=login)), [target(mirror)]),
            box.submit(source(origin, path), [target(private_registry, auth=wrong)]),
            box.submit(source(origin, path), [down]),
            box.submit(source(origin, path), [target(mirror, auth=auth("http://127.0.0.1:9/token", path))]),
        ]
        until(lambda: proxy.received_bytes() > 0, timeout_s=15, what="an upload under way")
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


def test_a_registry_that_echoes_secrets(box: Station, origin: Registry, target_proxy: FaultProxy, path: str) -> None:
    """A peer's error text that repeats a login is not repeated in turn."""
    put_image(origin, path, "1")
    basic = base64.b64encode(f"{USERNAME}:{PASSWORD}".encode()).decode()
    words = json.dumps({"errors": [{"code": "DENIED", "message": f"no: Basic {basic} {PASSWORD}"}]}).encode()
    target_proxy.add("POST", ".*", Answer(403, {"Content-Type": "application/json"}, words), times=None)
    login = {"basicauth": {"user": USERNAME, "password": PASSWORD}}
    uuid = box.submit(source(origin, path), [target(target_proxy, auth=login)])
    box.failed(uuid)
    check(box, [uuid])


def test_refused_requests_do_not_repeat_secrets(box: Station, origin: Registry, path: str) -> None:
    """A request that is refused for its form is not quoted in the answer or the log."""
    for field in ({"basicauth": {"user": "a:b", "password": PASSWORD}}, {"url": f"ftp://u:{PASSWORD}@h/"}, [PASSWORD]):
        for name in ("endpoint", "auth"):
            wanted = source(origin, path) | {name: field}
            for answer in (
                box.distribute(wanted, [target(origin)]),
                box.call("POST", "/api/v2/jobs", {"kind": "distribute", "spec": {"source": wanted, "targets": []}}),
            ):
                assert answer.status == 400
                assert PASSWORD not in json.dumps(answer.body)
    assert PASSWORD not in box.daemon.log_text()
