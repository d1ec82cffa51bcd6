"""Where the daemon listens and who may talk to it."""

import msgspec

from imagejobd.model.bounds import MIB, Bytes, Count, Seconds


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
    """`[auth]`: anonymous callers are tenant `local`, and on loopback or a unix socket only, unless allowed."""

    allow_anonymous: bool = False
