"""Webhooks: whoever is configured hears of every end of a job, signed, at least once and in order.

What is to be told is read out of the store's history, where every end is: also of jobs that were cancelled in the
queue, expired there, or set aside after a crash. How far a webhook has come is on disk, so that what happens while it,
or this daemon, is away is told later. One that does not answer holds up only itself.

The form is that of the Standard Webhooks specification (standardwebhooks.com), for which most languages have a library:
`webhook-id`, `webhook-timestamp`, and in `webhook-signature` `v1,` with the base64 of an HMAC-SHA256 over
`<id>.<timestamp>.<body>`.
"""

import asyncio
import base64
import binascii
import hashlib
import hmac
import os
import random
import re
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Literal, NamedTuple, TypeVar

import aiohttp
import msgspec
import structlog
from yarl import URL

from imagejobd.model.bounds import Seconds
from imagejobd.model.clock import now_ms, utc
from imagejobd.model.egress import Egress
from imagejobd.model.errors import Fault, Temporary, invalid
from imagejobd.model.job import Job, Json, Transition, log_image
from imagejobd.store.protocol import JobEnd, Store, WebhookPlaces

POLL_S = 1.0
RETRY_FIRST_S, RETRY_MAX_S = 2.0, 600.0
# Far past the ceiling, and far from where a float ends.
DOUBLINGS_MAX = 30
STORE_RETRY_S = 10.0
ANSWER_TIMEOUT_S = 15.0
# RFC 2104 §3: shorter keys make the signature weaker than the hash.
SECRET_MIN_BYTES = 24
SECRET_MAX_BYTES = 1024
# A result that is longer, as that of a distribution of thousands, is for the API to show.
RESULT_MAX_BYTES = 16 * 1024
DELIVERED, REFUSED, GIVEN_UP = "delivered", "refused", "given_up"
_SECRET_PREFIX = b"whsec_"
# By these a receiver says that it may take later what it does not take now.
_BUSY = frozenset({408, 425, 429})
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")

_MOVES = {"succeeded": Transition.SUCCEED, "failed": Transition.FAIL, "cancelled": Transition.CANCEL}

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
    """One receiver, checked."""

    name: str
    url: URL
    secret: bytes
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
    """Tells all `webhooks`. Run it beside the rest of the daemon; `egress` says which addresses they may have.

    `counts` has, by webhook and outcome, messages that were delivered or given_up, and tries that were refused.
    """

    def __init__(self, webhooks: list[Webhook], store: Store, places: WebhookPlaces, egress: Egress) -> None:
        self._webhooks = webhooks
        self._store = store
        self._places = places
        self._egress = egress
        names = [webhook.name for webhook in webhooks]
        self.counts = {(name, outcome): 0 for name in names for outcome in (DELIVERED, REFUSED, GIVEN_UP)}

    async def run(self) -> None:
        """Tell every end that comes, until cancelled."""
        await self._surely(partial(self._places.begin, [webhook.name for webhook in self._webhooks]))
        connector = aiohttp.TCPConnector(
            resolver=aiohttp.ThreadedResolver(),
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
            for webhook in self._webhooks:
                loops.create_task(self._loop(webhook, session), name=f"webhook {webhook.name}")
            await asyncio.Event().wait()

    async def _loop(self, webhook: Webhook, session: aiohttp.ClientSession) -> None:
        settings = webhook.settings
        next_end = partial(
            self._places.next_end,
            webhook.name,
            moves=[_MOVES[state] for state in settings.states],
            kinds=settings.kinds,
            tenants=settings.tenants,
        )
        while True:
            end = await self._surely(next_end)
            if end is None:
                await asyncio.sleep(POLL_S)
                continue
            report = await self._tell(webhook, end, session)
            await self._surely(partial(self._places.delivered, webhook.name, end, report))

    async def _surely(self, act: Callable[[], Awaitable[R]]) -> R:
        """What `act` returns, as soon as the store does not refuse it for the moment (a full disk)."""
        while True:
            try:
                return await act()
            except Temporary as fault:
                log.error("webhooks wait for the store", error=fault.message)
                await asyncio.sleep(STORE_RETRY_S)

    async def _tell(self, webhook: Webhook, end: JobEnd, session: aiohttp.ClientSession) -> Json:
        """Deliver one end, or give it up; what came of it, for the job's history."""
        job = await self._surely(partial(self._store.get_by_id, end.job_id, tenant=None))
        if job is None:
            return {}
        tries = 0
        while True:
            tries += 1
            try:
                status = await self._post(webhook, f"{job.uuid}-{end.event_id}", payload(job, end), session)
            except Refusal as refusal:
                self.counts[webhook.name, REFUSED] += 1
                report = {"webhook": webhook.name, "tries": tries, "status": refusal.status, "error": str(refusal)}
                spent_s = (now_ms() - end.at_ms) / 1000
                if refusal.is_final or spent_s >= webhook.settings.give_up_after_s:
                    self.counts[webhook.name, GIVEN_UP] += 1
                    log.warning("a webhook was given up", job=job.uuid, **report)
                    return report | {"delivered": False}
                if tries == 1:
                    log.warning("a webhook is not taken; it is tried again", job=job.uuid, **report)
                await asyncio.sleep(delay_s(tries))
            else:
                self.counts[webhook.name, DELIVERED] += 1
                return {"webhook": webhook.name, "tries": tries, "status": status, "delivered": True}

    async def _post(self, webhook: Webhook, message_id: str, body: bytes, session: aiohttp.ClientSession) -> int:
        """The status of a receiver that took it. Raises `Refusal`."""
        headers = signed_headers(webhook.secret, message_id, now_ms() // 1000, body)
        try:
            async with session.post(webhook.url, data=body, headers=headers, allow_redirects=False) as answer:
                status = answer.status
        except Fault as fault:
            raise Refusal(fault.message) from None
        except TimeoutError:
            raise Refusal(f"no answer within {ANSWER_TIMEOUT_S:g} s") from None
        except aiohttp.ClientConnectorError as error:
            raise Refusal(f"no connection to {webhook.url.host}: {error.os_error.strerror or 'refused'}") from None
        except aiohttp.ClientError as error:
            # Its own words may hold the whole URL.
            raise Refusal(f"{webhook.url.host} broke off the answer ({type(error).__name__})") from None
        if 200 <= status < 300:
            return status
        raise Refusal(f"answered {status}", status, is_final=400 <= status < 500 and status not in _BUSY)


def payload(job: Job, end: JobEnd) -> bytes:
    """What is told of an end, as JSON; the API has the rest."""
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
        "finished_at": utc(end.at_ms),
    }
    return _encode({"type": f"job.{job.state}", "timestamp": utc(end.at_ms), "data": data})


def signed_headers(secret: bytes, message_id: str, timestamp_s: int, body: bytes) -> dict[str, str]:
    """As the Standard Webhooks specification has them."""
    text = f"{message_id}.{timestamp_s}.".encode() + body
    signature = base64.b64encode(hmac.digest(secret, text, hashlib.sha256)).decode()
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp_s),
        "webhook-signature": f"v1,{signature}",
    }


