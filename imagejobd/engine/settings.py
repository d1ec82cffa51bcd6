"""How the daemon reaches its Docker Engine, and the bounds it keeps with it. No job's own wishes are here."""

import os
from typing import Literal

import msgspec

from imagejobd.model.bounds import GIB, Bytes, Days, Seconds

Builder = Literal["buildkit", "classic"]
Network = Literal["default", "host", "none"]

DEFAULT_HOST = "unix:///var/run/docker.sock"


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The `[engine]` table.

    `host`: `unix:///path`, `tcp://host:port` or `https://host:port`; None means `$DOCKER_HOST`, else the usual socket.
        TLS to a tcp host follows `$DOCKER_TLS_VERIFY` and `$DOCKER_CERT_PATH`.
    `builder`: which of the engine's two builders builds.
    `network`: the network of RUN steps: `default` is the engine's bridge, `host` the box's own, `none` has none.
    `share_build_cache`: whether tenants share the results of steps and cache mounts, for a box of one tenant.
    `connect_timeout_s`: seconds until a connection must be accepted.
    `request_timeout_s`: seconds for a short request (inspect, tag, remove) from start to end.
    `idle_timeout_s`: seconds without a byte after which a pull or push counts as stalled. Builds have no such limit,
        because a RUN step may be silent for as long as its phase may take.
    `prune_timeout_s`: seconds for one pruning of the build cache.
    `build_cache_keep_bytes`: what pruning leaves of the build cache, in bytes; the least recently used goes first.
    `bases_keep_days`: how many days a public base image that was pulled for a build stays without being used.
    `bases_keep_bytes`: how much room all of them may take, in bytes; the least recently used goes first.
    """

    host: str | None = None
    builder: Builder = "buildkit"
    network: Network = "default"
    share_build_cache: bool = False
    connect_timeout_s: Seconds = 5.0
    request_timeout_s: Seconds = 60.0
    idle_timeout_s: Seconds = 300.0
    prune_timeout_s: Seconds = 600.0
    build_cache_keep_bytes: Bytes = 20 * GIB
    bases_keep_days: Days = 14.0
    bases_keep_bytes: Bytes = 50 * GIB

    def resolved_host(self) -> str:
        """The address to connect to, with the environment's answer where `host` is silent."""
        return self.host or os.environ.get("DOCKER_HOST") or DEFAULT_HOST
