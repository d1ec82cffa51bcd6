"""Names that this service keeps for itself in the engine, where every tenant's images stand side by side.

They may stand for what another tenant built or fetched, so no job may push to them or build on them.
"""

from imagejobd.model.errors import ErrorCode, Permanent
from imagejobd.model.reference import HUB_HOST, ImageReference

# Of jobs: their results as `imagejobd/<uuid>:<attempt>`, and the bases that they hold.
JOB_PREFIX = "imagejobd/"
# Labels of images and of the containers that are made from them.
LABEL_PREFIX = "imagejobd."


def refuse_reserved(what: str, reference: ImageReference) -> None:
    """Raises `Permanent(policy)` for a reserved repository; `what` says in the message what it was meant to be."""
    if reference.host == HUB_HOST and reference.path.startswith(JOB_PREFIX):
        raise Permanent(ErrorCode.POLICY, f"{what} {reference}: names like this are reserved for the service itself")
