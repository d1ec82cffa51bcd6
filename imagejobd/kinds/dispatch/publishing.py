"""Where built images are pushed: `<repository>/<tenant>:<uuid of the job>`.

A tenant has a repository of its own, so a registry can grant rights by tenant, and every job has a tag that no other
job ever has: nobody's image can be overwritten by another's, not even after the database is lost and ids start anew.
"""

import hashlib
import re

from imagejobd.model.errors import Permanent, invalid
from imagejobd.model.reference import ImageReference

TENANT_MAX_CHARS = 64

_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")


def published_name(repository: str, tenant: str, uuid: str) -> ImageReference:
    """The name of a job's image. A tenant whose name is no component of a repository's goes by a digest of it."""
    component = tenant
    if len(tenant) > TENANT_MAX_CHARS or not _COMPONENT.fullmatch(tenant):
        component = f"tenant-{hashlib.sha256(tenant.encode()).hexdigest()[:32]}"
    return ImageReference.parse(f"{repository}/{component}:{uuid}")


def check_repository(repository: str | None) -> None:
    """Raise `Permanent(invalid)` that names the key when nothing can be pushed below `repository`."""
    if repository is None:
        return
    try:
        published_name(repository, "t" * TENANT_MAX_CHARS, "0")
    except Permanent as fault:
        raise invalid(f"kinds.dispatch.repository: {fault.message}") from None
