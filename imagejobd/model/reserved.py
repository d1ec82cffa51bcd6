"""Names that this service keeps for itself in the engine, where every tenant's images stand side by side.

They may stand for what another tenant built or fetched, so no job may push to them or build on them.
"""

from imagejobd.model.errors import ErrorCode, Permanent
from imagejobd.model.reference import HUB_HOST, ImageReference

# Results of jobs: `imagejobd/<uuid>:<attempt>`.
JOB_PREFIX = "imagejobd/"
# A second name on each base that credentials brought in.
BASE_MARK_REPOSITORY = "imagejobd-base"
# Labels of images and of the containers that are made from them.
LABEL_PREFIX = "imagejobd."


def refuse_reserved(what: str, reference: ImageReference) -> None:
    """Raises `Permanent(policy)` for a reserved repository; `what` says in the message what it was meant to be."""
    path = reference.path
    if reference.host == HUB_HOST and (path.startswith(JOB_PREFIX) or path == f"library/{BASE_MARK_REPOSITORY}"):
        raise Permanent(ErrorCode.POLICY, f"{what} {reference}: names like this are reserved for the service itself")
