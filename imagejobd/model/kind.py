"""What a kind of job is, and what it is given to work with.

The runner drives kinds and the kinds know nothing of it: both meet here.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import msgspec

from imagejobd.model.errors import invalid
from imagejobd.model.job import Job, Json, NewJob, Push
from imagejobd.model.reference import ImageReference
from imagejobd.model.secrets import Secret

# Of one that comes by itself.
SECRET_MAX_CHARS = 4096


class JobContext(Protocol):
    """One attempt at one job, as its kind sees it."""

    @property
    def job(self) -> Job: ...

    @property
    def secrets(self) -> Mapping[str, Secret]: ...

    def add_secret(self, secret: Secret) -> None:
        """Keep a secret that is not the job's own (a configured login) out of its log and error too."""
        ...

    def redact(self, text: str) -> str:
        """`text` without the job's secrets and those that were added."""
        ...

    @property
    def checkpoint(self) -> Mapping[str, Any]:
        """All that `save` has kept so far, by this attempt and earlier ones."""
        ...

    def phase(self, name: str, *, timeout_s: float, waits_for: str | None = None) -> AbstractAsyncContextManager[None]:
        """Record a step with its start and end. Past its limit it is stopped, and raises a `timeout` fault.

        Without `waits_for` it may take `timeout_s` in all, not counting the time in which the Docker Engine was away,
        and the fault is `Permanent`. `waits_for` names others that the step waits for (hosts, the engine): then
        `timeout_s` is the time without progress, that is without a call of `progress` that tells something new, and
        the fault is a `Temporary` that names them.
        """
        ...

    async def save(self, *, blobs: Collection[str] = (), **values: Any) -> None:
        """Merge `values` into the checkpoint, durably, and reference `blobs` from this job."""
        ...

    async def pushes(self) -> list[Push]:
        """All that was recorded of this job's pushes, by image and target."""
        ...

    async def record_pushes(self, pushes: Sequence[Push]) -> None:
        """Keep how pushes stand now, durably, each in place of what was kept of it before."""
        ...

    async def log(self, text: str) -> None:
        """Append to the job's log (redacted, bounded). Waits when the store is behind."""
        ...

    async def note(self, event: str, **data: Any) -> None:
        """Append a line to the job's history; `event` is none of a job's transitions, `data` is small JSON."""
        ...

    def progress(self, **values: Any) -> None:
        """Merge `values` into what the job shows of its progress; written at most a few times a second. Values that
        differ from the last ones are progress of the phase. `percent` is how much of the phase is done."""
        ...


class Upload(msgspec.Struct, frozen=True):
    """What a kind made of bytes that came with a request: fields for its spec, and the blobs that hold them."""

    fields: Json
    blobs: tuple[str, ...]


class Accepted(msgspec.Struct, frozen=True):
    """A spec that its kind has checked: what is stored in clear, what is stored encrypted, what it refers to."""

    spec: Json
    secrets: Mapping[str, Secret] = {}
    blobs: tuple[str, ...] = ()


class JobKind(ABC):
    """One kind of job. Stateless between jobs: what must survive is in the checkpoint.

    A new kind has a `name`, `parse` and `run`. The rest is for kinds that take files, need a peer before they start, or
    leave something behind; as it stands here there is nothing of the sort.
    """

    name: str
    # Whether all its jobs need the Docker Engine: then none is started while it does not answer. Of another kind a job
    # waits once it has found that it needs it.
    uses_engine = False
    # Whether an attempt may take no longer than `limits.job_timeout_s`. Not where what it waits for says when it is
    # enough: then an attempt takes as long as it makes progress.
    has_job_timeout = True

    @abstractmethod
    def parse(self, spec: Json, upload: Upload | None = None) -> Accepted:
        """Check and normalise a caller's spec. Raises `Permanent(invalid)` that names the field."""

    @abstractmethod
    async def run(self, ctx: JobContext) -> Json:
        """Do the work and return the result. Raises `Temporary` or `Permanent`; must be safe to repeat."""

    async def receive(self, body: AsyncIterable[bytes], spec: Json) -> Upload:
        """Take the file of a request into the content store, checked. Raises `Permanent` where it is no good.

        `spec` is what of the caller's spec came before the file, not checked yet. The file is kept until `release`,
        which the caller owes; after that only while a job refers to it.
        """
        raise invalid(f"a job of kind {self.name} takes no file")

    def release(self, upload: Upload) -> None:  # noqa: B027 - nothing is taken
        """Let go of what `receive` took."""

    async def preflight(self, job: NewJob) -> None:  # noqa: B027 - nobody is asked
        """Ask the outside world, shortly, whether a job can be done at all.

        Raises `Permanent` where it surely cannot. What cannot be known now is left to the job.
        """

    def hosts(self, job: Job) -> Collection[str]:
        """The hosts (see `model.circuit.peer_name`) without which `job` can do nothing now: while one of them does not
        answer there is no use in starting it."""
        return ()

    def images(self, job: NewJob) -> Iterable[ImageReference]:
        """The images that a job makes, and those that it copies, by which people look for it. Taken from the first on,
        `IMAGES_MAX` at most."""
        return ()

    def read_secrets(self, spec: Json, values: Json) -> dict[str, Secret]:
        """Check secrets that are given once more, for a retry of a job with `spec`, by the names that `parse` gave
        them. Raises `Permanent(invalid)`, which does not quote them."""
        for name, value in values.items():
            if not isinstance(value, str) or not 0 < len(value) <= SECRET_MAX_CHARS:
                raise invalid(f"secrets.{name[:80]} must be a text of 1 to {SECRET_MAX_CHARS} characters")
        return {name: Secret(value) for name, value in values.items()}

    async def leftovers(self) -> set[str]:
        """UUIDs of all jobs, live or not, that something in the outside world still belongs to."""
        return set()

    async def discard(self, uuid: str, checkpoint: Mapping[str, Any]) -> None:  # noqa: B027 - nothing is made
        """Remove everything a job made outside the store. Safe to repeat; absent things are fine."""


def by_name(*kinds: JobKind) -> dict[str, JobKind]:
    """Kinds as the runner and the APIs look them up."""
    return {kind.name: kind for kind in kinds}
