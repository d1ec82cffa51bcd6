"""What an image that nobody trusts may do, as the engine's settings of one container."""

import posixpath
from collections.abc import Collection, Mapping
from pathlib import PurePosixPath
from typing import Any

import msgspec

from imagejobd.engine.images import ImageConfig
from imagejobd.model.errors import ErrorCode, Permanent

DATA_PATH = "/data"
TMP_PATH = "/tmp"  # noqa: S108  # a place inside the container
# An image that declares more of them is refused.
VOLUMES_MAX_COUNT = 16
SHOWN_MAX_CHARS = 200
# What the engine keeps of the output on its disk, for the last lines of it.
LOG_KEPT_BYTES = 1024 * 1024

_TMPFS = "rw,noexec,nosuid,nodev"
_ROOT_NAMES = ("", "0", "root")


class SandboxLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a container may take. `file_max_bytes` is for each file, `tmp_max_bytes` for all of `/tmp`."""

    memory_bytes: int
    cpus: float
    pids: int
    files: int
    file_max_bytes: int
    tmp_max_bytes: int
    disk_free_min_bytes: int
    runtime: str | None = None


def confined(
    image: str, config: ImageConfig, *, labels: Mapping[str, str], volume: str, limits: SandboxLimits
) -> dict[str, Any]:
    """The body of `POST /containers/create`. User, command, environment and working folder are the image's own.

    The volumes of its VOLUMEs have the same `labels`.

    Raises `Permanent(run_failed)` for an image with too many VOLUMEs, or with one inside another.
    """
    return {
        "Image": image,
        "NetworkDisabled": True,
        "Healthcheck": {"Test": ["NONE"]},
        "Labels": labels,
        "HostConfig": _host_config(config, labels, volume, limits),
    }


def opened(body: dict[str, Any], mount_path: str) -> dict[str, Any]:
    """The same for a container that never starts: its root takes an archive, and its volume is at `mount_path`.

    Where the image has its own VOLUMEs stands a tmpfs, which exists only in a container that runs: the engine mounts
    volumes to look into one, and newer ones then look into nothing when there is a link in the way.
    """
    host = body["HostConfig"]
    data, *others = host["Mounts"]
    covers = [{"Type": "tmpfs", "Target": mount["Target"]} for mount in (data, *others)]
    return body | {"HostConfig": host | {"ReadonlyRootfs": False, "Mounts": [data | {"Target": mount_path}, *covers]}}


def with_private_ipc(body: dict[str, Any]) -> dict[str, Any]:
    """For engines and runtimes that do not know `none`: shared memory of the container's own, within its bound."""
    return body | {"HostConfig": body["HostConfig"] | {"IpcMode": "private"}}


def runs_as_root(config: ImageConfig) -> bool:
    return config.user.partition(":")[0] in _ROOT_NAMES


def _host_config(config: ImageConfig, labels: Mapping[str, str], volume: str, limits: SandboxLimits) -> dict[str, Any]:
    return {
        "NetworkMode": "none",
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges"],
        "ReadonlyRootfs": True,
        "Init": True,
        "IpcMode": "none",
        "CgroupnsMode": "private",
        "Memory": limits.memory_bytes,
        # The same: no swap beyond it.
        "MemorySwap": limits.memory_bytes,
        "NanoCpus": round(limits.cpus * 1e9),
        "PidsLimit": limits.pids,
        "Ulimits": [_ulimit("nofile", limits.files), _ulimit("fsize", limits.file_max_bytes), _ulimit("core", 0)],
        "Tmpfs": {TMP_PATH: f"{_TMPFS},size={limits.tmp_max_bytes}"},
        "Mounts": [_mount(volume, DATA_PATH, {"NoCopy": True}), *_declared(config, volume, labels)],
        # With compression on, the local driver refuses a single file.
        "LogConfig": {
            "Type": "local",
            "Config": {"max-size": str(LOG_KEPT_BYTES), "max-file": "1", "compress": "false"},
        },
        "RestartPolicy": {"Name": "no"},
        # It would race with the reading of state, logs and result.
        "AutoRemove": False,
    } | ({"Runtime": limits.runtime} if limits.runtime else {})


def _ulimit(name: str, value: int) -> dict[str, Any]:
    return {"Name": name, "Soft": value, "Hard": value}


def _mount(volume: str, path: str, options: dict[str, Any]) -> dict[str, Any]:
    return {"Type": "volume", "Source": volume, "Target": path, "VolumeOptions": options}


def _declared(config: ImageConfig, volume: str, labels: Mapping[str, str]) -> list[dict[str, Any]]:
    """The image's VOLUMEs, which would become anonymous volumes that nobody finds again: as volumes of the job, with
    what the image has there. `/data` and `/tmp` are covered anyway."""
    paths = {posixpath.normpath(f"/{path.lstrip('/')}") for path in config.volumes or ()} - {DATA_PATH, TMP_PATH}
    if len(paths) > VOLUMES_MAX_COUNT:
        raise Permanent(
            ErrorCode.RUN_FAILED,
            f"the image declares {len(paths)} VOLUMEs; at most {VOLUMES_MAX_COUNT} can be given to it, besides"
            f" {DATA_PATH} and {TMP_PATH}",
        )
    _refuse_nested(paths)
    options = {"Labels": labels}
    return [_mount(f"{volume}-volume{number}", path, options) for number, path in enumerate(sorted(paths), 1)]


def _refuse_nested(paths: Collection[str]) -> None:
    """The engine would copy what is in the inner one into both, once for every level."""
    for path in sorted(paths):
        for outer in map(str, PurePosixPath(path).parents):
            if outer in paths:
                raise Permanent(
                    ErrorCode.RUN_FAILED,
                    f"the image declares VOLUME {path[:SHOWN_MAX_CHARS]} inside VOLUME {outer[:SHOWN_MAX_CHARS]};"
                    " leave one of them out",
                )
