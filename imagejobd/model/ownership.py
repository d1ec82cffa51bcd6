"""Names that this service keeps for itself in the engine, where every tenant's images stand side by side.

They may stand for what another tenant built or fetched, so no job may push to them or build on them. Several daemons
may share an engine, so each name holds the id of the installation that made it, 12 hexadecimal digits::

    imagejobd/<installation>/<uuid>:<attempt>                          the image that a job built
    127.0.0.1:1/imagejobd/<installation>/<uuid>:base-<nonce>-<number>  a base that a build pins
    imagejobd-<installation>-<uuid>-<attempt>[-<role>]                 a job's container or volume
    imagejobd-<installation>-tag-<hash>                                a volume that notes a tag's lease
    imagejobd-<installation>-alive-<seconds since 1970>                a volume that says that its daemon works

Earlier versions left the installation out: such a name is ours only where our store knows the job.
"""

import re
from typing import NamedTuple, Protocol

import msgspec

from imagejobd.model.errors import ErrorCode, Permanent
from imagejobd.model.reference import HUB_HOST, ImageReference

JOB_PREFIX = "imagejobd/"
# Where the bases that a job pins are named: a registry that refuses every connection at once. The containerd image
# store asks a name's registry before it takes the image that it has, and would tell the Hub of each build.
PIN_HOST = "127.0.0.1:1"
PIN_PREFIX = f"{PIN_HOST}/{JOB_PREFIX}"
# Labels of images and of the containers that are made from them.
LABEL_PREFIX = "imagejobd."
INSTALLATION_LABEL = f"{LABEL_PREFIX}installation"
# Of whoever only asks an engine, and has no state folder.
NO_INSTALLATION = "0" * 12

_INSTALLATION = r"[0-9a-f]{12}"
_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_REPOSITORY = re.compile(rf"(?:{re.escape(PIN_HOST)}/)?{JOB_PREFIX}(?:({_INSTALLATION})/)?({_UUID})")
_RESOURCE = re.compile(rf"imagejobd-(?:({_INSTALLATION})-)?({_UUID})-\d+(?:-[a-z]+[0-9]*)?")
# What some build, of any installation, has pinned a base under.
PIN_PATTERN = rf"{re.escape(PIN_PREFIX)}(?:{_INSTALLATION}/)?{_UUID}:base-[0-9a-f]{{32}}-[0-9]+"


class Owner(NamedTuple):
    """Whose a name is; `installation` is empty in names that an earlier version gave."""

    installation: str
    uuid: str


def job_repository(installation: str, uuid: str) -> str:
    """The engine-local repository that holds a job's images and nobody else's: identical builds share an image id,
    so the name is what makes one job's image its own."""
    return f"{JOB_PREFIX}{installation}/{uuid}"


def pin_repository(installation: str, uuid: str) -> str:
    """The one in which the bases of a job's builds are pinned."""
    return f"{PIN_PREFIX}{installation}/{uuid}"


def repositories_of(installation: str, uuid: str) -> tuple[str, ...]:
    """All that may hold something of a job, those of earlier versions too."""
    earlier = f"{JOB_PREFIX}{uuid}", f"{PIN_PREFIX}{uuid}"
    return job_repository(installation, uuid), pin_repository(installation, uuid), *earlier


def repository_patterns(installation: str) -> tuple[str, ...]:
    """Match the repositories of all jobs of an installation and of earlier versions, where `*` is no slash."""
    return tuple(f"{prefix}{part}*" for prefix in (JOB_PREFIX, PIN_PREFIX) for part in (f"{installation}/", ""))


def owner_of_repository(repository: str) -> Owner | None:
    """Whose images or bases a repository holds; None for one that is no job's."""
    return _owner(_REPOSITORY, repository)


def resource_name(installation: str, uuid: str, attempt: int) -> str:
    """What an attempt's container and volume are called; others that it needs beside them have `-<role>` behind it."""
    return f"imagejobd-{installation}-{uuid}-{attempt}"


def owner_of_resource(name: str) -> Owner | None:
    """Whose a container or volume is by its name; None for one that is no job's."""
    return _owner(_RESOURCE, name)


def _owner(pattern: re.Pattern[str], name: str) -> Owner | None:
    match = pattern.fullmatch(name)
    return Owner(match[1] or "", match[2]) if match else None


def refuse_reserved(what: str, reference: ImageReference) -> None:
    """Raises `Permanent(policy)` for a reserved repository; `what` says in the message what it was meant to be."""
    is_job = reference.host == HUB_HOST and reference.path.startswith(JOB_PREFIX)
    if is_job or reference.host == PIN_HOST:
        raise Permanent(ErrorCode.POLICY, f"{what} {reference}: names like this are reserved for the service itself")


class PulledBase(msgspec.Struct, frozen=True):
    """A public base image that this service has pulled. `name` has a tag or a digest, as the engine shows it;
    `image_id` is what it meant when it was pulled."""

    name: str
    image_id: str
    used_ms: int


class PulledBases(Protocol):
    """All of them, durably: how the engine's package asks the store to remember them."""

    async def pulled(self, name: str, image_id: str) -> None:
        """Remember a base, used now."""
        ...

    async def used(self, name: str) -> None:
        """Note that a base was used now, where it is remembered."""
        ...

    async def bases(self) -> list[PulledBase]:
        """The last used first."""
        ...

    async def forget(self, base: PulledBase) -> None:
        """No longer remember it, unless its name was pulled as another image since."""
        ...
