"""The way of a request to its handler: aiohttp's router, without what it does about `Expect` on that way.

aiohttp asks for a body (`100 Continue`), or refuses an expectation in words of its own, before anybody has looked at
who sends the request and how large it is. Here whoever reads the body asks for it (`bodies`), so a request that is
refused before that is refused without its body.

The web application: one middleware that finds out who calls, and turns every failure into the words of the API that
was spoken to.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from http import HTTPStatus

import structlog
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from imagejobd.api import builder, dispatch, distribute, health, host_check, native, run
from imagejobd.api.auth import Authentication
from imagejobd.api.intake import CALLER, Intake
from imagejobd.api.wire import headers_of, status_of
from imagejobd.model.errors import ErrorCode, Fault, NotFound, Permanent, invalid
from imagejobd.model.job import log_fields
from imagejobd.model.text import one_line, shown


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


# Which API's words a path, or one below it, is answered in; the first that fits. All others, also the `*` of OPTIONS,
# are the native API's.
ERROR_RESPONSES: tuple[tuple[str, Callable[[web.Request, Fault, HTTPStatus], web.Response]], ...] = (
    ("/api/distribute", distribute.error_response),
    ("/api/v1/job", dispatch.error_response),
    ("/images", dispatch.error_response),
    ("/api/v1", builder.error_response),
    ("/run", run.error_response),
    ("/status", run.error_response),
)

# Lines in the daemon's log about refused requests; what comes beyond them is counted. Strangers must not fill it.
REFUSALS_PER_S_MAX = 20
REASON_MAX_CHARS = 300

log = structlog.get_logger("imagejobd.api")


def create_app(
    intake: Intake,
    checks: Mapping[str, health.Check],
    authentication: Authentication,
    *,
    needs: Mapping[str, health.Probe] | None = None,
    registries: Collection[str] = (),
    other_daemons: Callable[[], Sequence[str]] = tuple,
) -> web.Application:
    """Wire all routes; `registries` are the hosts of the `[registry]` tables. Bodies are bounded by the door, not by
    aiohttp. `needs`, `checks` and `other_daemons` are those of api/health.py, the store alone where there are no
    `needs`."""
    middleware = _middleware(intake, host_check.HostCheck(intake.server.hosts), authentication)
    app = web.Application(middlewares=[middleware], client_max_size=0)
    add_routes(
        app,
        [
            *health.routes(intake, needs or {"store": intake.store.probe}, checks, other_daemons),
            *dispatch.routes(intake),
            *builder.routes(intake),
            *run.routes(intake),
            *distribute.routes(intake, registries),
            *native.routes(intake),
        ],
    )
    return app


def _middleware(intake: Intake, check: host_check.HostCheck, authentication: Authentication) -> Middleware:
    refusals = Refusals()

    @web.middleware
    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.method != hdrs.METH_POST:
            response = await handled(request, handler)
        else:
            with intake.receiving():
                response = await handled(request, handler)
        if intake.is_draining:
            # Its client's next request is to find the daemon's next life, not a connection that ends.
            response.force_close()
        return response

    async def handled(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            check(request)
            request[CALLER] = authentication.caller(request)
            return await handler(request)
        except Fault as fault:
            return refused(request, fault, status_of(fault), headers_of(fault))
        except web.HTTPException as error:
            return refused(request, _as_fault(error), HTTPStatus(error.status), _allow(error))
        except ConnectionError:
            raise
        except Exception:
            log.exception("a request failed by a defect of imagejobd", method=request.method, path=request.path)
            defect = Permanent(ErrorCode.INTERNAL, "internal error; the daemon's log has the details")
            return refused(request, defect, status_of(defect), {})

    def refused(request: web.Request, fault: Fault, status: HTTPStatus, headers: Mapping[str, str]) -> web.Response:
        refusals.note(request, fault, status)
        return _refusal(request, fault, status, headers)

    return answer


class Refusals:
    """The requests that were refused, in the daemon's log: `REFUSALS_PER_S_MAX` a second, then how many more."""

    def __init__(self) -> None:
        self._count = 0

    def note(self, request: web.Request, fault: Fault, status: HTTPStatus) -> None:
        """Without the query, which may hold what is nobody's business."""
        if self._count == 0:
            asyncio.get_running_loop().call_later(1.0, self._end_second)
        self._count += 1
        if self._count > REFUSALS_PER_S_MAX:
            return
        caller = request.get(CALLER)
        log.warning(
            "request refused",
            method=shown(request.method),
            path=shown(request.path),
            status=status.value,
            code=fault.code.value,
            error=one_line(fault.message, REASON_MAX_CHARS),
            peer=request.remote or "unix",
            **(log_fields(caller) if caller else {}),
        )

    def _end_second(self) -> None:
        if self._count > REFUSALS_PER_S_MAX:
            log.warning("more requests were refused within this second", count=self._count - REFUSALS_PER_S_MAX)
        self._count = 0


def _refusal(request: web.Request, fault: Fault, status: HTTPStatus, headers: Mapping[str, str]) -> web.Response:
    if request.writer.output_size > 0:
        # Too late for a status. A connection that is cut tells the client that the body is not whole.
        log.warning("an answer was cut short", path=request.path, error=fault.message)
        raise ConnectionAbortedError(fault.message)
    path = request.path
    renders = (render for root, render in ERROR_RESPONSES if path == root or path.startswith(f"{root}/"))
    response = next(renders, native.error_response)(request, fault, status)
    response.headers.update(headers)
    return response


def _allow(error: web.HTTPException) -> dict[str, str]:
    return {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}


def _as_fault(error: web.HTTPException) -> Fault:
    words = {404: "Resource not found", 405: "Method not allowed"}
    message = words.get(error.status, error.reason)
    return NotFound(message) if error.status == 404 else invalid(message)
