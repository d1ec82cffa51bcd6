"""Bounds on what a user's container may take, and on how long the phases of a run may last."""

from typing import Annotated

import msgspec
from msgspec import Meta

from imagejobd.engine.sandbox import SandboxLimits
from imagejobd.engine.settings import Network
from imagejobd.model.bounds import GIB, KIB, MIB, Bytes, Seconds

# The engine takes no less memory or CPU. The other two leave room for what starts a container, of which runc 1.3 alone
# has 24 files open, its init and a shell.
Memory = Annotated[int, Meta(ge=6 * MIB)]
Cpus = Annotated[float, Meta(ge=0.01)]
Pids = Annotated[int, Meta(ge=8)]
Files = Annotated[int, Meta(ge=64)]


class RunSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[kinds.run]`. The container never has a network; `network` is that of the RUN steps of its build.

    `timeout_s` is how long the container may run. `file_max_bytes` bounds each file that it writes, `tmp_max_bytes` all
    of /tmp, within `memory_bytes`. `disk_free_min_bytes`: with less
    than that left on the engine's disk, what runs is stopped. `output_max_bytes` of its output go to the log.
    """

    memory_bytes: Memory = 512 * MIB
    pids: Pids = 256
    cpus: Cpus = 1.0
    timeout_s: Seconds = 600.0
    network: Network | None = None
    runtime: str | None = None
    files: Files = 1024
    file_max_bytes: Bytes = 256 * MIB
    tmp_max_bytes: Bytes = 64 * MIB
    disk_free_min_bytes: Bytes = GIB
    output_max_bytes: Bytes = 8 * MIB
    perf_max_bytes: Bytes = 256 * KIB
    build_timeout_s: Seconds = 1800.0
    collect_timeout_s: Seconds = 60.0
    purge_timeout_s: Seconds = 300.0

    @property
    def limits(self) -> SandboxLimits:
        return SandboxLimits(
            memory_bytes=self.memory_bytes,
            cpus=self.cpus,
            pids=self.pids,
            files=self.files,
            file_max_bytes=self.file_max_bytes,
            tmp_max_bytes=self.tmp_max_bytes,
            disk_free_min_bytes=self.disk_free_min_bytes,
            runtime=self.runtime,
        )
