"""Making the copies of one attempt: the registries, the images one after the other, and what the store hears of it.

An attempt goes straight to what remains: a copy that is done is not asked about again, and one that failed for good is
not tried again. A target that is not worth another try in this attempt is left out, so that the images behind go on to
the others. The copies themselves never wait for the disk: what there is to write is gathered here and written by one
loop. What a crash takes is asked of the targets again.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress

from msgspec.structs import replace

from imagejobd.jobs.distribute.auth import secret_words
from imagejobd.jobs.distribute.spec import SOURCE_AUTH, DistributeSpec, Source, Target, site_of, target_auth
from imagejobd.jobs.distribute.table import CopyTable, wait_of
from imagejobd.model.circuit import Circuits, peer_name
from imagejobd.model.concurrency import gather_or_cancel
from imagejobd.model.errors import ErrorCode, Fault, NotFound, Temporary
from imagejobd.model.failpoint import failpoint
from imagejobd.model.job import Json, Principal, Push, Wait
from imagejobd.model.kind import JobContext
from imagejobd.model.secrets import Secret
from imagejobd.registry.client import RegistryClient
from imagejobd.registry.connection import Connection
from imagejobd.registry.copy.image import Options, copy_image
from imagejobd.registry.copy.target import Outcome, TagState
from imagejobd.registry.copy.target import Target as CopyTarget
from imagejobd.registry.copy.transfer import Copier, Holdings
from imagejobd.registry.repository import Repository

IMAGES_AT_ONCE = 8
# One that answers, and fails for so many images in a row, is not asked about the others: every knock lasts for some
# tries, and would keep the images behind it waiting.
FAILURES_IN_A_ROW_MAX = 2
# Targets that are named as those who are waited for.
ENDPOINTS_NAMED_MAX = 3

TICK_S = 0.25
NOTE_EVERY_TICKS = 8
# After so many the notes become half as frequent, again and again: a day of copying is some hundred of them.
NOTES_PER_PACE = 100
# Rows that one commit takes; more would hold up the others that wait for it.
ROWS_AT_ONCE = 500

_DRY_RUN_STATES: Mapping[str, str] = {
    TagState.WANTED: "would be copied",
    TagState.IDENTICAL: "is there already",
    TagState.SKIPPED: "is another image there and would be left alone",
}


class Registries:
    """The registries of one job, connected once each; nothing is asked yet. `secrets` are the job's, `principal` is who
    may use configured logins; `warn` hears what registries warn of."""

    def __init__(
        self,
        client: RegistryClient,
        spec: DistributeSpec,
        secrets: Mapping[str, Secret],
        principal: Principal,
        warn: Callable[[str], None],
    ) -> None:
        self._client = client
        self._secrets = secrets
        self._principal = principal
        self._warn = warn
        self._connections: dict[tuple[object, ...], Connection] = {}
        self._source = self._connection(spec.source, SOURCE_AUTH)
        self._targets = [self._connection(target, target_auth(index)) for index, target in enumerate(spec.targets)]

    def source(self, path: str) -> Repository:
        return Repository(connection=self._source, path=path)

    def target(self, index: int, path: str) -> Repository:
        return Repository(connection=self._targets[index], path=path, may_push=True)

    def peers(self, index: int) -> tuple[str, str]:
        """Who has to answer before anything can go to a target: the source, and the target itself."""
        source, target = (connection.site for connection in (self._source, self._targets[index]))
        return peer_name(source.host, source.scheme), peer_name(target.host, target.scheme)

    def secret_words(self) -> set[Secret]:
        """All that must not be shown: what is secret of the requests' logins, and the configured passwords of these
        hosts and of the source's mirrors, as far as they are used: redacting others would tell who guesses one."""
        words = {word for auth in self._secrets.values() for word in secret_words(auth)}
        for connection in (*self._connections.values(), *self._source.mirrors()):
            if configured := self._client.credentials_for(connection.host, self._principal):
                words.add(configured.password)
        return words

    def _connection(self, place: Source | Target, secret_name: str) -> Connection:
        """One for all places that are the same registry with the same login."""
        auth = self._secrets.get(secret_name)
        site = replace(site_of(place, auth), principal=self._principal)
        key = (site.host, site.scheme, site.verify_tls, auth, site.login_hint)
        if key not in self._connections:
            self._connections[key] = self._client.connect(site, warn=self._warn)
        return self._connections[key]


