"""Which registry a job speaks to, how far it is trusted, and how and for whom to log in there.

Configuration says it for hosts, a request may say it for itself. A configured login or client certificate belongs to
the connection that was configured: it is never used over one that a request made weaker.
"""

from collections.abc import Mapping
from typing import Literal

import msgspec

from imagejobd.model.job import NOBODY, Principal
from imagejobd.model.secrets import Credentials, Secret


class TokenRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request's own way to a token: GET `url` with `headers` and the JSON `body`; the answer's `token` (or
    `access_token`) is sent as `Authorization: <token_type> <token>`."""

    url: Secret
    token_type: str = "Bearer"  # noqa: S105 - a scheme, not a token
    headers: Mapping[str, Secret] = {}
    body: Secret | None = None

    @property
    def secrets(self) -> tuple[Secret, ...]:
        """What no message may show."""
        return (self.url, *self.headers.values(), *([self.body] if self.body else []))


class ReadyToken(msgspec.Struct, frozen=True, kw_only=True):
    """A token that the request brings, sent as `Authorization: <token_type> <token>`. Nothing renews it."""

    token: Secret
    token_type: str = "Bearer"  # noqa: S105 - a scheme, not a token

    @property
    def secrets(self) -> tuple[Secret, ...]:
        """What no message may show."""
        return (self.token,)


Login = Credentials | TokenRequest | ReadyToken
# What to say to who has no login, where the request's kind knows nothing better.
LOGIN_HINT = "send username and password with the job"


class Site(msgspec.Struct, frozen=True, kw_only=True):
    """One registry as one job speaks to it. `host` is `name[:port]` as in image references.

    `scheme` None: as configured for the host (https; on loopback plain HTTP too). `verify_tls` None: as configured;
    False accepts any certificate. `login` None: the configured one where `principal` may use it, else the registry's
    challenge decides. `login_hint` says how such a request gives one.
    """

    host: str
    scheme: Literal["http", "https"] | None = None
    verify_tls: bool | None = None
    login: Login | None = None
    login_hint: str = LOGIN_HINT
    principal: Principal = NOBODY
