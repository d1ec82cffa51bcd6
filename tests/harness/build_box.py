"""A box that builds, as the clients of the builder API and of the native one see it."""

import json
from typing import Any

from harness.base_image import publish_busybox
from harness.bodies import MULTIPART, multipart
from harness.box import Box
from harness.client import Answer, Fields
from harness.engine import PrivateEngine
from harness.holdings import Held, holdings
from harness.registry import Registry
from harness.waiting import until
from imagejobd.model.ownership import job_repository

BASES = "private/bases"

# A minute between sweeps, and what one takes.
SWEPT_S = 90.0


class BuildBox(Box):
    """The two APIs that take builds, and what their jobs leave behind."""

    def build(self, image: str, text: str, **fields: Any) -> str:
        """Submit through the builder API; the job's UUID."""
        answer = self.call("POST", "/api/v1/build", {"image_name": image, "dockerfile": text, **fields})
        assert answer.status == 200, answer.text
        uuid: str = answer.json["JobIdentifier"]
        return uuid

    def upload(self, image: str, context: bytes) -> Answer:
        """The builder API's multipart request, tar first."""
        body = multipart({"TarFile": context, "Json": json.dumps({"image_name": image})})
        return self.call("POST", "/api/v1/build", body, headers={"Content-Type": MULTIPART})

    def submit_build(self, image: str, text: str, *, key: str | None = None, **spec: Any) -> str:
        """Submit through the native API; the job's UUID."""
        return self.submit("build", {"image": image, "dockerfile": text, **spec}, key=key)

    def status(self, uuid: str) -> str:
        """The builder API's word for where a job is."""
        status: str = self.call("GET", f"/api/v1/{uuid}/status").json["Status"]
        return status

    def outcome(self, uuid: str) -> str:
        """The status that a build ends with."""
        self.ended(uuid)
        return self.status(uuid)

    def logs(self, uuid: str) -> str:
        """The builder API's log."""
        logs: str = self.call("GET", f"/api/v1/{uuid}/logs").json["Logs"]
        return logs

    def all_succeeded(self, *uuids: str) -> list[Fields]:
        return [self.succeeded(uuid) for uuid in uuids]

    def built(self, uuid: str, attempt: int = 1) -> str:
        """The name of the image that an attempt has built, as the engine shows it."""
        return f"{job_repository(self.daemon.installation, uuid)}:{attempt}"

    def leftovers(self) -> set[str]:
        """Images, bases and volumes of this box's jobs that the engine has, and all containers."""
        installation = self.daemon.installation

        def is_left(held: Held) -> bool:
            match held.sort:
                case "container":
                    return True
                case "volume":
                    return held.name.startswith(f"imagejobd-{installation}-")
                case "image":
                    return f"/{installation}/" in f"/{held.name}" or f"/{BASES}:" in held.name
            return False

        return {held.name for held in holdings(self.engine) if is_left(held)}

    def check_clean(self) -> None:
        """Nothing of any job is left in engine, spool or a half-written database, and nothing of ended ones in the
        engine's history. What the engine could not remove at the time, a sweep does within a minute."""
        until(lambda: not self.leftovers(), timeout_s=SWEPT_S, what="what jobs left in the engine to go")
        until(lambda: not self._ended_in_history(), what="the records of builds to go")
        assert self.spooled() == []
        self.check_database()
        assert self.daemon.sqlite("select count(*) from job_secret") == [(0,)]

    def _ended_in_history(self) -> set[str]:
        ended = self.daemon.sqlite("select uuid from job where state not in ('queued', 'running')")
        built = {held.name.rpartition("/")[2] for held in holdings(self.engine) if held.sort == "build"}
        return built & {uuid for (uuid,) in ended}


def publish_base(engine: PrivateEngine, registry: Registry, tag: str) -> str:
    """Put the base image into a private registry, and away from the engine; returns its name there."""
    return publish_busybox(engine, registry, BASES, tag)