class Reporter:
    """Writes what happens in one attempt to the store: log, history, progress, and how each copy ended.

    `warnings` are those of registries, and are taken out as they are logged.
    """

    def __init__(self, ctx: JobContext, table: CopyTable, warnings: deque[str]) -> None:
        self._ctx = ctx
        self._table = table
        self._warnings = warnings
        self._stopped = asyncio.Event()
        self._lines: list[str] = []
        self._postponed_targets: set[int] = set()
        self._progress: Json = {}
        self._noted_targets: list[Json] = []
        self._notes_written = 0
        self._ticks_per_note = NOTE_EVERY_TICKS

    async def log(self, line: str) -> None:
        """One line for people; the end of a line is added. The log redacts by itself."""
        self._lines.append(line.rstrip("\n") + "\n")

    def end(self, number: int, target: int, outcome: Outcome) -> Push:
        """A copy has ended: into the table and the log."""
        error = None if outcome.fault is None else self._ctx.redact(outcome.fault.message)
        push = self._table.end(number, target, outcome, error)
        summary = _summary(push, is_dry_run=self._table.spec.dry_run)
        endpoint = self._table.spec.targets[target].endpoint
        self._lines.append(f"{push.source} to {endpoint} {push.repository}: {summary}\n")
        return push

    def postpone(self, number: int, target: int, error: str, wait: Wait) -> None:
        """A copy is left to the next attempt. Of thousands each would be a line that says the same: one is logged."""
        self._table.postpone(number, target, error, wait)
        if target not in self._postponed_targets:
            self._postponed_targets.add(target)
            endpoint = self._table.spec.targets[target].endpoint
            self._lines.append(f"{endpoint}: the other images wait for the next attempt: {error}\n")

    async def run(self) -> None:
        """Write what has gathered, again and again, and after `stop` the rest. Raises what the store raises.

        It is not to be cancelled: what was on its way to the store would be lost or written twice.
        """
        ticks = 0
        while not self._stopped.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._stopped.wait()
                    break
            ticks += 1
            await self._write()
            if ticks % self._ticks_per_note == 0:
                await self._note_progress()
        await self._write()

    def stop(self) -> None:
        self._stopped.set()

    async def _write(self) -> None:
        """Progress and log, which a crash may leave a tick or two behind, and what a later attempt goes on from."""
        progress = self._table.progress()
        if progress != self._progress:
            self._progress = progress
            self._ctx.progress(**progress)
        while self._warnings:
            await self.log(f"warning: {self._warnings.popleft()}")
        lines, self._lines = self._lines, []
        if lines:
            await self._ctx.log("".join(lines))
        pushes = self._table.take_changes()
        for start in range(0, len(pushes), ROWS_AT_ONCE):
            await self._ctx.record_pushes(pushes[start : start + ROWS_AT_ONCE])
            failpoint("after_outcomes")

    async def _note_progress(self) -> None:
        """Note the targets whose bytes have moved since the last note."""
        before, self._noted_targets = self._noted_targets, self._progress.get("targets", [])
        moved = [target for target in self._noted_targets if target not in before]
        if not moved:
            return
        await self._ctx.note("progress", targets=moved)
        self._notes_written += 1
        if self._notes_written % NOTES_PER_PACE == 0:
            self._ticks_per_note *= 2


