"""Webhooks: every end is told, signed, at least once and in order, to whom it concerns."""

import asyncio
import base64
import hashlib
import hmac
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from runner_bench import END_TIMEOUT_S, Bench

from harness.webhook_receiver import WebhookReceiver
from imagejobd.model.egress import Egress, EgressSettings
from imagejobd.model.errors import ErrorCode, Permanent
from imagejobd.model.job import Enqueued, JobError, State
from imagejobd.runner import webhooks
from imagejobd.runner.webhooks import Webhooks, WebhookSettings, delay_s, read_webhooks, signed_headers
from imagejobd.store.protocol import Capacity, Ending
from imagejobd.store.sqlite import webhook_records

SECRET = b"0123456789abcdef0123456789abcdef"


@pytest.fixture
def receiver() -> Iterator[WebhookReceiver]:
    with WebhookReceiver() as receiver:
        yield receiver


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "POLL_S", 0.01)
    monkeypatch.setattr(webhooks, "RETRY_FIRST_S", 0.01)


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    file = tmp_path / "webhook.secret"
    file.write_bytes(SECRET + b"\n")
    return file


@asynccontextmanager
async def telling(
    bench: Bench, receiver: WebhookReceiver, secret_file: Path, egress: Egress | None = None, **settings: Any
) -> AsyncIterator[None]:
    """One webhook at work; it has begun when the block does."""
    table = WebhookSettings(url=f"{receiver.url}/hook?token=hidden", secret_file=str(secret_file), **settings)
    await bench.store.webhooks.begin(["ci"])
    sender = Webhooks(read_webhooks({"ci": table}), bench.store, bench.store.webhooks, egress or Egress())
    task = asyncio.create_task(sender.run())
    try:
        yield sender
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def came(receiver: WebhookReceiver, count: int) -> list[Any]:
    """The first so many messages."""
    async with asyncio.timeout(END_TIMEOUT_S):
        while len(receiver.messages) < count:
            await asyncio.sleep(0.005)
    return [message.json for message in receiver.messages]


async def reports(bench: Bench, job: Enqueued, count: int = 1) -> list[Any]:
    """What the job's own history says of its deliveries, once there are so many."""
    async with asyncio.timeout(END_TIMEOUT_S):
        while True:
            events = await bench.store.changes_since(0, job_id=job.id, limit=100)
            found = [event.data for event in events if event.type == "webhook"]
            if len(found) >= count:
                return found
            await asyncio.sleep(0.005)


async def end(bench: Bench, ending: Ending, **fields: Any) -> Enqueued:
    made = await bench.enqueue(**fields)
    (claim,) = await bench.store.claim("w", Capacity({"noop": 1}, 9))
    await bench.store.finish(claim, ending)
    return made


async def test_every_end_is_told(bench: Bench, receiver: WebhookReceiver, secret_file: Path) -> None:
    """Succeeded, failed, cancelled and expired in the queue, set aside after a crash: in this order, once each."""
    async with telling(bench, receiver, secret_file):
        made = [await end(bench, Ending(State.SUCCEEDED, result={"digest": "sha256:1"}), labels={"a": "b"})]
        made.append(await end(bench, Ending(State.FAILED, error=JobError(ErrorCode.BUILD_FAILED, "exit code 1"))))
        made.append(await bench.enqueue())
        await bench.store.request_cancel(made[-1].uuid, tenant=None)
        made.append(await bench.enqueue())
        await bench.store.expire(due_before_ms=2**50)
        made.append(await bench.enqueue())
        await bench.store.claim("dead", Capacity({"noop": 1}, 9))
        await bench.store.rescue("alive", crashes_max=1)
        messages = await came(receiver, 5)
        await reports(bench, made[-1])
    assert len(receiver.messages) == 5
    assert [message["data"]["id"] for message in messages] == [job.uuid for job in made]
    types = ["job.succeeded", "job.failed", "job.cancelled", "job.failed", "job.failed"]
    assert [message["type"] for message in messages] == types
    codes = [message["data"]["error"] and message["data"]["error"]["code"] for message in messages]
    assert codes == [None, "build_failed", None, "timeout", "quarantined"]
    assert (messages[0]["data"]["labels"], messages[0]["data"]["result"]) == ({"a": "b"}, {"digest": "sha256:1"})


