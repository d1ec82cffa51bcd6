"""The web application: every route, who calls (asked before any body is read), and every failure in the words of the
API that was spoken to."""

import asyncio
import difflib
import ipaddress
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from http import HTTPStatus
from urllib.parse import urlsplit

import structlog
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from imagejobd.api import builder, dispatch, distribute, events, health, joblog, native, openapi, queue, run, schedules
from imagejobd.api.auth import Authentication
from imagejobd.api.ignored import add_warning
from imagejobd.api.intake import CALLER, Intake
from imagejobd.api.metrics import Metrics
from imagejobd.api.metrics import routes as metrics_routes
from imagejobd.api.page import page
from imagejobd.api.streams import Streams
from imagejobd.api.wire import Explained, headers_of, pack, status_of
from imagejobd.model.errors import ErrorCode, Fault, Permanent, invalid
from imagejobd.model.job import log_fields
from imagejobd.model.text import one_line, printable

ErrorResponse = Callable[[web.Request, Fault, HTTPStatus], web.Response]
# Which API's words a path, or one below it, is answered in; the first that fits. All others, also the `*` of OPTIONS,
# are the native API's.
ERROR_RESPONSES: tuple[tuple[str, ErrorResponse], ...] = (
    ("/api/distribute", distribute.error_response),
    ("/api/v1/job", dispatch.error_response),
    ("/images", dispatch.error_response),
    ("/api/v1", builder.error_response),
    ("/run", run.error_response),
    ("/status", run.error_response),
)

# Routes that are named to who asks for none, and characters of what they are compared with.
NEAREST_MAX = 3
NEAREST_PATH_MAX_CHARS = 200

# Lines in the daemon's log about refused requests; what comes beyond them is counted. Strangers must not fill it.
REFUSALS_PER_S_MAX = 20
REASON_MAX_CHARS = 300
# A client names the same host with every request.
HOSTS_REMEMBERED = 64
# What browsers say of requests that their user, or a page of the daemon itself, has made. One that does not know this
# header (Fetch Metadata) sends Origin with everything that could change something.
OWN_SITES = frozenset({"none", "same-origin"})

log = structlog.get_logger("imagejobd.api")


def create_app(
    intake: Intake,
    checks: Mapping[str, health.Check],
    authentication: Authentication,
    *,
    needs: Mapping[str, health.Probe] | None = None,
    registries: Collection[str] = (),
    other_daemons: Callable[[], Sequence[str]] = tuple,
    metrics: Metrics | None = None,
    schedule_statuses: schedules.Statuses = schedules.no_schedules,
) -> web.Application:
    """Wire all routes. `registries` are the hosts of the `[registry]` tables; `needs`, `checks` and `other_daemons` see
    `health.routes`; without `metrics` there is no such page. Bodies are bounded where they are read, not by aiohttp."""
    app = web.Application(middlewares=[_middleware(intake, authentication)], client_max_size=0)
    streams = Streams(intake)
    routes = [
        *health.routes(intake, needs or {"store": intake.store.probe}, checks, other_daemons),
        *dispatch.routes(intake, reads_anonymous=authentication.dispatch_reads_anonymous),
        *builder.routes(intake),
        *run.routes(intake),
        *distribute.routes(intake, registries),
        *native.routes(intake, streams),
        *joblog.routes(intake, streams),
        *events.routes(intake, streams),
        *queue.routes(intake),
        *schedules.routes(intake, schedule_statuses),
        *openapi.routes(),
        *page.routes(),
        *(metrics_routes(metrics) if metrics is not None else ()),
    ]
    app.add_routes(
        web.RouteDef(route.method, route.path, route.handler, route.kwargs | {"expect_handler": _defer_expect})
        for route in routes
    )
    app.router.register_resource(_Unrouted())
    app.on_response_prepare.append(_hide_versions)
    app.on_response_prepare.append(add_warning)
    return app


