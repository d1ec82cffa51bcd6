"""The faulty proxy misbehaves exactly as told, and not otherwise."""

import http.client
import threading
import time

import pytest

from harness.base_image import BUSYBOX
from harness.engine import PrivateEngine
from harness.images import put_image
from harness.proxy import (
    Answer,
    CutRequest,
    CutResponse,
    DropRequestHeader,
    DropResponseHeader,
    EndResponse,
    FaultProxy,
    FlipByte,
    RewriteLocation,
    StallRequest,
    StallResponse,
    ThrottleRequest,
    ThrottleResponse,
)
from harness.registry import Registry
from harness.waiting import until


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
    proxy.add("GET", "/v2/", EndResponse(after_bytes=1))
    with pytest.raises(http.client.IncompleteRead, match="1 bytes read, 1 more expected"):
        get(proxy, "/v2/")
    proxy.add("GET", "/v2/", StallResponse(after_bytes=1), times=2)
    with pytest.raises(TimeoutError):
        get(proxy, "/v2/", timeout_s=1)
    proxy.add("GET", "/v2/_catalog", StallRequest())
    with pytest.raises(TimeoutError):
        get(proxy, "/v2/_catalog", timeout_s=1)
    proxy.release()
    assert get(proxy, "/v2/") == (200, b"{}")


def test_throttles_both_ways(proxy: FaultProxy, registry: Registry) -> None:
    """Bodies, all together, take at least their bytes by the rate; a release ends that."""
    image = put_image(registry, "harness/slow", "1", layers=[200_000])
    proxy.add("GET", ".*/blobs/.*", ThrottleResponse(400_000), times=None)
    began = time.monotonic()
    assert len(get(proxy, f"/v2/harness/slow/blobs/{image.layers[0]}")[1]) == 200_000
    assert time.monotonic() - began > 0.4
    proxy.add("POST", ".*", ThrottleRequest(1_000), times=None)
    threading.Timer(0.2, proxy.release).start()
    assert ask(proxy, "POST", "/v2/harness/slow/blobs/uploads/", bytes(200_000))[0] == http.HTTPStatus.ACCEPTED


def test_flips_one_byte(proxy: FaultProxy, registry: Registry) -> None:
    """One byte of the response differs, wherever it lies; its length does not."""
    image = put_image(registry, "harness/flip", "1", layers=[200_000])
    path = f"/v2/harness/flip/blobs/{image.layers[0]}"
    proxy.add("GET", ".*", FlipByte(150_000))
    flipped, whole = get(proxy, path)[1], get(proxy, path)[1]
    assert [i for i, (a, b) in enumerate(zip(flipped, whole, strict=True)) if a != b] == [150_000]


def test_counts_bytes_times_and_open_requests(proxy: FaultProxy, registry: Registry) -> None:
    """Bodies are counted by direction, per method and path; who waits and who left can be told."""
    image = put_image(registry, "harness/counted", "1", layers=[70_000])
    path = f"/v2/harness/counted/blobs/{image.layers[0]}"
    get(proxy, path)
    ask(proxy, "POST", "/v2/harness/counted/blobs/uploads/", bytes(30_000))
    assert proxy.sent_bytes("GET", ".*/blobs/.*") == proxy.sent_bytes() == 70_000
    assert proxy.received_bytes("POST") == 30_000
    assert proxy.received_bytes("GET") == 0
    first, second = proxy.requests
    assert (first.status, second.status) == (200, 202)
    assert first.came_at <= first.ended_at <= second.came_at
    proxy.add("GET", ".*", StallResponse(50_000))
    connection = http.client.HTTPConnection(proxy.host)
    connection.request("GET", path)
    until(lambda: len(proxy.open_requests("GET")) == 1, timeout_s=20, what="the request")
    connection.close()
    until(lambda: proxy.open_requests() == [], timeout_s=20, what="its end")


def test_changes_headers(proxy: FaultProxy, registry: Registry) -> None:
    """Locations are rewritten, and headers dropped on the way there or back."""
    image = put_image(registry, "harness/headers", "1", layers=[100])
    proxy.add("POST", ".*", RewriteLocation(lambda location: location.replace("127.0.0.1", "localhost")))
    proxy.add("GET", ".*", DropRequestHeader("Range"))
    proxy.add("GET", ".*", DropResponseHeader("Docker-Content-Digest"))
    connection = http.client.HTTPConnection(proxy.host)
    connection.request("POST", "/v2/harness/headers/blobs/uploads/")
    assert connection.getresponse().headers["Location"].startswith("http://localhost:")
    connection.close()
    for status, has_digest in ((200, True), (206, False)):
        connection.request("GET", f"/v2/harness/headers/blobs/{image.layers[0]}", headers={"Range": "bytes=50-"})
        response = connection.getresponse()
        assert response.status == status
        assert ("Docker-Content-Digest" in response.headers) is has_digest
        response.read()
    connection.close()
