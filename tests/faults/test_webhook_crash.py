"""A daemon that is killed while a webhook is away tells it after its next start."""

from pathlib import Path
from typing import Any

from harness.box import Box
from harness.waiting import until
from harness.webhook_receiver import WebhookReceiver

JOB = {"kind": "build", "spec": {"image": "registry.example/a", "dockerfile": "FROM scratch\n"}}


def reports(box: Box, job: str) -> list[Any]:
    """What the job's history says of its webhooks."""
    events = box.call("GET", f"/api/v2/jobs/{job}/events").json
    return [event["data"] for event in events if event["type"] == "webhook"]


def test_no_end_is_missed_across_a_crash(tmp_path: Path) -> None:
    """A job that was cancelled in the queue is told of as soon as somebody takes it, and once it was taken no more."""
    secret_file = tmp_path / "secret"
    secret_file.write_text("a secret of more than thirty-two bytes")
    with WebhookReceiver() as receiver:
        receiver.statuses.extend([503] * 100)
        ci = {"url": f"{receiver.url}/hook", "secret_file": str(secret_file)}
        with Box(webhooks={"ci": ci}) as box:
            job = box.call("POST", "/api/v2/jobs", JOB).json["id"]
            assert box.cancel(job) in (200, 202)
            until(lambda: receiver.messages, what="the webhook to be tried")
            assert reports(box, job) == []
            box.daemon.kill()
            receiver.statuses.clear()
            box.daemon.start()
            until(lambda: reports(box, job), what="the webhook to be delivered")
            assert reports(box, job)[0]["delivered"] is True
            box.restart()
            second = box.call("POST", "/api/v2/jobs", JOB).json["id"]
            assert box.cancel(second) in (200, 202)
            until(lambda: reports(box, second), what="the second end to be told")
            told = [message.json["data"]["id"] for message in receiver.messages]
            assert told[-2:] == [job, second]
            assert set(told) == {job, second}
            box.check_healthy()


def test_a_jobs_own_webhook_survives_a_crash() -> None:
    """Who came with a job is told of its end by the daemon's next life."""
    with WebhookReceiver() as receiver, Box() as box:
        webhook = {"url": f"{receiver.url}/mine", "secret": "a secret of more than thirty-two bytes"}
        job = box.call("POST", "/api/v2/jobs", JOB | {"webhook": webhook}).json["id"]
        box.restart()
        receiver.statuses.extend([503] * 100)
        assert box.cancel(job) in (200, 202)
        until(lambda: receiver.messages, what="the webhook to be tried")
        box.daemon.kill()
        receiver.statuses.clear()
        box.daemon.start()
        until(lambda: reports(box, job), what="the webhook to be delivered")
        assert reports(box, job)[0]["delivered"] is True
        assert {message.json["data"]["id"] for message in receiver.messages} == {job}
        assert box.daemon.sqlite("select count(*) from job_webhook") == [(0,)]
        box.check_healthy()