def _middleware(intake: Intake, authentication: Authentication) -> Middleware:
    check = HostCheck(intake.server.hosts)
    refusals = Refusals()

    @web.middleware
    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.method != hdrs.METH_POST:
            response = await handled(request, handler)
        else:
            with intake.receiving():
                response = await handled(request, handler)
        if _legacy_error_response(request.path) is None:
            pack(request, response)
        if intake.is_draining:
            # The client's next request is to reach the daemon that is started next, not a connection that ends.
            response.force_close()
        return response

    async def handled(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            check(request)
            request[CALLER] = authentication.caller(request)
            return await handler(request)
        except Fault as error:
            return refusals.response(request, error, status_of(error), headers_of(error))
        except web.HTTPException as error:
            allow = {name: value for name, value in error.headers.items() if name == hdrs.ALLOW}
            return refusals.response(request, _unrouted(request, error), HTTPStatus(error.status), allow)
        except ConnectionError:
            raise
        except Exception:
            log.exception("a request failed by a defect of imagejobd", method=request.method, path=request.path)
            defect = Permanent(ErrorCode.INTERNAL, "internal error; the daemon's log has the details")
            return refusals.response(request, defect, status_of(defect), {})

    return answer


class Refusals:
    """The answers to refused requests. The daemon's log has `REFUSALS_PER_S_MAX` a second, then how many more."""

    def __init__(self) -> None:
        self._count = 0

    def response(
        self, request: web.Request, fault: Fault, status: HTTPStatus, headers: Mapping[str, str]
    ) -> web.Response:
        """The refusal in the words of the API that was spoken to."""
        self._log(request, fault, status)
        if request.writer.output_size > 0:
            # Too late for a status. A connection that is cut tells the client that the body is not whole.
            log.warning("an answer was cut short", path=request.path, error=fault.message)
            raise ConnectionAbortedError(fault.message)
        render = _legacy_error_response(request.path) or native.error_response
        response = render(request, fault, status)
        response.headers.update(headers)
        return response

    def _log(self, request: web.Request, fault: Fault, status: HTTPStatus) -> None:
        """Without the query, which may hold a stranger's secrets."""
        if self._count == 0:
            asyncio.get_running_loop().call_later(1.0, self._end_second)
        self._count += 1
        if self._count > REFUSALS_PER_S_MAX:
            return
        caller = request.get(CALLER)
        log.warning(
            "request refused",
            method=printable(request.method),
            path=printable(request.path),
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


class HostCheck:
    """Keeps web pages away from a local daemon: refuses requests for hosts that are neither local nor configured in
    `server.hosts`, and those of pages that are neither the daemon's own nor of a configured host.

    A page in a browser on the build host can send requests to a loopback port (CSRF), and with DNS rebinding also read
    the answers; so can a page that another program of the same host serves at its own port. Clients such as curl send
    neither Origin nor Sec-Fetch-Site, and name the host by address, as localhost, or as configured.
    """

    def __init__(self, hosts: Collection[str]) -> None:
        self._configured = {host.lower() for host in hosts}
        self._hosts = self._configured | {"localhost", ""}

    def __call__(self, request: web.Request) -> None:
        host = request.headers.get(hdrs.HOST, "")
        name = _hostname(host)
        if name not in self._hosts and not _is_address(name):
            raise _foreign(hdrs.HOST, host)
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is not None:
            # The port counts: what else listens on this host is another site, though its name is the same.
            authority = origin.partition("://")[2] or origin
            if authority.lower() != host.lower() and _hostname(authority) not in self._configured:
                raise _foreign(hdrs.ORIGIN, origin)
        elif request.headers.get("Sec-Fetch-Site", "none") not in OWN_SITES and not _is_followed_link(request):
            raise Permanent(
                ErrorCode.DENIED,
                "the request comes from a web page of another site (Sec-Fetch-Site); if it may ask, add its host to "
                "server.hosts, and let it ask so that its Origin is sent",
            )


def _legacy_error_response(path: str) -> ErrorResponse | None:
    """How the older API that a path belongs to says no; None for the paths of the daemon's own."""
    return next((render for root, render in ERROR_RESPONSES if path == root or path.startswith(f"{root}/")), None)


def _is_followed_link(request: web.Request) -> bool:
    """Whether a browser asks for a page of its own, because its user followed a link to a job from elsewhere.

    Such a request may come from any site: it changes nothing, as no GET does, and the site that has the link cannot
    read the answer. Not so what a page embeds: of an image or a frame it learns whether and how soon it came.
    """
    headers = request.headers
    is_page = headers.get("Sec-Fetch-Mode") == "navigate" and headers.get("Sec-Fetch-Dest") == "document"
    return is_page and request.method in (hdrs.METH_GET, hdrs.METH_HEAD)


def _foreign(header: str, value: str) -> Permanent:
    return Permanent(
        ErrorCode.DENIED, f"{header} names {value!r}, which is not this daemon; if it is, add its name to server.hosts"
    )


@lru_cache(HOSTS_REMEMBERED)
def _hostname(authority: str) -> str | None:
    try:
        return urlsplit(f"//{authority}").hostname or ""
    except ValueError:
        return None


@lru_cache(HOSTS_REMEMBERED)
def _is_address(host: str | None) -> bool:
    try:
        ipaddress.ip_address(host or "")
    except ValueError:
        return False
    return True


async def _hide_versions(request: web.Request, response: web.StreamResponse) -> None:
    """aiohttp would tell strangers its version and Python's."""
    response.headers[hdrs.SERVER] = "imagejobd"


async def _defer_expect(request: web.Request) -> None:
    """Answer no `Expect` yet: aiohttp would ask for the body (`100 Continue`), or refuse an expectation in words of its
    own, before anybody has looked at who sends the request and how large it is. Who reads the body asks for it (see
    `body_chunks`)."""


def _unrouted(request: web.Request, error: web.HTTPException) -> Permanent:
    """What the router refuses, and what there is instead."""
    if isinstance(error, web.HTTPMethodNotAllowed):
        methods = ", ".join(sorted(error.allowed_methods))
        return Explained(ErrorCode.INVALID, "Method not allowed", f"allowed here: {methods}")
    if isinstance(error, web.HTTPNotFound):
        return Explained(ErrorCode.NOT_FOUND, "Resource not found", _nearest(request))
    return invalid(error.reason)


def _nearest(request: web.Request) -> str:
    routes = defaultdict[str, list[str]](list)
    for route in request.app.router.routes():
        if route.resource is not None and route.method not in (hdrs.METH_ANY, hdrs.METH_HEAD):
            routes[route.resource.canonical].append(route.method)
    paths = difflib.get_close_matches(request.path[:NEAREST_PATH_MAX_CHARS], routes, n=NEAREST_MAX, cutoff=0.5)
    manual = "the APIs are described in docs/apis.md, the native one in README.md"
    if not paths:
        return manual
    return f"the nearest are {', '.join(f'{method} {path}' for path in paths for method in routes[path])}; {manual}"


class _Unrouted(web.PlainResource):
    """Takes every request that no route takes: the router asks the resources of `/` last, in their order. A route that
    it makes up itself would answer `Expect`."""

    def __init__(self) -> None:
        super().__init__("/")
        self._route = self.add_route(hdrs.METH_ANY, self._refuse, expect_handler=_defer_expect)

    async def resolve(self, request: web.Request) -> tuple[web.UrlMappingMatchInfo, set[str]]:
        return web.UrlMappingMatchInfo({}, self._route), set()

    async def _refuse(self, request: web.Request) -> web.StreamResponse:
        resources = [resource for resource in request.app.router.resources() if resource is not self]
        allowed = set[str]().union(*[(await resource.resolve(request))[1] for resource in resources])
        raise web.HTTPMethodNotAllowed(request.method, allowed) if allowed else web.HTTPNotFound