def delay_s(tries: int) -> float:
    """Seconds until the next try: twice as long each time, with jitter over the upper half."""
    ceiling_s = min(RETRY_MAX_S, RETRY_FIRST_S * 2.0 ** min(tries - 1, DOUBLINGS_MAX))
    return ceiling_s * (0.5 + 0.5 * random.random())  # noqa: S311 - spreads load, guards nothing


def _read(name: str, settings: WebhookSettings) -> Webhook:
    key = f"webhooks.{name}"
    if not _NAME.fullmatch(name):
        raise invalid(f"{key}: a webhook's name is of a-z, 0-9, _ and -, at most 64, and begins with a letter or digit")
    try:
        url = URL(settings.url)
    except ValueError:
        url = URL()
    if url.scheme not in ("http", "https") or not url.host:
        raise invalid(f"{key}.url is not an http(s) URL, such as https://ci.example/hooks/imagejobd")
    if url.user or url.password:
        raise invalid(f"{key}.url holds a user or password; the signature says who sends it")
    return Webhook(name, url, _secret(f"{key}.secret_file: {settings.secret_file}", settings.secret_file), settings)


def _secret(where: str, file: str) -> bytes:
    try:
        # A FIFO would block whoever opens it until somebody writes to it.
        with open(file, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as opened:
            secret = opened.read(SECRET_MAX_BYTES + 1).strip()
    except (OSError, ValueError) as error:
        raise invalid(f"{where}: {error.strerror if isinstance(error, OSError) else 'not a path'}") from None
    if secret.startswith(_SECRET_PREFIX):
        try:
            secret = base64.b64decode(secret.removeprefix(_SECRET_PREFIX), validate=True)
        except binascii.Error:
            raise invalid(f"{where}: what follows whsec_ is not base64") from None
    if not SECRET_MIN_BYTES <= len(secret) <= SECRET_MAX_BYTES:
        raise invalid(f"{where} holds {len(secret)} bytes; {SECRET_MIN_BYTES} to {SECRET_MAX_BYTES} are needed")
    return secret
