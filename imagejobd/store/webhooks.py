"""What the store keeps for webhooks: how far each of the configuration has come, and who hears of single jobs."""

from collections.abc import Collection
from typing import Protocol

import msgspec

from imagejobd.model.job import JobId, Json, Transition
from imagejobd.model.webhook import Receiver


class JobEnd(msgspec.Struct, frozen=True):
    """A job's end in the history: which event it is, and when it was (epoch milliseconds)."""

    event_id: int
    at_ms: int
    job_id: JobId


class DueWebhook(msgspec.Struct, frozen=True):
    """A job that has ended (`at_ms`, epoch milliseconds) and whose own webhook was not told; `tries` says how often
    that was tried. `receiver` is None where another key has sealed it."""

    uuid: str
    job_id: JobId
    tenant: str
    at_ms: int
    tries: int
    receiver: Receiver | None


class WebhookRecords(Protocol):
    """How far each webhook of the configuration has come in the history, and who is to be told of single jobs; durably.
    Raises what the store does."""

    async def attach(self, uuid: str, receiver: Receiver) -> None:
        """Tell `receiver` of the end of the job with that UUID, which is about to be made."""
        ...

    async def detach(self, uuid: str) -> None:
        """There is no such job, after all."""
        ...

    async def due(self, *, limit: int, except_tenants: Collection[str] = ()) -> list[DueWebhook]:
        """The next of the jobs' own webhooks to be told, but for those of some tenants."""
        ...

    async def postpone(self, uuid: str, delay_ms: int) -> None:
        """It was tried in vain."""
        ...

    async def settle(self, webhook: DueWebhook, report: Json) -> None:
        """It was told, or given up: forget it, and keep the report in the job's history."""
        ...

    async def begin(self, names: Collection[str]) -> None:
        """These are the webhooks now: one that is new begins with what happens next, all others are forgotten."""
        ...

    async def next_end(
        self, name: str, *, moves: Collection[Transition], kinds: Collection[str], tenants: Collection[str]
    ) -> JobEnd | None:
        """The first end by one of `moves` that it was not told of; an empty list of kinds or tenants stands for all."""
        ...

    async def delivered(self, name: str, end: JobEnd, report: Json) -> None:
        """It was told of `end`, or that was given up: go on behind it, and keep the report in the job's history."""
        ...
