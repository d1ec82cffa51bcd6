"""A receiver of webhooks, which answers as a test wants and keeps what came."""

import json
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

from aiohttp import web

from harness.web_server import WebServer


class Message(NamedTuple):
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class WebhookReceiver(WebServer):
    """Takes everything (204); `statuses` are the answers to the next requests, which come before that."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[Message] = []
        self.statuses: deque[int] = deque()

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        self.messages.append(Message(dict(request.headers), await request.read()))
        status = self.statuses.popleft() if self.statuses else 204
        return web.Response(status=status, headers={"Location": "/elsewhere"} if status == 302 else {})
