"""Registries of every configuration can be read from and written to."""

import base64
import json
from collections.abc import Iterator
from contextlib import ExitStack
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import pytest

from harness.distribute_box import MIB, DistributeBox, check_copied, results, source, target
from harness.file_server import BlobStore
from harness.images import put_image
from harness.logins import BASIC, PASSWORD, USERNAME
from harness.proxy import FaultProxy, ThrottleRequest
from harness.registry import Registry
from harness.token_server import SERVICE, TokenServer


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def make(stack: ExitStack, kind: str) -> Registry:
    """A registry of this kind."""
    match kind:
        case "htpasswd":
            made = Registry(htpasswd=True)
        case "token":
            made = Registry(tokens=stack.enter_context(TokenServer()))
        case "token-quickly-expired":  # what it says is nothing like what holds; whole seconds count, so 1 to 2 s
            made = Registry(tokens=stack.enter_context(TokenServer(expires_s=2, told_expires_s=0)))
        case "tls":
            made = Registry(use_tls=True)
        case "relative":
            made = Registry(relative_urls=True)
        case "redirect":
            made = Registry(storage=stack.enter_context(BlobStore()))
        case "undeletable":
            made = Registry(deletes=False)
        case _:
            raise ValueError(kind)
    return stack.enter_context(made)


@pytest.mark.parametrize("kind", ["htpasswd", "token", "tls", "relative", "redirect"])
def test_source(box: DistributeBox, stack: ExitStack, mirror: Registry, path: str, kind: str) -> None:
    """An image is read from such a source whole."""
    origin = make(stack, kind)
    image = put_image(origin, path, "1", layers=[300_000, 20])
    box.copy(source(origin, path), [target(mirror)])
    check_copied(image, origin, path, mirror)


@pytest.mark.parametrize(
    "kind", ["htpasswd", "token", "token-quickly-expired", "tls", "relative", "redirect", "undeletable"]
)
def test_target(box: DistributeBox, stack: ExitStack, origin: Registry, path: str, kind: str) -> None:
    """An image is written to such a target whole, and a second time nothing is sent."""
    registry = make(stack, kind)
    image = put_image(origin, path, "1", layers=[300_000, 20])
    box.copy(source(origin, path), [target(registry)])
    check_copied(image, origin, path, registry)
    again = results(box.copy(source(origin, path), [target(registry)]))[registry.url]
    assert (again["digest"], again["sent_bytes"]) == (image.digest, 0)


def test_pull_through_source(box: DistributeBox, origin: Registry, mirror: Registry, path: str) -> None:
    """A pull-through cache that has never seen the image gives it away whole."""
    image = put_image(origin, path, "1", layers=[300_000, 20])
    with Registry(proxy_of=origin.url) as cache:
        box.copy(source(cache, path), [target(mirror)])
    check_copied(image, origin, path, mirror)


def test_redirected_reads_carry_no_login(stack: ExitStack, box: DistributeBox, mirror: Registry, path: str) -> None:
    """The object storage behind a private registry gets the requests for blobs, and never the password."""
    storage = stack.enter_context(BlobStore())
    origin = stack.enter_context(Registry(htpasswd=True, storage=storage))
    image = put_image(origin, path, "1", layers=[40_000])
    storage.requests.clear()
    box.copy(source(origin, path), [target(mirror)])
    assert {request.method for request in storage.requests} >= {"GET"}
    assert [request for request in storage.requests if "Authorization" in request.headers] == []
    check_copied(image, origin, path, mirror)


