"""The least that a Python server can do for a submission: read the JSON, answer an id, keep nothing."""

import sys
import uuid

import msgspec
import uvloop
from aiohttp import web


async def build(request: web.Request) -> web.Response:
    fields = msgspec.json.decode(await request.read())
    if not fields["image_name"]:
        raise web.HTTPBadRequest
    answer = msgspec.json.format(msgspec.json.encode({"JobIdentifier": str(uuid.uuid4())}), indent=2)
    return web.Response(body=answer, content_type="application/json", charset="utf-8")


async def dispatch(request: web.Request) -> web.Response:
    fields = msgspec.json.decode(await request.read())
    if fields["encoding"] != "base64":
        raise web.HTTPBadRequest
    return web.Response(body=b'{"id":"1"}', status=201, content_type="application/json")


if __name__ == "__main__":
    app = web.Application(client_max_size=0)
    app.router.add_post("/api/v1/job", dispatch)
    app.router.add_post("/api/v1/build", build)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None, loop=uvloop.new_event_loop())
