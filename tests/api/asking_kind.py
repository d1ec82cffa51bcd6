"""A kind of job whose preflight does what a test says; its jobs do nothing."""

import asyncio

from imagejobd.model.job import Json, NewJob
from imagejobd.model.kind import Accepted, JobContext, JobKind, Upload


class AskingKind(JobKind):
    """`answer` is raised by preflight; while `hush` is set it waits until `speak` is called."""

    def __init__(self, name: str = "asking") -> None:
        self.name = name
        self.answer: Exception | None = None
        self.hush = False
        self.asked: list[NewJob] = []
        self._speech = asyncio.Event()

    def speak(self) -> None:
        """Let all who wait go on."""
        self._speech.set()

    def parse(self, spec: Json, upload: Upload | None = None) -> Accepted:
        return Accepted(spec)

    async def preflight(self, job: NewJob) -> None:
        self.asked.append(job)
        if self.hush:
            await self._speech.wait()
        if self.answer is not None:
            raise self.answer

    async def run(self, ctx: JobContext) -> Json:
        return {}
