"""A job's own webhook: who is told of its end, as a submission names it."""

from contextlib import suppress

import msgspec

from imagejobd.api.intake import Intake
from imagejobd.model.errors import Fault, Temporary
from imagejobd.model.job import Enqueued, NewJob
from imagejobd.model.webhook import Receiver


class WebhookRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`webhook` of a submission: an http(s) URL, and the key of the signatures (24 bytes or more, or `whsec_` and
    base64)."""

    url: str
    secret: str


async def submit_with_webhook(intake: Intake, job: NewJob, webhook: WebhookRequest | None) -> Enqueued:
    """As `Intake.submit`. The webhook is kept first, so that an acknowledged job has it, and forgotten again where no
    new job is made. Raises `Permanent(invalid)` that names the field which is wrong."""
    if webhook is None:
        return await intake.submit(job)
    names = {"url_name": "webhook.url", "secret_name": "webhook.secret"}
    await intake.store.webhooks.attach(job.uuid, Receiver.parse(webhook.url, webhook.secret, **names))
    try:
        enqueued = await intake.submit(job)
    except Fault:
        await _detach(intake, job)
        raise
    if not enqueued.is_new:
        await _detach(intake, job)
    return enqueued


async def _detach(intake: Intake, job: NewJob) -> None:
    with suppress(Temporary):  # what stays there is forgotten later
        await intake.store.webhooks.detach(job.uuid)
