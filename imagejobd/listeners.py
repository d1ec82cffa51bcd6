"""Where requests come in: sockets that systemd passed, else the configured addresses."""

import asyncio
import socket
import time
from contextlib import AsyncExitStack
from pathlib import Path

from aiohttp import web

from imagejobd.api.intake import Intake
from imagejobd.config import Config, Listener, check_listener, listeners
from imagejobd.model.bounds import KIB
from imagejobd.model.errors import ErrorCode, Temporary
from imagejobd.systemd import listen_sockets

# Clients wait here while the event loop is busy; the kernel caps it at net.core.somaxconn.
BACKLOG = 1024
# How long a connection that was accepted has for its request after the last one was accepted.
LAST_REQUEST_S = 2.0
CLOSING_POLL_S = 0.02
# Followers have been let go, and whatever else was asked has been answered by then; but for clients that do not read.
CLOSE_TIMEOUT_S = 2.0
# How long the rest of a refused body is swallowed, so that its sender may read the answer; then the connection ends.
LINGERING_TIME_S = 2.0
# How long a connection may be silent before its first request, within a head, and between two requests. More than
# proxies keep theirs, who would else use one that is just being closed.
IDLE_CONNECTION_S = 75.0
# What is read ahead of a handler. A client may send HTTP chunks of a byte each, which take microseconds each; aiohttp
# reads a sixteenth of this number of them at a time.
READ_AHEAD_BYTES = 64 * KIB


async def open_listeners(
    stack: AsyncExitStack, config: Config, app: web.Application, intake: Intake, *, umask: int
) -> list[str]:
    """Start serving `app`, until `stack` closes; returns the addresses.

    Raises `ConfigError` for one that may not be used, and `Temporary` for one that cannot be used now. The sockets of
    systemd replace the configured ones: the unit file has said where. The `umask` that the daemon was started with says
    who may connect to a unix socket.
    """
    runner = web.AppRunner(
        app,
        access_log=None,
        shutdown_timeout=CLOSE_TIMEOUT_S,
        lingering_time=LINGERING_TIME_S,
        keepalive_timeout=IDLE_CONNECTION_S,
        read_bufsize=READ_AHEAD_BYTES,
        auto_decompress=False,
    )
    await runner.setup()
    stack.push_async_callback(_close, runner, intake)
    if sockets := listen_sockets():
        return [await _serve_socket(runner, config, sock) for sock in sockets]
    return [await _serve(runner, listener, umask) for listener in listeners(config)]


async def _close(runner: web.AppRunner, intake: Intake) -> None:
    """Accept no more connections, let followers go, answer what comes over the connections that there are, then close
    them.

    A socket of systemd's stays open: who connects from here on waits in its backlog for the next start.
    """
    for site in list(runner.sites):
        await site.stop()
    intake.is_closing = True
    server, last_request_at = runner.server, time.monotonic() + LAST_REQUEST_S
    # aiohttp notifies nobody when a connection ends.
    while server and server.connections and (time.monotonic() < last_request_at or intake.is_receiving):  # noqa: ASYNC110
        await asyncio.sleep(CLOSING_POLL_S)
    await runner.cleanup()


async def _serve_socket(runner: web.AppRunner, config: Config, sock: socket.socket) -> str:
    if sock.family == socket.AF_UNIX:
        listener = Listener(path=str(sock.getsockname()))
    else:
        host, port = sock.getsockname()[:2]
        listener = Listener(host=host, port=port)
    check_listener(config, listener)
    await web.SockSite(runner, sock, backlog=BACKLOG).start()
    return f"{listener} (from systemd)"


async def _serve(runner: web.AppRunner, listener: Listener, umask: int) -> str:
    site: web.BaseSite = (
        web.UnixSite(runner, listener.path, backlog=BACKLOG)
        if listener.path
        else web.TCPSite(runner, listener.host, listener.port, backlog=BACKLOG)
    )
    try:
        if listener.path:
            _refuse_live_socket(listener.path)
        await site.start()
        if listener.path:
            Path(listener.path).chmod(0o777 & ~umask)
    except OSError as error:
        message = f"server.listen: cannot listen on {listener}: {error.strerror or error}"
        raise Temporary(ErrorCode.CONFLICT, message) from None
    return str(listener)


def _refuse_live_socket(path: str) -> None:
    """asyncio replaces any socket file, also one at which another program answers. Raises `OSError`."""
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        try:
            client.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return
        except BlockingIOError:  # one whose backlog is full
            pass
    raise OSError(f"another program answers at {path}; stop it, or listen elsewhere")
