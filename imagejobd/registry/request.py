"""One request to a registry before it is known at which of its origins, and who makes it."""

from collections.abc import Mapping, Sequence

from multidict import CIMultiDict
from yarl import URL

from imagejobd.model.errors import ErrorCode, Permanent
from imagejobd.registry.http.address import exact_url, host_of, is_http, origin_of


class Request:
    """`target` is a path below an origin or an absolute URL; `scopes` are what a token for it must allow."""

    def __init__(
        self, method: str, target: str | URL, scopes: Sequence[str] = (), headers: Mapping[str, str] | None = None
    ) -> None:
        """Raises `Permanent(registry_unavailable)` for a target that cannot be one: registries name them."""
        self.method = method
        self.target = _target(target)
        self.scopes = tuple(scopes)
        self._headers = headers or {}

    @property
    def is_absolute(self) -> bool:
        return self.target.absolute

    def url(self, origin: URL) -> URL:
        """Where the request goes. A registry behind a TLS proxy may name itself with http: it is meant all the same.

        Raises `Permanent` where another host without TLS is named while the registry has it.
        """
        if not self.target.absolute:
            return origin.join(self.target)
        if origin.scheme == "https" and self.target.scheme == "http":
            if not self._is_same_host(origin):
                raise Permanent(
                    ErrorCode.REGISTRY_UNAVAILABLE,
                    f"registry {host_of(origin)}: it leads from TLS to plain HTTP at {host_of(self.target)}; refused",
                )
            return origin.join(exact_url(self.target.raw_path_qs))
        return self.target.with_user(None)

    def is_at(self, origin: URL) -> bool:
        """Whether the request goes to `origin` itself, and may carry its login."""
        return origin_of(self.url(origin)) == origin_of(origin)

    def headers(self, authorization: str | None) -> CIMultiDict[str]:
        """What is sent, with the login that was found for it."""
        headers = CIMultiDict(self._headers)
        if authorization is not None:
            headers["Authorization"] = authorization
        return headers

    def _is_same_host(self, origin: URL) -> bool:
        same_name = (self.target.host or "").lower() == (origin.host or "").lower()
        return same_name and self.target.explicit_port in (None, 80, origin.port)


def _target(target: str | URL) -> URL:
    try:
        url = exact_url(target) if isinstance(target, str) else target
        usable = is_http(url) if url.absolute else url.raw_path.startswith("/")
    except ValueError:
        usable = False
    if not usable:
        raise Permanent(ErrorCode.REGISTRY_UNAVAILABLE, "a registry named an address that is no http(s) URL")
    return url