class Copies:
    """Copies what remains, `IMAGES_AT_ONCE` images at once."""

    def __init__(
        self,
        table: CopyTable,
        registries: Registries,
        reporter: Reporter,
        circuits: Circuits,
        copier: Copier,
    ) -> None:
        self._table = table
        self._registries = registries
        self._reporter = reporter
        self._circuits = circuits
        self._copier = copier
        # What one image brought to a target is there for the next one of the same job.
        self._holdings = Holdings()
        # By target: the copies that failed in a row in this attempt, because it does not answer.
        self._failures: dict[int, list[Push]] = {}

    def endpoints(self) -> str:
        """The registries that have something to do with what remains, for people."""
        spec = self._table.spec
        targets = {target for image in range(len(self._table.images)) for target in self._table.remaining(image)}
        endpoints = list(dict.fromkeys(spec.targets[target].endpoint for target in sorted(targets)))
        text = ", ".join([spec.source.endpoint, *endpoints[:ENDPOINTS_NAMED_MAX]])
        more = len(endpoints) - ENDPOINTS_NAMED_MAX
        return f"{text} and {more} more" if more > 0 else text

    async def run(self) -> None:
        """How each copy ended is in the table: the faults of registries are outcomes. Raises what the store raises."""
        images = iter(self._table.order())
        workers = gather_or_cancel(self._copy_all(images) for _ in range(IMAGES_AT_ONCE))
        report, copies = asyncio.create_task(self._reporter.run()), asyncio.create_task(workers)
        try:
            # The report ends by itself only when the store fails, and then there is no use in going on.
            await asyncio.wait((report, copies), return_when=asyncio.FIRST_COMPLETED)
        finally:
            copies.cancel()
            self._reporter.stop()
            await _wait_for_end(report, copies)
        report.result()
        copies.result()

    async def _copy_all(self, images: Iterator[int]) -> None:
        for number in images:
            targets = [target for target in self._table.remaining(number) if self._is_due(number, target)]
            if targets:
                await self._copy(number, targets)

    def _is_due(self, number: int, target: int) -> bool:
        """Whether a remaining copy is to be tried now; where not, the next attempt sees to it."""
        wait = self._table.wait(number, target)
        if wait.rest_s(self._table.now_ms()) > 0:
            return False
        if wait.peer is not None and self._circuits.refusal(wait.peer) is not None:
            return False
        outage = self._outage(target)
        if outage is not None:
            self._reporter.postpone(number, target, *outage)
        return outage is None

    def _outage(self, target: int) -> tuple[str, Wait] | None:
        """Why the target, or the source, is not worth another try now, and what the rest of its copies wait for; None
        where both are worth one."""
        now_ms = self._table.now_ms()
        for peer in self._registries.peers(target):
            if refusal := self._circuits.refusal(peer):
                return refusal.message, wait_of(refusal, now_ms)
        failures = self._failures.get(target, [])
        if failures and (len(failures) >= FAILURES_IN_A_ROW_MAX or failures[-1].wait.rest_s(now_ms) > 0):
            return failures[-1].error or "", failures[-1].wait
        return None

    def _note_outage(self, push: Push, fault: Fault | None) -> None:
        """A copy that was tried has ended with `fault`, as `push` says."""
        if isinstance(fault, Temporary) and fault.code is ErrorCode.REGISTRY_UNAVAILABLE:
            self._failures.setdefault(push.target, []).append(push)
        else:
            self._failures.pop(push.target, None)

    async def _copy(self, number: int, targets: list[int]) -> None:
        spec, image, pinned_digest = self._table.spec, self._table.images[number], self._table.pinned_digest(number)

        async def end(index: int, outcome: Outcome) -> None:
            # A target that lacks something has a `source_digest`.
            lacks_source = isinstance(outcome.fault, NotFound) and outcome.source_digest is None
            if pinned_digest is not None and lacks_source:
                why = f"{image} was {pinned_digest} when other targets got it, and the source no longer has that"
                message = f"image not found: {why}; a new job would copy what the name means now"
                outcome = replace(outcome, fault=NotFound(message))
            push = self._reporter.end(number, targets[index], outcome)
            self._note_outage(push, outcome.fault)

        await copy_image(
            self._copier,
            self._registries.source(image.path),
            pinned_digest or image.name,
            [
                CopyTarget(
                    repository=self._registries.target(target, self._table.place(number, target).path),
                    names=self._table.place(number, target).names,
                    overwrite=spec.targets[target].overwrite,
                )
                for target in targets
            ],
            self._table.start(number, targets),
            Options(platforms=spec.platforms, referrers=spec.referrers, dry_run=spec.dry_run),
            self._holdings,
            ended=end,
            say=self._reporter.log,
        )


async def _wait_for_end(*tasks: asyncio.Task[None]) -> None:
    """Wait until all have ended, however often that is cancelled; only then the cancellation goes on."""
    end = asyncio.gather(*tasks, return_exceptions=True)
    cancelled: asyncio.CancelledError | None = None
    while not end.done():
        try:
            await asyncio.shield(end)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


def _summary(push: Push, *, is_dry_run: bool) -> str:
    """How a copy ended, for people."""
    if push.error is not None:
        again = "" if push.is_final else "for now "
        return f"failed {again}after {push.seconds:.1f} s: {push.error}"
    sent_bytes, mounted_bytes = push.sent_bytes or 0, push.mounted_bytes or 0
    skipped_bytes, total_bytes = push.skipped_bytes or 0, push.total_bytes or 0
    if is_dry_run:
        tags = ", ".join(f"{name} {_DRY_RUN_STATES.get(state, state)}" for name, state in push.tags.items())
        if TagState.WANTED not in push.tags.values():
            return f"dry run: {tags}"
        missing_bytes = total_bytes - skipped_bytes - mounted_bytes
        return f"dry run: {tags}; {push.digest}; {missing_bytes} of {total_bytes} bytes are missing there"
    tags = ", ".join(f"{name} {state}" for name, state in push.tags.items())
    sizes = "nothing to send"
    if total_bytes:
        sizes = f"{sent_bytes} bytes sent, {mounted_bytes} mounted, {skipped_bytes} there already"
    return f"{tags}; {push.digest}; {sizes}, {push.seconds:.1f} s"
