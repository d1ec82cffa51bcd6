"""How far each webhook of the configuration has come in the history, who is to be told of single jobs, and what
deliveries came to."""

from collections.abc import Collection
from sqlite3 import Row

import msgspec

from imagejobd.model.clock import now_ms
from imagejobd.model.errors import Permanent
from imagejobd.model.job import JobId, Json, Transition
from imagejobd.model.secrets import Secret
from imagejobd.model.webhook import Receiver
from imagejobd.store.protocol import EVENT_TOPIC, job_topic
from imagejobd.store.sqlite.database import load
from imagejobd.store.sqlite.readers import Readers
from imagejobd.store.sqlite.writer import Transaction, Writer
from imagejobd.store.vault import Vault
from imagejobd.store.webhooks import DueWebhook, JobEnd

# Events that one statement looks through. After as many of which none is an end that a webhook wants, that is written
# down, so that the next start does not look through them again.
EVENTS_AT_ONCE = 10_000
# How long before its job a webhook may have been written.
JOBLESS_MAX_MS = 24 * 3600 * 1000

_SQL = load("webhooks")
_encode = msgspec.json.Encoder().encode


class WebhookRecords:
    """Implements `store.webhooks.WebhookRecords`."""

    def __init__(self, writer: Writer, readers: Readers, vault: Vault) -> None:
        self._writer = writer
        self._readers = readers
        self._vault = vault
        # By webhook: up to where there is nothing for it, beyond what is written down.
        self._looked_through: dict[str, int] = {}

    async def begin(self, names: Collection[str]) -> None:
        values = {"names": _encode(list(names)).decode()}

        def act(tx: Transaction) -> None:
            tx.db.execute(_SQL["begin"], values)
            tx.db.execute(_SQL["forget_others"], values)
            tx.db.execute(_SQL["forget_jobless"], {"before_ms": tx.now_ms - JOBLESS_MAX_MS})

        await self._writer.do(act)

    async def next_end(
        self, name: str, *, moves: Collection[Transition], kinds: Collection[str], tenants: Collection[str]
    ) -> JobEnd | None:
        wanted = {
            key: _encode(list(values)).decode()
            for key, values in (("moves", moves), ("kinds", kinds), ("tenants", tenants))
        }
        [place] = await self._readers.all(_SQL["place"], {"name": name})
        written, last = place["event_id"], place["last_id"]
        after = max(written, self._looked_through.get(name, 0))
        while after < last:
            upto = min(last, after + EVENTS_AT_ONCE)
            row = await self._readers.first(_SQL["next_end"], wanted | {"after": after, "upto": upto})
            if row is not None:
                return JobEnd(row["event_id"], row["at_ms"], JobId(row["job_id"]))
            self._looked_through[name] = after = upto
            if after - written >= EVENTS_AT_ONCE:
                await self._advance(name, after)
                written = after
        return None

    async def delivered(self, name: str, end: JobEnd, report: Json) -> None:
        values = {"job_id": end.job_id, "data": _encode(report).decode()}

        def act(tx: Transaction) -> None:
            tx.db.execute(_SQL["advance"], {"name": name, "event_id": end.event_id})
            tx.db.execute(_SQL["note"], values | {"now_ms": tx.now_ms})
            tx.publish(job_topic(end.job_id))
            tx.publish(EVENT_TOPIC)

        await self._writer.do(act)

    async def attach(self, uuid: str, receiver: Receiver) -> None:
        sealed = self._vault.seal(uuid, {"url": Secret(receiver.url), "secret": receiver.secret})
        await self._write("attach", uuid=uuid, sealed=sealed)

    async def detach(self, uuid: str) -> None:
        await self._write("detach", uuid=uuid)

    async def due(self, *, limit: int, except_tenants: Collection[str] = ()) -> list[DueWebhook]:
        values = {"now_ms": now_ms(), "limit": limit, "except_tenants": _encode(list(except_tenants)).decode()}
        rows = await self._readers.all(_SQL["due"], values)
        return [
            DueWebhook(
                row["uuid"], JobId(row["job_id"]), row["tenant"], row["at_ms"], row["tries"], self._receiver(row)
            )
            for row in rows
        ]

    async def postpone(self, uuid: str, delay_ms: int) -> None:
        await self._write("postpone", uuid=uuid, due_ms=now_ms() + delay_ms)

    async def settle(self, webhook: DueWebhook, report: Json) -> None:
        values = {"job_id": webhook.job_id, "uuid": webhook.uuid, "data": _encode(report).decode()}

        def act(tx: Transaction) -> None:
            tx.db.execute(_SQL["detach"], values)
            tx.db.execute(_SQL["note"], values | {"now_ms": tx.now_ms})
            tx.publish(job_topic(webhook.job_id))
            tx.publish(EVENT_TOPIC)

        await self._writer.do(act)

    def _receiver(self, row: Row) -> Receiver | None:
        try:
            fields = self._vault.open(row["uuid"], row["sealed"])
        except Permanent:
            return None
        return Receiver(fields["url"].reveal(), fields["secret"])

    async def _write(self, statement: str, **values: str | int | bytes) -> None:
        await self._writer.do(lambda tx: tx.db.execute(_SQL[statement], {"now_ms": tx.now_ms} | values).rowcount)

    async def _advance(self, name: str, event_id: int) -> None:
        values = {"name": name, "event_id": event_id}
        await self._writer.do(lambda tx: tx.db.execute(_SQL["advance"], values).rowcount)
