"""What a peer may say before and after the one answer that a request has.

The HTTP library waits through any number of informational answers (RFC 9110 §15.2), for ever, and keeps what comes
unasked on an idle connection. Here a few informational ones are passed over, the header of the answer itself has a time
limit that they do not prolong, and a connection that says more than it was asked is closed.
"""

import asyncio
import functools
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import RawResponseMessage
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import StreamReader

INFORMATIONAL_MAX = 20
_SWITCHING_PROTOCOLS = 101


class Responses(ResponseHandler):
    """One connection, which is asked for one answer at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._informational = 0
        self._is_waiting = False
        self._header_deadline: asyncio.TimerHandle | None = None

    def set_response_params(self, **params: Any) -> None:
        """A request is about to be sent. `read_timeout` is the time until the answer's header is whole, too."""
        self._informational = 0
        self._is_waiting = True
        self._stop_waiting()
        if params.get("read_timeout"):
            self._header_deadline = self._loop.call_later(params["read_timeout"], self._too_late)
        super().set_response_params(**params)

    def feed_data(self, data: tuple[RawResponseMessage, StreamReader], size: int = 0) -> None:
        """Take a header that is whole."""
        code = data[0].code
        if self._is_waiting and 100 <= code < 200 and code != _SWITCHING_PROTOCOLS:
            self._informational += 1
            if self._informational > INFORMATIONAL_MAX:
                self._refuse("too many informational answers")
            return
        if not self._is_waiting:
            self._refuse("an answer to no request")
            return
        self._is_waiting = False
        self._stop_waiting()
        super().feed_data(data, size)
        self.start_timeout()  # from here the idle time-out counts for the body

    def connection_lost(self, exc: BaseException | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def close(self) -> None:
        self._stop_waiting()
        super().close()

    def abort(self) -> None:
        self._stop_waiting()
        super().abort()

    def _refuse(self, why: str) -> None:
        self._is_waiting = False
        self._stop_waiting()
        self.force_close()
        if self.exception() is None and self.transport is not None:
            self.transport.close()
            self.set_exception(HttpProcessingError(message=why))

    def _too_late(self) -> None:
        self._header_deadline = None
        self.set_exception(aiohttp.SocketTimeoutError("no header in time"))

    def _stop_waiting(self) -> None:
        if self._header_deadline is not None:
            self._header_deadline.cancel()
            self._header_deadline = None


class Connector(aiohttp.TCPConnector):
    """Connections of that kind."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._factory = functools.partial(Responses, loop=self._loop)  # type: ignore[assignment]  # it makes handlers
