"""What a run is asked to do: a Dockerfile, judged before the job is kept."""

import msgspec

from imagejobd.model.dockerfile.policy import Policy
from imagejobd.model.errors import invalid
from imagejobd.model.job import Json
from imagejobd.model.work import Accepted

# Stands for the job's id, which it does not have yet: FROM may name ${version}. The build judges again with the real
# one; this one is constant, so that a Dockerfile which comes again need not be read again.
ANY_VERSION = "00000000-0000-7000-8000-000000000000"


class RunSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A run as it is stored."""

    dockerfile: str


def parse(spec: Json, *, policy: Policy, knows_heredocs: bool = True) -> Accepted:
    """Check a caller's spec for an engine that knows heredocs or not. Raises `Permanent(invalid | policy | too_large)`
    that names the field, or the Dockerfile's line."""
    try:
        request = msgspec.convert(spec, RunSpec)
    except msgspec.ValidationError as error:
        raise invalid(f"spec: {error}") from None
    if not request.dockerfile.strip():
        raise invalid("spec.dockerfile is empty; a run needs the text of a Dockerfile")
    policy.check(request.dockerfile, own_args=own_args(ANY_VERSION), knows_heredocs=knows_heredocs)
    return Accepted(spec=msgspec.to_builtins(request))


def own_args(uuid: str) -> dict[str, str]:
    """What a Dockerfile is told of its job: an image that declares `ARG version` may name its result by it."""
    return {"version": uuid}
