"""Where the daemon listens and who may talk to it."""

from typing import Annotated

import msgspec
from msgspec import Meta

from imagejobd.model.bounds import MIB, Bytes, Count, Seconds

# Beyond it no clock is meant, but tokens that never expire.
LEEWAY_MAX_S = 3600


class Server(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[server]`: listeners, the state folder, and bounds on requests."""

    listen: tuple[str, ...] | None = None
    hosts: tuple[str, ...] = ()
    state_dir: str = "/var/lib/imagejobd"
    drain_timeout_s: Seconds = 90.0
    json_max_bytes: Bytes = 32 * MIB
    body_idle_s: Seconds = 60.0
    uploads_max: Count = 8
    upload_timeout_s: Seconds = 3600.0


class Auth(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[auth]`: anonymous callers are tenant `local`, and on loopback or a unix socket only, unless allowed.

    `required`: every API wants a token (the dispatcher's always does). `algorithms` are those that are taken at all;
    each key is pinned to those of its own sort. `leeway_s` is for clocks that differ. Callers whose `sub` is one of
    `admin_subjects` see every tenant.
    """

    required: bool = False
    allow_anonymous: bool = False
    jwt_secret_file: str | None = None
    jwt_public_key_files: tuple[str, ...] = ()
    jwks_file: str | None = None
    algorithms: Annotated[tuple[str, ...], Meta(min_length=1)] = ("HS256", "RS256", "ES256", "EdDSA")
    audience: Annotated[str, Meta(min_length=1)] = "com.company.jobservice"
    leeway_s: Annotated[float, Meta(ge=0, le=LEEWAY_MAX_S)] = 30.0
    admin_subjects: tuple[str, ...] = ()

    @property
    def has_keys(self) -> bool:
        """Whether there is any key that a token could be checked with."""
        return bool(self.jwt_secret_file or self.jwt_public_key_files or self.jwks_file)