async def test_messages_are_signed(bench: Bench, receiver: WebhookReceiver, secret_file: Path) -> None:
    """By the Standard Webhooks specification, over id, time and body, and with an id that is the message's own."""
    async with telling(bench, receiver, secret_file):
        for _ in range(2):
            await end(bench, Ending(State.SUCCEEDED))
        await came(receiver, 2)
    ids = set()
    for headers, body in receiver.messages:
        message_id, timestamp = headers["webhook-id"], headers["webhook-timestamp"]
        text = f"{message_id}.{timestamp}.".encode() + body
        expected = base64.b64encode(hmac.new(SECRET, text, hashlib.sha256).digest()).decode()
        assert headers["webhook-signature"] == f"v1,{expected}"
        assert headers["Content-Type"] == "application/json"
        ids.add(message_id)
    assert len(ids) == 2


def test_the_specifications_own_example() -> None:
    """The signature of the specification's test vector."""
    secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    body = b'{"test": 2432232314}'
    headers = signed_headers(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


async def test_who_is_away_is_told_later(bench: Bench, receiver: WebhookReceiver, secret_file: Path) -> None:
    """It is tried again, those behind wait, and the job's history says how often it was tried."""
    receiver.statuses.extend([500, 503, 429, 302])
    async with telling(bench, receiver, secret_file):
        first = await end(bench, Ending(State.SUCCEEDED))
        second = await end(bench, Ending(State.SUCCEEDED))
        messages = await came(receiver, 6)
        assert await reports(bench, first) == [{"webhook": "ci", "tries": 5, "status": 204, "delivered": True}]
        assert await reports(bench, second) == [{"webhook": "ci", "tries": 1, "status": 204, "delivered": True}]
    assert [message["data"]["id"] for message in messages] == [first.uuid] * 5 + [second.uuid]
    assert len({message.headers["webhook-id"] for message in receiver.messages}) == 2


async def test_a_refusal_for_good_holds_up_nobody(bench: Bench, receiver: WebhookReceiver, secret_file: Path) -> None:
    """A 4xx is not tried again, and neither is what is older than it may be."""
    receiver.statuses.append(410)
    async with telling(bench, receiver, secret_file) as sender:
        refused = await end(bench, Ending(State.SUCCEEDED))
        later = await end(bench, Ending(State.SUCCEEDED))
        (report,) = await reports(bench, refused)
        assert (report["delivered"], report["status"], report["tries"]) == (False, 410, 1)
        assert (await reports(bench, later))[0]["delivered"]
    assert sender.counts == {("ci", "delivered"): 1, ("ci", "refused"): 1, ("ci", "given_up"): 1}
    receiver.statuses.extend([500] * 9)
    async with telling(bench, receiver, secret_file, give_up_after_s=0.001):
        late = await end(bench, Ending(State.SUCCEEDED))
        (report,) = await reports(bench, late)
    assert (report["delivered"], report["status"], report["error"]) == (False, 500, "answered 500")


async def test_only_whom_it_concerns(
    bench: Bench, receiver: WebhookReceiver, secret_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs of other tenants, kinds and states are passed over, also where they are many."""
    monkeypatch.setattr(webhook_records, "EVENTS_AT_ONCE", 3)
    failed = Ending(State.FAILED, error=JobError(ErrorCode.INTERNAL, "x"))
    async with telling(bench, receiver, secret_file, states=("failed",), tenants=("7",), kinds=("noop",)):
        await end(bench, failed, tenant="8")
        await end(bench, Ending(State.SUCCEEDED), tenant="7")
        wanted = await end(bench, failed, tenant="7")
        (message,) = await came(receiver, 1)
        await reports(bench, wanted)
    assert message["data"]["id"] == wanted.uuid
    assert len(receiver.messages) == 1


async def test_egress_rules_hold(bench: Bench, receiver: WebhookReceiver, secret_file: Path) -> None:
    """An address that is off limits is not connected to, and the history says why nobody was told."""
    egress = Egress(EgressSettings(allow_private=False))
    async with telling(bench, receiver, secret_file, egress, give_up_after_s=0.001):
        made = await end(bench, Ending(State.SUCCEEDED))
        (report,) = await reports(bench, made)
    assert not receiver.messages
    assert report["delivered"] is False
    assert "allow_private" in report["error"]
    assert "hidden" not in str(report)


async def test_what_was_told_is_not_told_again(bench: Bench, receiver: WebhookReceiver, secret_file: Path) -> None:
    """After a restart it goes on where it was; what happened meanwhile comes first."""
    async with telling(bench, receiver, secret_file):
        first = await end(bench, Ending(State.SUCCEEDED))
        await reports(bench, first)
    meanwhile = await end(bench, Ending(State.SUCCEEDED))
    async with telling(bench, receiver, secret_file):
        last = await end(bench, Ending(State.SUCCEEDED))
        await reports(bench, last)
    told = [message.json["data"]["id"] for message in receiver.messages]
    assert told == [first.uuid, meanwhile.uuid, last.uuid]


async def test_a_new_webhook_does_not_hear_the_past(bench: Bench, receiver: WebhookReceiver, secret_file: Path) -> None:
    """It begins with what happens from then on."""
    await end(bench, Ending(State.SUCCEEDED))
    async with telling(bench, receiver, secret_file):
        made = await end(bench, Ending(State.SUCCEEDED))
        await reports(bench, made)
    assert [message.json["data"]["id"] for message in receiver.messages] == [made.uuid]


async def test_a_webhook_that_comes_back_is_new(bench: Bench, receiver: WebhookReceiver, secret_file: Path) -> None:
    """What happened while it was out of the configuration is not told."""
    async with telling(bench, receiver, secret_file):
        pass
    await bench.store.webhooks.begin([])
    await end(bench, Ending(State.SUCCEEDED))
    async with telling(bench, receiver, secret_file):
        made = await end(bench, Ending(State.SUCCEEDED))
        await reports(bench, made)
    assert [message.json["data"]["id"] for message in receiver.messages] == [made.uuid]


@pytest.mark.parametrize(
    ("name", "url", "secret", "words"),
    [
        ("CI", "https://x.example/", SECRET, "webhooks.CI"),
        ("ci", "ftp://x.example/", SECRET, "webhooks.ci.url"),
        ("ci", "https://u:p@x.example/", SECRET, "webhooks.ci.url holds a user"),
        ("ci", "https://x.example/", b"short", "holds 5 bytes"),
        ("ci", "https://x.example/", b"whsec_!!!", "not base64"),
        ("ci", "https://x.example/", None, "No such file"),
    ],
)
def test_what_cannot_be_used_is_refused(tmp_path: Path, name: str, url: str, secret: bytes | None, words: str) -> None:
    """With the key that is wrong, and without what is secret."""
    file = tmp_path / "secret"
    if secret is not None:
        file.write_bytes(secret)
    with pytest.raises(Permanent, match=words) as refused:
        read_webhooks({name: WebhookSettings(url=url, secret_file=str(file))})
    assert "u:p" not in refused.value.message


def test_a_secret_may_be_in_the_specifications_form(tmp_path: Path) -> None:
    """whsec_ and base64, as receivers' pages show it."""
    file = tmp_path / "secret"
    file.write_bytes(b"whsec_" + base64.b64encode(SECRET))
    [webhook] = read_webhooks({"ci": WebhookSettings(url="https://x.example/", secret_file=str(file))})
    assert webhook.secret == SECRET


def test_pauses_grow_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often it was tried."""
    monkeypatch.setattr(webhooks, "RETRY_FIRST_S", 2.0)
    assert 1.0 <= delay_s(1) <= 2.0
    assert webhooks.RETRY_MAX_S / 2 <= delay_s(10_000) <= webhooks.RETRY_MAX_S
