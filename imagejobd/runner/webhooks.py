"""Webhooks: who is told of the ends of jobs, signed, at least once.

Those of the configuration hear of every end that concerns them, in order. It is read out of the store's history, where
every end is: also of jobs that were cancelled in the queue, expired there, or set aside after a crash. How far each has
come is on disk, so that what happens while it, or this daemon, is away is told later. One that does not answer holds up
only itself. A job may bring a webhook of its own, which hears of that job alone.
"""

import asyncio
import random
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import aiohttp
import msgspec
import structlog

from imagejobd.model.bounds import Seconds
from imagejobd.model.clock import now_ms, utc
from imagejobd.model.egress import Egress
from imagejobd.model.errors import Fault, Temporary, invalid
from imagejobd.model.job import ENDINGS, Job, JobId, Json, State, log_image
from imagejobd.model.resolver import Resolver
from imagejobd.model.webhook import SECRET_MAX_BYTES, Receiver
from imagejobd.store.protocol import Store
from imagejobd.store.webhooks import DueWebhook

POLL_S = 1.0
RETRY_FIRST_S, RETRY_MAX_S = 2.0, 600.0
# Far past the ceiling, and far from where a float ends.
DOUBLINGS_MAX = 30
STORE_RETRY_S = 10.0
ANSWER_TIMEOUT_S = 15.0
# Places at which jobs' own webhooks are told at once, and those of one tenant: who hangs holds up nobody else.
OWN_AT_ONCE, OWN_OF_TENANT = 16, 8
OWN_LOOKED_AT = 200
OWN_GIVE_UP_AFTER_S = 24 * 3600.0
# A result that is longer, as that of a distribution of thousands, is for the API to show.
RESULT_MAX_BYTES = 16 * 1024
DELIVERED, REFUSED, GIVEN_UP = "delivered", "refused", "given_up"
# The name of the webhooks that jobs bring.
OWN = "job"
# By these a receiver says that it may take later what it does not take now.
_BUSY = frozenset({408, 425, 429})
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")

# Tenant and host: what one tenant's does, at a host that many use, is nothing to the others.
Place = tuple[str, str]
R = TypeVar("R")

_encode = msgspec.json.Encoder().encode

log = structlog.get_logger("imagejobd.webhooks")


class WebhookSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[webhooks.NAME]`: where ends of jobs are told. `secret_file` holds the key of the signatures; `states`, `kinds`
    and `tenants` say which jobs it is about (empty: all); after `give_up_after_s` an end is told no more."""

    url: str
    secret_file: str
    states: tuple[Literal["succeeded", "failed", "cancelled"], ...] = ("succeeded", "failed", "cancelled")
    kinds: tuple[str, ...] = ()
    tenants: tuple[str, ...] = ()
    give_up_after_s: Seconds = 24 * 3600.0


class Webhook(NamedTuple):
    """One of the configuration, checked."""

    name: str
    receiver: Receiver
    settings: WebhookSettings


class Refusal(Exception):
    """A delivery failed. `status` is the receiver's, None without an answer; `is_final` when it must not come again."""

    def __init__(self, message: str, status: int | None = None, *, is_final: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.is_final = is_final


def read_webhooks(tables: Mapping[str, WebhookSettings]) -> list[Webhook]:
    """Raises `Permanent(invalid)` that names the key which cannot be used."""
    return [_read(name, settings) for name, settings in tables.items()]


class Webhooks:
    """Tells the webhooks of the configuration, and those of single jobs. Run it beside the rest of the daemon; `egress`
    says which addresses they may have, and `resolver` finds those.

    `counts` has, by webhook (`OWN`: those of jobs) and outcome, messages that were delivered or given_up, and tries
    that were refused.
    """

    def __init__(self, webhooks: list[Webhook], store: Store, egress: Egress, resolver: Resolver) -> None:
        self._webhooks = webhooks
        self._store = store
        self._records = store.webhooks
        self._egress = egress
        self._resolver = resolver
        names = [OWN, *(webhook.name for webhook in webhooks)]
        self.counts = {(name, outcome): 0 for name in names for outcome in (DELIVERED, REFUSED, GIVEN_UP)}

    async def run(self) -> None:
        """Tell every end that comes, until cancelled."""
        await self._surely(partial(self._records.begin, [webhook.name for webhook in self._webhooks]))
        connector = aiohttp.TCPConnector(
            resolver=self._resolver,
            use_dns_cache=False,
            happy_eyeballs_delay=None,
            force_close=True,
            socket_factory=self._egress.open_socket,
        )
        async with (
            aiohttp.ClientSession(
                connector=connector,
                timeout=aiohttp.ClientTimeout(ANSWER_TIMEOUT_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
                headers={"User-Agent": "imagejobd", "Content-Type": "application/json"},
            ) as session,
            asyncio.TaskGroup() as loops,
        ):
            loops.create_task(self._own_loop(session), name="webhooks of jobs")
            for webhook in self._webhooks:
                loops.create_task(self._loop(webhook, session), name=f"webhook {webhook.name}")

    async def _loop(self, webhook: Webhook, session: aiohttp.ClientSession) -> None:
        settings = webhook.settings
        next_end = partial(
            self._records.next_end,
            webhook.name,
            moves=[ENDINGS[State(state)] for state in settings.states],
            kinds=settings.kinds,
            tenants=settings.tenants,
        )
        tries = 0
        while True:
            end = await self._surely(next_end)
            if end is None:
                await asyncio.sleep(POLL_S)
                continue
            tries += 1
            message = partial(self._message, end.job_id, end.event_id)
            spent_s = (now_ms() - end.at_ms) / 1000
            report = await self._try(
                webhook.name, webhook.receiver, message, session, tries, is_last=spent_s >= settings.give_up_after_s
            )
            if report is None:
                await asyncio.sleep(delay_s(tries))
            else:
                tries = 0
                await self._surely(partial(self._records.delivered, webhook.name, end, report))

    async def _own_loop(self, session: aiohttp.ClientSession) -> None:
        under_way: dict[Place, asyncio.Task[None]] = {}
        async with asyncio.TaskGroup() as tasks:
            while True:
                for place, batch in (await self._own_batches(under_way)).items():
                    under_way[place] = tasks.create_task(self._tell_own(batch, session), name=f"webhooks of {place}")
                if under_way:
                    await asyncio.wait(under_way.values(), timeout=POLL_S, return_when=asyncio.FIRST_COMPLETED)
                else:
                    await asyncio.sleep(POLL_S)
                under_way = {place: task for place, task in under_way.items() if not task.done()}

    async def _own_batches(self, busy: Collection[Place]) -> Mapping[Place, list[DueWebhook]]:
        """What is to be told next, beside what is told at the `busy` places; no tenant gets more than its share."""
        batches: dict[Place, list[DueWebhook]] = {}
        places = Counter(tenant for tenant, _ in busy)
        # Whoever has many that are due hides nobody else's.
        passed = {tenant for tenant, count in places.items() if count >= OWN_OF_TENANT}
        while len(busy) + len(batches) < OWN_AT_ONCE:
            due = await self._surely(partial(self._records.due, limit=OWN_LOOKED_AT, except_tenants=passed))
            if not due:
                break
            for webhook in due:
                place = (webhook.tenant, webhook.receiver.host if webhook.receiver else "")
                if place in batches:
                    batches[place].append(webhook)
                elif place not in busy and places.total() < OWN_AT_ONCE and places[webhook.tenant] < OWN_OF_TENANT:
                    batches[place] = [webhook]
                    places[webhook.tenant] += 1
            passed |= {webhook.tenant for webhook in due}
        return batches

    async def _tell_own(self, webhooks: list[DueWebhook], session: aiohttp.ClientSession) -> None:
        """Tell those that are at one place. Where one is not taken, those behind it wait as well."""
        for number, webhook in enumerate(webhooks):
            report = await self._try_own(webhook, session)
            if report is None:
                for other in webhooks[number:]:
                    delay_ms = int(delay_s(other.tries + 1) * 1000)
                    await self._surely(partial(self._records.postpone, other.uuid, delay_ms))
                return
            await self._surely(partial(self._records.settle, webhook, report))

    async def _try_own(self, webhook: DueWebhook, session: aiohttp.ClientSession) -> Json | None:
        """As `_try`."""
        if webhook.receiver is None:
            return {"webhook": OWN, "delivered": False, "error": "another secrets key has sealed it"}
        message = partial(self._message, webhook.job_id, "end")
        is_last = (now_ms() - webhook.at_ms) / 1000 >= OWN_GIVE_UP_AFTER_S
        return await self._try(OWN, webhook.receiver, message, session, webhook.tries + 1, is_last=is_last)

    async def _surely(self, act: Callable[[], Awaitable[R]]) -> R:
        """What `act` returns, as soon as the store does not refuse it for the moment (a full disk)."""
        while True:
            try:
                return await act()
            except Temporary as fault:
                log.error("webhooks wait for the store", error=fault.message)
                await asyncio.sleep(STORE_RETRY_S)

    async def _message(self, job_id: JobId, event: int | str) -> tuple[str, bytes] | None:
        """Id and body of what is told of a job that has ended; None where retention has taken it."""
        job = await self._surely(partial(self._store.get_by_id, job_id, tenant=None))
        return None if job is None else (f"{job.uuid}-{event}", payload(job))

    async def _try(
        self,
        name: str,
        receiver: Receiver,
        message: Callable[[], Awaitable[tuple[str, bytes] | None]],
        session: aiohttp.ClientSession,
        tries: int,
        *,
        is_last: bool,
    ) -> Json | None:
        """Deliver a message; what came of it, for the job's history. None where it is to be tried again."""
        if (content := await message()) is None:
            return {}
        report: Json = {"webhook": name, "tries": tries}
        try:
            status = await _post(receiver, *content, session)
        except Refusal as refusal:
            self.counts[name, REFUSED] += 1
            report |= {"status": refusal.status, "error": str(refusal), "delivered": False}
            if tries == 1 or refusal.is_final or is_last:
                log.warning("a webhook is not taken", message=content[0], **report)
            if not (refusal.is_final or is_last):
                return None
            self.counts[name, GIVEN_UP] += 1
            return report
        self.counts[name, DELIVERED] += 1
        return report | {"status": status, "delivered": True}


async def _post(receiver: Receiver, message_id: str, body: bytes, session: aiohttp.ClientSession) -> int:
    """The status of a receiver that took it. Raises `Refusal`."""
    headers = receiver.signed_headers(message_id, now_ms() // 1000, body)
    try:
        async with session.post(receiver.url, data=body, headers=headers, allow_redirects=False) as answer:
            status = answer.status
    except Fault as fault:
        raise Refusal(fault.message) from None
    except TimeoutError:
        raise Refusal(f"no answer within {ANSWER_TIMEOUT_S:g} s") from None
    except aiohttp.ClientConnectorError as error:
        raise Refusal(f"no connection to {receiver.host}: {error.os_error.strerror or 'refused'}") from None
    except aiohttp.ClientError as error:
        # Its own words may hold the whole URL.
        raise Refusal(f"{receiver.host} broke off the answer ({type(error).__name__})") from None
    if 200 <= status < 300:
        return status
    raise Refusal(f"answered {status}", status, is_final=400 <= status < 500 and status not in _BUSY)


def payload(job: Job) -> bytes:
    """What is told of a job that has ended, as JSON; the API has the rest."""
    ended_at = utc(job.finished_ms or 0)
    result = job.result if job.result is not None and len(_encode(job.result)) <= RESULT_MAX_BYTES else None
    data: Json = {
        "id": job.uuid,
        "number": job.id,
        "kind": job.kind,
        "state": job.state,
        "tenant": job.tenant,
        **log_image(job),
        "labels": job.labels,
        "error": job.error,
        "result": result,
        "attempt": job.attempt,
        "retry_of": job.retry_of,
        "created_at": utc(job.created_ms),
        "started_at": None if job.started_ms is None else utc(job.started_ms),
        "finished_at": ended_at,
    }
    return _encode({"type": f"job.{job.state}", "timestamp": ended_at, "data": data})


def delay_s(tries: int) -> float:
    """Seconds until the next try: twice as long each time, with jitter over the upper half."""
    ceiling_s = min(RETRY_MAX_S, RETRY_FIRST_S * 2.0 ** min(tries - 1, DOUBLINGS_MAX))
    return ceiling_s * (0.5 + 0.5 * random.random())  # noqa: S311 - spreads load, guards nothing


def _read(name: str, settings: WebhookSettings) -> Webhook:
    key = f"webhooks.{name}"
    if name == OWN:
        raise invalid(f"{key}: that is how the webhooks are called which jobs bring; choose another name")
    if not _NAME.fullmatch(name):
        raise invalid(f"{key}: a webhook's name is of a-z, 0-9, _ and -, at most 64, and begins with a letter or digit")
    where = f"{key}.secret_file: {settings.secret_file}"
    try:
        with Path(settings.secret_file).open("rb") as file:
            secret = file.read(2 * SECRET_MAX_BYTES).strip().decode()
    except (OSError, ValueError) as error:
        raise invalid(f"{where}: {error.strerror if isinstance(error, OSError) else 'it is no text'}") from None
    receiver = Receiver.parse(settings.url, secret, url_name=f"{key}.url", secret_name=where)
    return Webhook(name, receiver, settings)
