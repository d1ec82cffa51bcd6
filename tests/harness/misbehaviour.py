"""What a faulty proxy can do to a request or its response."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Answer:
    """Answer instead of the registry."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True)
class CutRequest:
    """Reset the connection once so many bytes of the request's body were passed on; with 0 nothing is passed on."""

    after_bytes: int = 0


@dataclass(frozen=True)
class CutResponse:
    """Reset the connection once so many bytes of the response's body were sent; with 0 there is no status either."""

    after_bytes: int = 0


@dataclass(frozen=True)
class EndResponse:
    """Close the connection once so many bytes of the response's body were sent; unlike after a cut, these arrive."""

    after_bytes: int


@dataclass(frozen=True)
class StallRequest:
    """Go silent, until `release`, once so many bytes of the request's body were passed on."""

    after_bytes: int = 0


@dataclass(frozen=True)
class StallResponse:
    """Go silent, until `release`, once so many bytes of the response's body were sent."""

    after_bytes: int = 0


@dataclass
class ThrottleRequest:
    """Pass on the bodies of requests, all together, at so many bytes a second, until `release`."""

    bytes_per_s: float
    _free_at: float = field(default=0.0, init=False, repr=False)

    def delay_s(self, now: float, size: int) -> float:
        """How long to wait after `size` bytes that were passed on at `now`."""
        self._free_at = max(self._free_at, now) + size / self.bytes_per_s
        return self._free_at - now


@dataclass
class ThrottleResponse(ThrottleRequest):
    """As `ThrottleRequest`, for the bodies of responses."""


@dataclass(frozen=True)
class FlipByte:
    """Turn over all bits of one byte of the response's body."""

    offset: int


@dataclass(frozen=True)
class DropRequestHeader:
    """Pass the request on without a header: with `Range`, a server that does not know ranges."""

    name: str


@dataclass(frozen=True)
class RewriteLocation:
    """Pass the response on with another Location: what `rewrite` makes of the registry's own."""

    rewrite: Callable[[str], str]


@dataclass(frozen=True)
class DropResponseHeader:
    """Pass the response on without a header."""

    name: str


Partial = CutRequest | CutResponse | EndResponse | StallRequest | StallResponse
Misbehaviour = Answer | Partial | ThrottleRequest | FlipByte | DropRequestHeader | RewriteLocation | DropResponseHeader