def test_tokens_that_expire_in_a_long_copy(stack: ExitStack, box: DistributeBox, origin: Registry, path: str) -> None:
    """A copy that outlasts its tokens several times fetches new ones and finishes, each upload sent once."""
    tokens = stack.enter_context(TokenServer(expires_s=2, told_expires_s=0))
    registry = stack.enter_context(Registry(tokens=tokens))
    proxy = stack.enter_context(FaultProxy(registry.host))
    proxy.add("PUT", ".*/blobs/.*", ThrottleRequest(0.4 * MIB), times=None)
    image = put_image(origin, path, "1", layers=[MIB // 8] * 16, seed=path)
    job = box.copy(source(origin, path), [target(proxy, auth=BASIC)])
    check_copied(image, origin, path, registry)
    assert tokens.granted >= 3
    assert job["attempt"] == 1
    # An upload whose token ends before it was told to is refused after its bytes were sent, and is sent once more.
    assert proxy.received_bytes("PUT", ".*/blobs/.*") < 3 * image.blobs_bytes


@pytest.mark.parametrize("told_expires_s", [None, 0])
@pytest.mark.parametrize("token_key", ["token", "access_token"])
def test_answers_of_token_servers(
    box: DistributeBox, mirror: Registry, path: str, token_key: str, told_expires_s: int | None
) -> None:
    """Tokens are taken under both names, with or without their expiry, and one serves for a whole small copy."""
    with (
        TokenServer(token_key=token_key, told_expires_s=told_expires_s) as tokens,
        Registry(tokens=tokens) as origin,
    ):
        put_image(origin, path, "1", layers=[10] * 8)
        before = tokens.granted
        box.copy(source(origin, path), [target(mirror)])
        assert tokens.granted - before <= 2  # one before the job is accepted, one while it runs


def test_the_documents_token_request(box: DistributeBox, mirror: Registry, path: str) -> None:
    """A token is fetched from `auth.url` with its headers or JSON, and sent with its type."""
    with TokenServer() as tokens, Registry(tokens=tokens) as origin:
        image = put_image(origin, path, "1")
        query = urlencode({"service": SERVICE, "scope": f"repository:{path}:pull"})
        login = {"username": USERNAME, "password": PASSWORD}
        for number, more in enumerate(
            ({"json": login}, {"json": str(login).replace("'", '"'), "header": {"X-A": "b"}})
        ):
            auth = {"url": f"{tokens.realm}?{query}", "token_type": "Bearer", **more}
            box.copy(source(origin, path, auth=auth), [target(mirror, ref=f"{number}")])
            assert mirror.digest(path, f"{number}") == image.digest
        assert tokens.granted == len(tokens.requests) > 0


def test_a_ready_token(box: DistributeBox, mirror: Registry, path: str) -> None:
    """A token that the request brings opens the registry, and stands nowhere in what the daemon writes."""
    with TokenServer() as tokens, Registry(tokens=tokens) as origin:
        image = put_image(origin, path, "1")
        query = urlencode({"service": SERVICE, "scope": f"repository:{path}:pull"})
        login = base64.b64encode(f"{USERNAME}:{PASSWORD}".encode()).decode()
        asked = Request(f"{tokens.realm}?{query}", headers={"Authorization": f"Basic {login}"})
        with urlopen(asked) as answer:
            token = json.load(answer)["token"]
        asked_before = len(tokens.requests)
        job = box.copy(source(origin, path, auth={"token": token}), [target(mirror)])
        assert len(tokens.requests) == asked_before
    assert mirror.digest(path, "1") == image.digest
    assert token not in json.dumps(job) + box.log(job["id"])


def test_revoked_login_fails_its_target_only(box: DistributeBox, origin: Registry, mirror: Registry, path: str) -> None:
    """A target whose token server refuses the login is told of by name; the other one is served."""
    image = put_image(origin, path, "1")
    with TokenServer() as tokens, Registry(tokens=tokens) as registry:
        tokens.revoke()
        answer = box.post(source(origin, path), [target(registry), target(mirror)])
        assert answer.status == 201
        job = box.failed(answer.json["id"])
        status = box.status(job["id"])
    assert status["finished_endpoints"] == [mirror.url]
    [failed] = status["failed_endpoints"]
    assert failed["endpoint"] == registry.url
    assert mirror.digest(path, "1") == image.digest


def test_read_only_target_fails_alone(box: DistributeBox, origin: Registry, mirror: Registry, path: str) -> None:
    """A target that takes nothing is told of with the reason, and the others are done."""
    image = put_image(origin, path, "1")
    with Registry(read_only=True) as registry:
        answer = box.post(source(origin, path), [target(registry), target(mirror)])
        job = box.failed(answer.json["id"])
        status = box.status(job["id"])
    assert status["value"] == "FAILED"
    assert status["finished_endpoints"] == [mirror.url]
    [failed] = status["failed_endpoints"]
    assert failed["endpoint"] == registry.url
    assert "405" in failed["error"] or "read-only" in failed["error"] or "unsupported" in failed["error"].lower()
    assert job["attempt"] == 1
    check_copied(image, origin, path, mirror)


def test_own_authority_is_verified(origin: Registry, path: str) -> None:
    """With `verify_tls` a certificate of an own authority is refused without `ca_file` and trusted with it."""
    image = put_image(origin, path, "1")
    with Registry(use_tls=True) as registry:
        wanted = target(registry, verify_tls=True)
        with DistributeBox(limits={"retry_for_s": 0.0}) as box:
            job = box.failed(box.distribute(source(origin, path), [wanted]))
            assert "certificate" in str(job["error"]) + str(job["result"])
        with DistributeBox(registry={registry.host: {"ca_file": str(registry.ca_file)}}) as box:
            box.copy(source(origin, path), [wanted])
        assert registry.digest(path, "1") == image.digest
