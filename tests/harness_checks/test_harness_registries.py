"""Each variant of docker-registry under the harness really behaves as its name says."""

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from harness import skopeo
from harness.file_server import BlobStore
from harness.images import put_image, random_bytes
from harness.logins import PASSWORD, USERNAME
from harness.process import free_port
from harness.registry import Registry
from harness.services import require
from harness.token_server import REGISTRY_LEEWAY_S, SERVICE, TokenServer

TESTS = Path(__file__).parents[1]
EPHEMERAL_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")


@pytest.fixture(scope="module", autouse=True)
def programs() -> None:
    require("docker-registry", "skopeo")


@pytest.fixture
def tokens() -> Iterator[TokenServer]:
    with TokenServer() as tokens:
        yield tokens


class Bare(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        return None


def ask(url: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str]]:
    """Status and headers, redirects not followed."""
    request = urllib.request.Request(url, method=method, headers=headers)
    try:
        with urllib.request.build_opener(Bare).open(request) as response:
            return response.status, dict(response.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers)


def test_token_registry_wants_a_token_for_the_repository(tokens: TokenServer) -> None:
    """It challenges without a token, serves with one, and refuses one for another repository or of another issuer."""
    with Registry(tokens=tokens) as registry, TokenServer() as stranger:
        put_image(registry, "a/b", "1")
        url = f"{registry.url}/v2/a/b/tags/list"
        status, headers = ask(url)
        assert status == 401
        assert headers["Www-Authenticate"].startswith(f'Bearer realm="{tokens.realm}",service="{SERVICE}"')
        scopes = ("repository:a/b:pull",)
        assert ask(url, Authorization=f"Bearer {tokens.issue('me', scopes)}")[0] == 200
        assert ask(url, Authorization=f"Bearer {stranger.issue('me', scopes)}")[0] == 401
        assert ask(url, Authorization=f"Bearer {tokens.issue('me', ('repository:a/c:pull',))}")[0] == 401
        assert tokens.requests == []
        assert skopeo.pull(registry, "a/b", "1")
        assert tokens.requests[-1].user == USERNAME
        assert tokens.requests[-1].scopes == scopes


def test_token_expires_at_the_registry_when_told(tokens: TokenServer) -> None:
    """A token is taken while it lives, and refused when that is over, whatever leeway docker-registry has."""
    with Registry(tokens=tokens) as registry:
        put_image(registry, "a/b", "1")
        for expires_s, status in ((REGISTRY_LEEWAY_S / 2, 200), (-1, 401)):
            tokens.expires_s = expires_s
            bearer = f"Bearer {tokens.issue('me', ('repository:a/b:pull',))}"
            assert ask(f"{registry.url}/v2/a/b/tags/list", Authorization=bearer)[0] == status


def test_token_server_knows_its_users(tokens: TokenServer) -> None:
    """It answers right passwords by Basic or JSON, refuses wrong ones and, once revoked, right ones too."""
    document = json.dumps({"username": USERNAME, "password": PASSWORD}).encode()
    request = urllib.request.Request(tokens.realm, data=document, method="GET")
    with urllib.request.urlopen(request) as response:
        assert set(json.load(response)) == {"token", "expires_in", "issued_at"}
    assert ask(tokens.realm)[0] == 401
    assert ask(f"{tokens.realm}?scope=repository:a:pull", Authorization="Basic YTpi")[0] == 401
    tokens.revoke()
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(request)
    assert tokens.granted == 1


@pytest.mark.parametrize("relative", [False, True])
def test_relative_urls(relative: bool) -> None:
    """Upload locations have a host, or none."""
    with Registry(relative_urls=relative) as registry, registry.request("POST", "/v2/a/blobs/uploads/") as response:
        assert (urlsplit(response.headers["Location"]).netloc == "") is relative


def test_redirects_blobs_to_another_host() -> None:
    """A blob is answered by 307 to another address, which serves it with ranges and refuses a second Authorization."""
    with BlobStore() as storage, Registry(storage=storage) as registry:
        image = put_image(registry, "a", "1", layers=[5_000])
        status, headers = ask(f"{registry.url}/v2/a/blobs/{image.layers[0]}")
        assert status == 307
        location = headers["Location"]
        assert urlsplit(location).netloc == storage.host != registry.host
        request = urllib.request.Request(location, headers={"Range": "bytes=4000-"})
        with urllib.request.urlopen(request) as response:
            assert response.status == 206
            assert response.read() == random_bytes(5_000, (0, 0))[4000:]
        assert ask(location, Authorization="Basic YTpi")[0] == 400
        assert skopeo.pull(registry, "a", "1") == set(image.blobs)


def test_pulls_through() -> None:
    """A pull-through cache serves what another registry has, and takes nothing."""
    with Registry() as origin, Registry(proxy_of=origin.url) as cache:
        image = put_image(origin, "a", "1")
        assert cache.digest("a", "1") == image.digest
        assert skopeo.pull(cache, "a", "1") == set(image.blobs)
        with pytest.raises(urllib.error.HTTPError, match="405"):
            cache.request("POST", "/v2/a/blobs/uploads/")


def test_read_only_and_undeletable() -> None:
    """One refuses writes, the other deletions."""
    with Registry(read_only=True) as registry, pytest.raises(urllib.error.HTTPError, match="405"):
        registry.request("POST", "/v2/a/blobs/uploads/")
    with Registry(deletes=False) as registry:
        image = put_image(registry, "a", "1")
        with pytest.raises(urllib.error.HTTPError, match="405"):
            registry.delete_manifest("a", image.digest)


def test_ports_of_other_addresses() -> None:
    """A free port is free at the address that was asked for."""
    assert free_port("127.0.0.2") > 0


def test_ports_are_given_once() -> None:
    """Neither the same process nor another one that tests at the same time is given a port again, used or not."""
    ask = "from harness.process import free_port; print(*(free_port() for _ in range(20)))"
    other = subprocess.run(
        [sys.executable, "-c", ask], capture_output=True, check=True, text=True, env={"PYTHONPATH": str(TESTS)}
    )
    ports = [free_port() for _ in range(20)] + [int(port) for port in other.stdout.split()]
    assert len(set(ports)) == 40
    assert max(ports) < int(EPHEMERAL_PORTS.read_text().split()[0])
