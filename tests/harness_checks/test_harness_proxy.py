"""The faulty proxy misbehaves exactly as told, and not otherwise."""

import http.client
from collections.abc import Iterator

import pytest

from harness.base_image import BUSYBOX
from harness.engine import PrivateEngine
from harness.proxy import Answer, CutRequest, CutResponse, FaultProxy, StallRequest, StallResponse
from harness.registry import Registry


@pytest.fixture
def proxy(registry: Registry) -> Iterator[FaultProxy]:
    with FaultProxy(registry.host) as proxy:
        yield proxy


def ask(
    proxy: FaultProxy, method: str, path: str, body: bytes | None = None, timeout_s: float = 5
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(proxy.host, timeout=timeout_s)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def get(proxy: FaultProxy, path: str, timeout_s: float = 5) -> tuple[int, bytes]:
    return ask(proxy, "GET", path, timeout_s=timeout_s)


def test_push_passes_through(engine: PrivateEngine, proxy: FaultProxy, registry: Registry) -> None:
    """Without rules an engine pushes through the proxy, upload locations included, and it is all recorded."""
    tag = f"{proxy.host}/harness/through:1"
    engine.docker("tag", BUSYBOX, tag)
    engine.docker("push", tag)
    assert registry.digest("harness/through", "1") is not None
    assert proxy.count("PUT", "/v2/harness/through/manifests/1") == 1
    assert proxy.count("PATCH", "/v2/harness/through/blobs/uploads/.*") >= 1


def test_answers_as_often_as_told(proxy: FaultProxy) -> None:
    """A rule for two requests answers two, and the third reaches the registry."""
    proxy.add("GET", "/v2/", Answer(429, {"Retry-After": "7"}, b"slow down"), times=2)
    assert [get(proxy, "/v2/") for _ in range(3)] == [(429, b"slow down"), (429, b"slow down"), (200, b"{}")]


def test_cuts_an_upload(proxy: FaultProxy) -> None:
    """An upload ends at the byte it was told to, and the next one is whole."""
    body = bytes(300_000)
    proxy.add("POST", "/v2/harness/cut/blobs/uploads/.*", CutRequest(after_bytes=100_000))
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        ask(proxy, "POST", "/v2/harness/cut/blobs/uploads/", body)
    assert ask(proxy, "POST", "/v2/harness/cut/blobs/uploads/", body)[0] == http.HTTPStatus.ACCEPTED


def test_cuts_and_stalls_a_response(proxy: FaultProxy) -> None:
    """A response ends at the byte it was told to; a stalled one goes on after the release."""
    proxy.add("GET", "/v2/", CutResponse(after_bytes=0))
    with pytest.raises(ConnectionResetError):
        get(proxy, "/v2/")
    proxy.add("GET", "/v2/", CutResponse(after_bytes=1))
    with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
        get(proxy, "/v2/")
    proxy.add("GET", "/v2/", StallResponse(after_bytes=1), times=2)
    with pytest.raises(TimeoutError):
        get(proxy, "/v2/", timeout_s=0.2)
    proxy.add("GET", "/v2/_catalog", StallRequest())
    with pytest.raises(TimeoutError):
        get(proxy, "/v2/_catalog", timeout_s=0.2)
    proxy.release()
    assert get(proxy, "/v2/") == (200, b"{}")
