"""Where requests come in: sockets that systemd passed, else the configured addresses."""

import socket
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from aiohttp import web

from imagejobd.config import Config, ConfigError, Listener, check_listener, listeners
from imagejobd.model.bounds import KIB
from imagejobd.systemd import listen_sockets

# Clients wait here while the event loop is busy; the kernel caps it at net.core.somaxconn.
BACKLOG = 1024
# Followers of logs are cut off after this; whatever else was asked has been answered by then.
CLOSE_TIMEOUT_S = 2.0
# How long the rest of a refused body is swallowed, so that its sender may read the answer; then the connection ends.
LINGERING_TIME_S = 2.0
# How long a connection may be silent before its first request, within a head, and between two requests. More than
# proxies keep theirs, who would else use one that is just being closed.
IDLE_CONNECTION_S = 75.0
# What is read ahead of a handler. A client may send HTTP chunks of a byte each, which take microseconds each; aiohttp
# reads a sixteenth of this number of them at a time.
READ_AHEAD_BYTES = 64 * KIB


async def open_listeners(stack: AsyncExitStack, config: Config, app: web.Application, *, umask: int) -> list[str]:
    """Start serving `app`; returns the addresses. Raises `ConfigError` when one cannot be used.

    Systemd's sockets replace the configured ones: the unit file has said where. Who may connect to a unix socket says
    the `umask` that the daemon was started with.
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
    stack.push_async_callback(runner.cleanup)
    passed = listen_sockets()
    if passed:
        return await _serve_passed(runner, config, passed)
    return [await _serve(runner, listener, umask) for listener in listeners(config)]


async def _serve_passed(runner: web.AppRunner, config: Config, passed: Sequence[socket.socket]) -> list[str]:
    names = []
    for sock in passed:
        if sock.family != socket.AF_UNIX:
            host, port = sock.getsockname()[:2]
            check_listener(config, Listener(host=host, port=port))
        await web.SockSite(runner, sock, backlog=BACKLOG).start()
        names.append(str(sock.getsockname()))
    return names


async def _serve(runner: web.AppRunner, listener: Listener, umask: int) -> str:
    name = f"unix:{listener.path}" if listener.path else f"{listener.host}:{listener.port}"
    site: web.BaseSite = (
        web.UnixSite(runner, listener.path, backlog=BACKLOG)
        if listener.path
        else web.TCPSite(runner, listener.host, listener.port, backlog=BACKLOG)
    )
    try:
        await site.start()
        if listener.path:
            Path(listener.path).chmod(0o777 & ~umask)
    except OSError as error:
        raise ConfigError(f"server.listen: cannot listen on {name}: {error.strerror or error}") from None
    return name
