"""Webhooks: every end is told, signed, at least once and in order, to whom it concerns."""

import asyncio
import base64
import hashlib
import hmac
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from runner_bench import END_TIMEOUT_S, Bench

from harness.webhook_receiver import WebhookReceiver
from imagejobd.model.egress import Egress, EgressSettings
from imagejobd.model.errors import ErrorCode, Permanent
from imagejobd.model.job import Enqueued, JobError, NewJob, State
from imagejobd.model.resolver import Resolver
from imagejobd.model.secrets import Secret
from imagejobd.model.webhook import Receiver
from imagejobd.runner import webhooks
from imagejobd.runner.webhooks import OWN, Webhooks, WebhookSettings, delay_s, read_webhooks
from imagejobd.store.protocol import Capacity, Ending
from imagejobd.store.sqlite import webhook_records
from imagejobd.store.vault import KEY_BYTES, Vault

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
    sender = Webhooks(read_webhooks({"ci": table}), bench.store, egress or Egress(), Resolver())
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
    assert sender.counts == {
        **{("ci", outcome): 1 for outcome in ("delivered", "refused", "given_up")},
        **{(OWN, outcome): 0 for outcome in ("delivered", "refused", "given_up")},
    }
    receiver.statuses.extend([500] * 9)
    async with telling(bench, receiver, secret_file, give_up_after_s=0.02):
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


@asynccontextmanager
async def telling_jobs(bench: Bench, egress: Egress | None = None) -> AsyncIterator[Webhooks]:
    """Without any webhook of the configuration."""
    sender = Webhooks([], bench.store, egress or Egress(), Resolver())
    task = asyncio.create_task(sender.run())
    try:
        yield sender
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def with_own(
    bench: Bench, url: str, secret: str = "a key of the job's own, long enough", **fields: Any
) -> NewJob:
    """A job that is about to be made, with its webhook."""
    job = NewJob(kind="noop", spec={}, **fields)
    await bench.store.webhooks.attach(job.uuid, Receiver(url, Secret(secret)))
    return job


async def test_a_job_may_bring_its_own(bench: Bench, receiver: WebhookReceiver) -> None:
    """It is told of that job alone, when that has ended, signed with the job's key; then nothing of it is kept."""
    job = await with_own(bench, f"{receiver.url}/mine")
    async with telling_jobs(bench) as sender:
        made = await bench.store.enqueue(job, queue_max=10)
        await end_queued(bench, await bench.enqueue())
        await asyncio.sleep(0.05)
        assert not receiver.messages
        await end_queued(bench, made)
        (report,) = await reports(bench, made)
    assert report == {"webhook": "job", "tries": 1, "status": 204, "delivered": True}
    (message,) = receiver.messages
    assert message.json["data"]["id"] == job.uuid
    key = Receiver("", Secret("a key of the job's own, long enough"))
    headers = key.signed_headers(message.headers["webhook-id"], int(message.headers["webhook-timestamp"]), message.body)
    assert message.headers["webhook-signature"] == headers["webhook-signature"]
    assert await bench.store.webhooks.due(limit=10) == []
    assert sender.counts[OWN, "delivered"] == 1


async def test_a_host_that_is_away_holds_up_no_other(bench: Bench, receiver: WebhookReceiver) -> None:
    """Jobs of one receiver wait while it refuses, those of another are told; all are in the end."""
    receiver.statuses.extend([503, 503])
    with WebhookReceiver() as other:
        jobs = [await with_own(bench, receiver.url) for _ in range(3)]
        jobs.append(await with_own(bench, f"http://localhost:{other.port}/"))
        made = [await bench.store.enqueue(job, queue_max=10) for job in jobs]
        for job in made:
            await end_queued(bench, job)
        async with telling_jobs(bench):
            for job in made:
                (report,) = await reports(bench, job)
                assert report["delivered"] is True
    assert sorted(message.json["data"]["id"] for message in receiver.messages[-3:]) == sorted(
        job.uuid for job in jobs[:3]
    )
    assert [message.json["data"]["id"] for message in other.messages] == [jobs[3].uuid]


async def ended_with_own(bench: Bench, url: str, tenant: str) -> Enqueued:
    made = await bench.store.enqueue(await with_own(bench, url, tenant=tenant), queue_max=100)
    await end_queued(bench, made)
    return made


