"""Names that this service keeps for itself in the engine, where every tenant's images stand side by side.

They may stand for what another tenant built or fetched, so no job may push to them or build on them.
"""

from imagejobd.model.errors import ErrorCode, Permanent
from imagejobd.model.reference import HUB_HOST, ImageReference

# Results of jobs: `imagejobd/<uuid>:<attempt>`.
JOB_PREFIX = "imagejobd/"
# Where the bases that a job holds are named: a registry that refuses every connection at once. The containerd image
# store asks a name's registry before it takes the image that it has, and would tell the Hub of each build.
HELD_HOST = "127.0.0.1:1"
HELD_PREFIX = f"{HELD_HOST}/{JOB_PREFIX}"
# Labels of images and of the containers that are made from them.
LABEL_PREFIX = "imagejobd."


def job_repository(uuid: str) -> str:
    """The engine-local repository that holds a job's images and nobody else's: identical builds share an image id,
    so the name is what makes one job's image its own."""
    return f"{JOB_PREFIX}{uuid}"


def held_repository(uuid: str) -> str:
    """The one that holds the bases of a job's builds."""
    return f"{HELD_PREFIX}{uuid}"


def refuse_reserved(what: str, reference: ImageReference) -> None:
    """Raises `Permanent(policy)` for a reserved repository; `what` says in the message what it was meant to be."""
    is_job = reference.host == HUB_HOST and reference.path.startswith(JOB_PREFIX)
    if is_job or reference.host == HELD_HOST:
        raise Permanent(ErrorCode.POLICY, f"{what} {reference}: names like this are reserved for the service itself")
