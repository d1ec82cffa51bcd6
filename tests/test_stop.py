"""The end of a daemon's connections: what was accepted is answered, and clients find their way to the next life."""

import http.client
import os
import signal
import socket
import time
from collections.abc import Iterator

import pytest

from harness.daemon import Daemon
from harness.waiting import until
from imagejobd.listeners import LAST_REQUEST_S

TIMEOUT_S = 20.0
JOB = b'{"image_name": "team/app", "dockerfile": "FROM scratch\\n"}'
REQUEST = b"POST /api/v1/build HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(JOB) + JOB


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with Daemon() as daemon:
        yield daemon


def connected(daemon: Daemon) -> socket.socket:
    """A connection that the daemon has accepted."""
    connection = socket.create_connection(("127.0.0.1", daemon.port), timeout=TIMEOUT_S)
    connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert answer(connection) == (200, None)
    return connection


def answer(connection: socket.socket) -> tuple[int, str | None]:
    """Status, and what becomes of the connection."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    response.read()
    return response.status, response.headers["Connection"]


def stop(daemon: Daemon) -> None:
    """SIGTERM, until it listens no more."""
    os.kill(daemon.pid, signal.SIGTERM)
    until(lambda: refuses(daemon), timeout_s=TIMEOUT_S, what="the listener to close")


def refuses(daemon: Daemon) -> bool:
    try:
        socket.create_connection(("127.0.0.1", daemon.port), timeout=TIMEOUT_S).close()
    except ConnectionError:
        return True
    return False


def test_a_connection_that_waits(daemon: Daemon) -> None:
    """A request that comes over an open connection when nobody listens any more is answered, and ends it."""
    with connected(daemon) as connection:
        stop(daemon)
        connection.sendall(REQUEST)
        assert answer(connection) == (200, "close")
        assert connection.recv(1) == b""
    assert daemon.wait() == 0
    assert [state for (state,) in daemon.sqlite("select state from job")] == ["queued"]


def test_a_connection_without_a_request(daemon: Daemon) -> None:
    """One over which nothing comes is closed without an answer, so that its client may safely ask again."""
    with connected(daemon) as connection:
        stop(daemon)
        assert connection.recv(1) == b""
    assert daemon.wait() == 0


def test_an_upload(daemon: Daemon) -> None:
    """A request that has begun has the drain's time for its rest, not only that of a connection that waits."""
    with connected(daemon) as connection:
        connection.sendall(REQUEST[:-10])
        stop(daemon)
        time.sleep(LAST_REQUEST_S + 1)
        connection.sendall(REQUEST[-10:])
        assert answer(connection)[0] == 200
    assert daemon.wait() == 0
