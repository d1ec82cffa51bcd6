"""What an image that nobody trusts may do, as the engine's settings of one container, and the bound on the disk.

The engine itself keeps all bounds but one: a volume has no size, so the space that is left around it has to be watched.
Nothing here talks to the engine.
"""

import os
import posixpath
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from imagejobd.engine.images import ImageConfig
from imagejobd.model.errors import ErrorCode, Permanent

DATA_PATH = "/data"
TMP_PATH = "/tmp"  # noqa: S108  # a place inside the container
# An image that declares more of them is refused.
VOLUMES_MAX_COUNT = 16
PATH_MAX_CHARS = 200
# What the engine keeps of the output on its disk, for the last lines of it.
LOG_MAX_BYTES = 1024 * 1024
# Below this share of all inodes, services begin to fail that never look at bytes.
INODES_FREE_MIN_SHARE = 0.01

_TMPFS = "rw,noexec,nosuid,nodev"


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


class FreeSpace(msgspec.Struct, frozen=True):
    """The free space of a file system. One without inodes counts as having all of them free."""

    free_bytes: int
    free_inodes_share: float = 1.0


# The space where a path is; None where it cannot be seen.
Probe = Callable[[Path], FreeSpace | None]


def container_body(
    image: str, config: ImageConfig, *, labels: Mapping[str, str], volume: str, limits: SandboxLimits
) -> dict[str, Any]:
    """The body of `POST /containers/create`. User, command, environment and working folder are the image's own.

    The volumes of its VOLUMEs have the same `labels`.

    Raises `Permanent(run_failed)` for an image with too many VOLUMEs, or with one inside another.
    """
    host_config = {
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
        "Mounts": [_mount(volume, DATA_PATH, {"NoCopy": True}), *_declared_volumes(config, volume, labels)],
        # With compression on, the local driver refuses a single file.
        "LogConfig": {
            "Type": "local",
            "Config": {"max-size": str(LOG_MAX_BYTES), "max-file": "1", "compress": "false"},
        },
        "RestartPolicy": {"Name": "no"},
        # It would race with the reading of state, logs and result.
        "AutoRemove": False,
    } | ({"Runtime": limits.runtime} if limits.runtime else {})
    return {
        "Image": image,
        "NetworkDisabled": True,
        "Healthcheck": {"Test": ["NONE"]},
        "Labels": labels,
        "HostConfig": host_config,
    }


def volume_access(body: dict[str, Any], mount_path: str) -> dict[str, Any]:
    """The same for a container that never starts: its root takes an archive, and its volume is at `mount_path`.

    Where the image has its own VOLUMEs stands a tmpfs, which exists only in a container that runs: the engine mounts
    volumes to look into one, and newer ones then look into nothing when there is a link in the way.
    """
    host = body["HostConfig"]
    volume = host["Mounts"][0] | {"Target": mount_path}
    covers = [{"Type": "tmpfs", "Target": mount["Target"]} for mount in host["Mounts"]]
    return body | {"HostConfig": host | {"ReadonlyRootfs": False, "Mounts": [volume, *covers]}}


def with_private_ipc(body: dict[str, Any]) -> dict[str, Any]:
    """For engines and runtimes that do not know `none`: shared memory of the container's own, within its bound."""
    return body | {"HostConfig": body["HostConfig"] | {"IpcMode": "private"}}


def free_space(path: Path) -> FreeSpace | None:
    """Of the file system at `path`, or at the nearest folder above it that we may look into.

    None where there is no such path: the engine is on another machine, or in another mount namespace.
    """
    if not path.is_absolute():
        return None  # a volume whose driver does not say where it is
    while True:
        try:
            disk = os.statvfs(path)
        except PermissionError:
            path = path.parent
        except OSError:
            return None
        else:
            share = disk.f_favail / disk.f_files if disk.f_files else 1.0
            return FreeSpace(disk.f_bavail * disk.f_frsize, share)


def shortage(space: FreeSpace | None, *, free_min_bytes: int) -> str:
    """What there is too little of, in words; empty when all is well, and where nothing can be seen."""
    if space is None:
        return ""
    if space.free_bytes < free_min_bytes:
        return f"{space.free_bytes} bytes are free, and {free_min_bytes} have to stay so"
    if space.free_inodes_share < INODES_FREE_MIN_SHARE:
        return f"{space.free_inodes_share:.2%} of its inodes are free, and {INODES_FREE_MIN_SHARE:.0%} have to stay so"
    return ""


def _ulimit(name: str, value: int) -> dict[str, Any]:
    return {"Name": name, "Soft": value, "Hard": value}


def _mount(volume: str, path: str, options: dict[str, Any]) -> dict[str, Any]:
    return {"Type": "volume", "Source": volume, "Target": path, "VolumeOptions": options}


def _declared_volumes(config: ImageConfig, volume: str, labels: Mapping[str, str]) -> list[dict[str, Any]]:
    """The image's VOLUMEs, which would become anonymous volumes that nobody finds again: as volumes of the job, with
    what the image has there. `/data` and `/tmp` are covered anyway."""
    paths = {posixpath.normpath(f"/{path.lstrip('/')}") for path in config.volumes or ()} - {DATA_PATH, TMP_PATH}
    if len(paths) > VOLUMES_MAX_COUNT:
        raise Permanent(
            ErrorCode.RUN_FAILED,
            f"the image declares {len(paths)} VOLUMEs; at most {VOLUMES_MAX_COUNT} can be given to it, besides"
            f" {DATA_PATH} and {TMP_PATH}",
        )
    for path in sorted(paths):
        for outer in map(str, PurePosixPath(path).parents):
            if outer in paths:
                # The engine would copy what is in the inner one into both, once for every level.
                raise Permanent(
                    ErrorCode.RUN_FAILED,
                    f"the image declares VOLUME {path[:PATH_MAX_CHARS]} inside VOLUME {outer[:PATH_MAX_CHARS]};"
                    " leave one of them out",
                )
    options = {"Labels": labels}
    return [_mount(f"{volume}-volume{number}", path, options) for number, path in enumerate(sorted(paths), 1)]
