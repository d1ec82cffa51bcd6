"""The relay passes everything on unchanged, and no sooner than its link would."""

import http.client
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from harness.images import put_image, random_bytes
from harness.registry import Registry
from harness.relay import RESET, Relay
from harness.waiting import END_TIMEOUT_S, until

# Of the time that is demanded: what a rate may make up for, and how early timers are.
EARLY = 0.9


@pytest.fixture
def echo() -> Iterator[str]:
    """`host:port` of a server that gives back what it gets, on any number of connections, until each is ended."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        threading.Thread(target=_serve, args=(server,), daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"


def _serve(server: socket.socket) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return  # the test is over
        threading.Thread(target=_give_back, args=(connection,), daemon=True).start()


def _give_back(connection: socket.socket) -> None:
    with connection:
        while data := connection.recv(65536):
            connection.sendall(data)


def exchange(relay: Relay, data: bytes) -> bytes:
    """What comes back of `data` on a connection of its own, to its end."""
    with socket.create_connection(("127.0.0.1", relay.port), timeout=END_TIMEOUT_S) as connection:
        sender = threading.Thread(target=lambda: (connection.sendall(data), connection.shutdown(socket.SHUT_WR)))
        sender.start()
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
        sender.join()
        return answer


@pytest.mark.parametrize("shape", [{}, {"round_trip_s": 0.04}, {"connection_bytes_per_s": 4e6, "round_trip_s": 0.04}])
def test_bytes_arrive_unchanged(echo: str, shape: dict[str, float]) -> None:
    """All bytes come through in their order, both ways, and then the end; the samples count what was sent back."""
    data = random_bytes(3_000_000, "relay")
    with Relay(echo, **shape) as relay:
        assert exchange(relay, data) == data
        until(lambda: relay.samples()[-1].sent_bytes == len(data), what="the last sample")
        assert relay.samples() == sorted(relay.samples())


def test_an_exchange_takes_a_round_trip(echo: str) -> None:
    """Opening a connection takes one round trip, and each question with its answer another."""
    with Relay(echo, round_trip_s=0.1) as relay:
        began = time.monotonic()
        with socket.create_connection(("127.0.0.1", relay.port), timeout=END_TIMEOUT_S) as connection:
            for round_trips in (2, 3, 4):
                connection.sendall(b"?")
                assert connection.recv(1) == b"?"
                assert time.monotonic() - began >= 0.1 * round_trips * EARLY


def test_a_connection_keeps_its_rate(echo: str) -> None:
    """One connection takes at least as long as its rate demands."""
    with Relay(echo, connection_bytes_per_s=4e6) as relay:
        began = time.monotonic()
        exchange(relay, bytes(2_000_000))
        assert time.monotonic() - began >= 2_000_000 / 4e6 * EARLY


def test_all_connections_share_the_link(echo: str) -> None:
    """Four connections take at least as long as the link's rate demands of all their bytes."""
    with Relay(echo, connection_bytes_per_s=4e6, link_bytes_per_s=8e6) as relay:
        threads = [threading.Thread(target=exchange, args=(relay, bytes(1_000_000))) for _ in range(4)]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert time.monotonic() - began >= 4_000_000 / 8e6 * EARLY
        until(lambda: relay.samples()[-1].sent_bytes == 4_000_000, what="the last sample")


def test_a_cut_is_passed_on() -> None:
    """A peer that resets a connection, or takes none, is seen as such by the client."""
    with (
        closing(socket.create_server(("127.0.0.1", 0))) as server,
        Relay(f"127.0.0.1:{server.getsockname()[1]}") as relay,
    ):
        with socket.create_connection(("127.0.0.1", relay.port), timeout=END_TIMEOUT_S) as connection:
            upstream, _ = server.accept()
            upstream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            upstream.close()
            with pytest.raises(ConnectionResetError):
                connection.recv(1)
        server.close()
        # The relay may be that quick that not even the connection is seen.
        with (
            pytest.raises(ConnectionResetError),
            socket.create_connection(("127.0.0.1", relay.port), timeout=END_TIMEOUT_S) as connection,
        ):
            connection.recv(1)


def test_a_registry_is_read_through_it(registry: Registry) -> None:
    """HTTP on connections that stay open works as without it."""
    image = put_image(registry, "harness/relay", "1", layers=[200_000])
    with (
        Relay(registry.host, round_trip_s=0.01, connection_bytes_per_s=20e6) as relay,
        closing(http.client.HTTPConnection(relay.host, timeout=END_TIMEOUT_S)) as connection,
    ):
        for _ in range(2):
            connection.request("GET", f"/v2/harness/relay/blobs/{image.layers[0]}")
            assert connection.getresponse().read() == random_bytes(200_000, (0, 0))
