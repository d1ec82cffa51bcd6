"""The way of a request to its handler: aiohttp's router, without what it does about `Expect` on that way.

aiohttp asks for a body (`100 Continue`), or refuses an expectation in words of its own, before anybody has looked at
who sends the request and how large it is. Here whoever reads the body asks for it (`bodies`), so a request that is
refused before that is refused without its body.
"""

from collections.abc import Iterable

from aiohttp import hdrs, web


def add_routes(app: web.Application, routes: Iterable[web.RouteDef]) -> None:
    """Add all routes that `app` is to have."""
    app.add_routes([_without_expect(route) for route in routes])
    app.router.register_resource(_Nowhere())


def _without_expect(route: web.RouteDef) -> web.RouteDef:
    return web.RouteDef(route.method, route.path, route.handler, route.kwargs | {"expect_handler": _expect})


async def _expect(request: web.Request) -> None:
    """Nothing yet."""


class _Nowhere(web.PlainResource):
    """What every request comes to that no route takes: the router asks the resources of `/` last, in their order.

    Otherwise it would make a route up, and that one would have aiohttp's way with `Expect`.
    """

    def __init__(self) -> None:
        super().__init__("/")
        self._route = self.add_route(hdrs.METH_ANY, self._refuse, expect_handler=_expect)

    async def resolve(self, request: web.Request) -> tuple[web.UrlMappingMatchInfo, set[str]]:
        return web.UrlMappingMatchInfo({}, self._route), set()

    async def _refuse(self, request: web.Request) -> web.StreamResponse:
        allowed: set[str] = set()
        for resource in request.app.router.resources():
            if resource is not self:
                allowed |= (await resource.resolve(request))[1]
        raise web.HTTPMethodNotAllowed(request.method, allowed) if allowed else web.HTTPNotFound