async def test_hosts_that_hang_hold_up_no_other_tenant(
    bench: Bench, receiver: WebhookReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many hosts one tenant names that take a connection and never answer."""
    monkeypatch.setattr(webhooks, "ANSWER_TIMEOUT_S", 600.0)
    monkeypatch.setattr(webhooks, "OWN_LOOKED_AT", 10)
    with socket.create_server(("0.0.0.0", 0), backlog=100) as silent:  # all of 127/8
        port = silent.getsockname()[1]
        for number in range(2 * webhooks.OWN_AT_ONCE):
            await ended_with_own(bench, f"http://127.0.0.{number + 2}:{port}/", "hostile")
        others = [await ended_with_own(bench, receiver.url, "other") for _ in range(20)]
        async with telling_jobs(bench):
            for job in others:
                (report,) = await reports(bench, job)
                assert report["delivered"] is True


async def test_names_that_hang_hold_up_no_other_work(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The threads in which files are written stay free, however many names nobody answers for."""
    asked, release, resolve = threading.Semaphore(0), threading.Event(), socket.getaddrinfo

    def hang(host: str, *args: Any, **kwargs: Any) -> Any:
        if not host.endswith(".invalid"):
            return resolve(host, *args, **kwargs)
        asked.release()
        release.wait()
        raise socket.gaierror(socket.EAI_AGAIN, "try again")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
    for number in range(4):
        await ended_with_own(bench, f"http://host-{number}.invalid/", "hostile")
    try:
        async with telling_jobs(bench), asyncio.timeout(END_TIMEOUT_S):
            while not (asked.acquire(blocking=False) and asked.acquire(blocking=False)):
                await asyncio.sleep(0.005)
            await asyncio.to_thread(int)
    finally:
        release.set()


@pytest.mark.parametrize("host", ["a" * 300, "a..b"])
async def test_a_name_that_cannot_be_stops_nobody(bench: Bench, receiver: WebhookReceiver, host: str) -> None:
    """Where one got past the door that no resolver would look for, the others are told."""
    await ended_with_own(bench, f"http://{host}/", "hostile")
    made = await ended_with_own(bench, receiver.url, "other")
    async with telling_jobs(bench):
        assert (await reports(bench, made))[0]["delivered"] is True


async def test_one_tenants_refusals_postpone_no_others(
    bench: Bench, receiver: WebhookReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks a host that others use too for what is not there makes nobody else wait."""
    monkeypatch.setattr(webhooks, "RETRY_FIRST_S", 600.0)
    await ended_with_own(bench, "http://127.0.0.1:1/", "hostile")
    made = await ended_with_own(bench, receiver.url, "other")
    async with telling_jobs(bench):
        (report,) = await reports(bench, made)
    assert report["delivered"] is True


async def test_a_jobs_own_is_bound_by_the_rules(bench: Bench, receiver: WebhookReceiver) -> None:
    """What the operator's network has is no stranger's to ask; the history says that nobody was told."""
    job = await with_own(bench, receiver.url)
    made = await bench.store.enqueue(job, queue_max=10)
    await end_queued(bench, made)
    webhooks_egress = Egress(EgressSettings(allow_private=False))
    async with telling_jobs(bench, webhooks_egress) as sender:
        async with asyncio.timeout(END_TIMEOUT_S):
            while not sender.counts[OWN, "refused"]:
                await asyncio.sleep(0.005)
    assert not receiver.messages


async def test_a_job_whose_key_is_lost_is_given_up(bench: Bench, tmp_path: Path) -> None:
    """Another secrets key opens no webhook: nobody is told, and the history says why."""
    job = await with_own(bench, "http://127.0.0.1:1/")
    made = await bench.store.enqueue(job, queue_max=10)
    await end_queued(bench, made)
    bench.store.webhooks._vault = Vault(b"x" * KEY_BYTES)
    async with telling_jobs(bench):
        (report,) = await reports(bench, made)
    assert (report["delivered"], report["error"]) == (False, "another secrets key has sealed it")


async def end_queued(bench: Bench, job: Enqueued) -> None:
    await bench.store.request_cancel(job.uuid, tenant=None)


@pytest.mark.parametrize(
    ("name", "url", "secret", "words"),
    [
        ("CI", "https://x.example/", SECRET, "webhooks.CI"),
        ("job", "https://x.example/", SECRET, "webhooks.job.*another name"),
        ("ci", "ftp://x.example/", SECRET, "webhooks.ci.url"),
        ("ci", f"http://{'a' * 64}.example/", SECRET, "webhooks.ci.url"),
        ("ci", "http://a..b/", SECRET, "webhooks.ci.url"),
        ("ci", "http://xn--/", SECRET, "webhooks.ci.url"),
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


def test_pauses_grow_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often it was tried."""
    monkeypatch.setattr(webhooks, "RETRY_FIRST_S", 2.0)
    assert 1.0 <= delay_s(1) <= 2.0
    assert webhooks.RETRY_MAX_S / 2 <= delay_s(10_000) <= webhooks.RETRY_MAX_S
