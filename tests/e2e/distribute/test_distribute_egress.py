"""No word of a request or of a registry brings the daemon to an address that the operator denies."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from urllib.parse import urlsplit, urlunsplit

import pytest

from harness.client import Fields
from harness.distribute_box import MIB, DistributeBox, registry_of, source, target
from harness.images import put_image
from harness.proxy import Answer, FaultProxy, RewriteLocation
from harness.registry import Registry

FORBIDDEN = "127.0.0.9"


class Trap:
    """A listener at the forbidden address that counts who connects."""

    def __init__(self) -> None:
        self._socket = socket.create_server((FORBIDDEN, 0))
        self.url = f"http://{FORBIDDEN}:{self._socket.getsockname()[1]}"
        self.connections = 0
        threading.Thread(target=self._listen, daemon=True).start()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _listen(self) -> None:
        try:
            while True:
                connection, _ = self._socket.accept()
                self.connections += 1
                connection.close()
        except OSError:
            return


@pytest.fixture(scope="module")
def fenced() -> Iterator[DistributeBox]:
    with DistributeBox(egress={"deny": [f"{FORBIDDEN}/32"]}, limits={"retry_for_s": 0.6}) as made:
        yield made


@pytest.fixture
def trap() -> Iterator[Trap]:
    with closing(Trap()) as trap:
        yield trap


def elsewhere(location: str, trap: Trap) -> str:
    """The same path at the trap."""
    return urlunsplit(urlsplit(location)._replace(scheme="http", netloc=urlsplit(trap.url).netloc))


def check_refused(fenced: DistributeBox, trap: Trap, wanted: Fields, to: Fields) -> str:
    """Such a job is refused or fails, nobody falls into the trap; all that was said about it."""
    answer = fenced.call("POST", "/api/v2/jobs", {"kind": "distribute", "spec": {"source": wanted, "targets": [to]}})
    said = answer.text
    if answer.status == 201:
        said = json.dumps(fenced.failed(answer.json["id"])) + fenced.log(answer.json["id"])
    assert trap.connections == 0
    return said


@pytest.mark.parametrize("name", ["source", "target"])
def test_by_endpoint(fenced: DistributeBox, trap: Trap, origin: Registry, path: str, name: str) -> None:
    """A denied address is not connected to as source or target, and the error says that it is denied."""
    put_image(origin, path, "1")
    denied = {"endpoint": trap.url}
    if name == "source":
        said = check_refused(fenced, trap, denied | {"image": path, "ref": "1"}, target(origin))
    else:
        said = check_refused(fenced, trap, source(origin, path), denied)
    assert "not allowed" in said


def test_by_token_url(fenced: DistributeBox, trap: Trap, origin: Registry, mirror: Registry, path: str) -> None:
    """Nor for a token that the request wants to be fetched there."""
    put_image(origin, path, "1")
    assert "not allowed" in check_refused(
        fenced, trap, source(origin, path, auth={"url": f"{trap.url}/token"}), target(mirror)
    )


@pytest.mark.parametrize("what", ["manifests", "blobs"])
def test_by_redirect(
    fenced: DistributeBox,
    trap: Trap,
    source_proxy: FaultProxy,
    origin: Registry,
    mirror: Registry,
    path: str,
    what: str,
) -> None:
    """Nor by a redirect of the source."""
    put_image(origin, path, "1")
    redirect = Answer(307, {"Location": f"{trap.url}/latest/meta-data"})
    source_proxy.add("GET|HEAD", f".*/{what}/.*", redirect, times=None)
    assert "not allowed" in check_refused(fenced, trap, source(source_proxy, path), target(mirror))
    assert mirror.tags(path) == []


def test_by_realm(
    fenced: DistributeBox, trap: Trap, source_proxy: FaultProxy, origin: Registry, mirror: Registry, path: str
) -> None:
    """Nor by the realm of a challenge."""
    put_image(origin, path, "1")
    challenge = {"WWW-Authenticate": f'Bearer realm="{trap.url}/token",service="x"'}
    source_proxy.add(".*", ".*", Answer(401, challenge), times=None)
    assert "not allowed" in check_refused(fenced, trap, source(source_proxy, path), target(mirror))


def test_by_upload_location(
    fenced: DistributeBox, trap: Trap, target_proxy: FaultProxy, origin: Registry, path: str
) -> None:
    """Nor by the Location of an upload."""
    put_image(origin, path, "1", layers=[MIB])
    target_proxy.add("POST", ".*", RewriteLocation(lambda location: elsewhere(location, trap)), times=None)
    assert "not allowed" in check_refused(fenced, trap, source(origin, path), target(target_proxy))


def test_by_link(
    fenced: DistributeBox, trap: Trap, source_proxy: FaultProxy, origin: Registry, mirror: Registry, path: str
) -> None:
    """Nor by the Link to the next page of tags."""
    put_image(origin, path, "1")
    page = Answer(
        200, {"Link": f'<{trap.url}/next>; rel="next"', "Content-Type": "application/json"}, b'{"tags":["1"]}'
    )
    source_proxy.add("GET", ".*/tags/list.*", page, times=None)
    wanted = registry_of(source_proxy, image=path, tags={"regex": ".*"})
    check_refused(fenced, trap, wanted, target(mirror))


def test_foreign_layers_are_not_fetched(
    fenced: DistributeBox, trap: Trap, origin: Registry, mirror: Registry, path: str
) -> None:
    """The URLs of foreign layers are carried over, and never followed."""
    image = put_image(origin, path, "1", docker=True, foreign_urls=[f"{trap.url}/layer"])
    fenced.copy(source(origin, path), [target(mirror)])
    assert mirror.digest(path, "1") == image.digest
    assert trap.connections == 0
