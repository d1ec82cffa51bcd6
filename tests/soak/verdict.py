"""What the clients were promised against what there is: every row of the first part of the table has to be 0."""

import hashlib
import json
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.base_image import BUSYBOX
from harness.daemon import Daemon
from harness.engine import PrivateEngine
from harness.holdings import holdings
from imagejobd.runner.retention import BLOB_MIN_AGE_S, PRUNE_EVERY_S
from soak.load import Job, Records, Site

LOST = "lost"
MADE_TWICE = "made twice"
ENDED_TWICE = "ended twice"
WRONG_DIGEST = "wrong digest"
ORPHANS = "orphans"
QUARANTINED = "quarantined without guilt"
FAILED = "failed without guilt"
REFUSED = "refused without guilt"
DEFECTS = "defects"
# Each with what it counts.
COUNTED = {
    LOST: "acknowledged, and unknown or without an end",
    MADE_TWICE: "repeated with the same key",
    ENDED_TWICE: "more ends than one, or another one than its client saw",
    WRONG_DIGEST: "or payload, or perf: not what was asked for, or not what the result says",
    ORPHANS: "in the engine, in spool/, old blobs that nobody refers to",
    QUARANTINED: "",
    FAILED: "ended otherwise than it had to",
    REFUSED: "a good request was answered 4xx or 5xx",
    DEFECTS: "exits, tracebacks, an unsound database, secrets that stay",
}
SHOWN_PER_ROW = 10
LOG_LINES_PER_JOB = 6
_DEFECT = re.compile(r"^.*(?:Traceback|defect of imagejobd).*$", re.MULTILINE)
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True)
class Row:
    """A job as the database has it at the end; `ends` is how often it came to one."""

    uuid: str
    number: int
    kind: str
    state: str
    result: Mapping[str, Any]
    error_code: str
    error_message: str
    ends: int

    @property
    def has_ended(self) -> bool:
        return self.state not in ("queued", "running")

    def __str__(self) -> str:
        return f"{self.uuid} ({self.kind}) {self.state} {self.error_code} {self.error_message}".rstrip()


class Findings:
    """What is wrong, by the rows of the table."""

    def __init__(self) -> None:
        self._found: defaultdict[str, list[str]] = defaultdict(list)

    def add(self, row: str, *what: str) -> None:
        self._found[row] += what

    def count(self, row: str) -> int:
        return len(self._found[row])

    @property
    def is_clean(self) -> bool:
        return not any(self._found.values())

    def lines(self, daemon_log: str) -> Iterator[str]:
        """All that was found, with the last lines of the daemon's log about the jobs."""
        for row, found in self._found.items():
            for what in found[:SHOWN_PER_ROW]:
                yield f"{row}: {what}"
                if named := _UUID.search(what):
                    about = [line for line in daemon_log.splitlines() if named[0] in line]
                    yield from (f"    {line}" for line in about[-LOG_LINES_PER_JOB:])
            if len(found) > SHOWN_PER_ROW:
                yield f"{row}: and {len(found) - SHOWN_PER_ROW} more"


def read_rows(daemon: Daemon) -> list[Row]:
    """All jobs there are."""
    query = """select uuid, id, kind, state, coalesce(result, '{}'),
        coalesce(error_code, ''), coalesce(error_message, ''),
        (select count(*) from event where job_id = job.id and type in ('succeed', 'fail', 'cancel')) from job"""
    return [
        Row(uuid, number, kind, state, json.loads(result) or {}, code, message, ends)
        for uuid, number, kind, state, result, code, message, ends in daemon.sqlite(query)
    ]


def is_queue_empty(daemon: Daemon) -> bool:
    return not daemon.sqlite("select 1 from job where state in ('queued', 'running') limit 1")


def judge_jobs(findings: Findings, records: Records, rows: Sequence[Row]) -> list[tuple[Job, Row]]:
    """How all jobs have ended, also those whose acknowledgement was lost; those that have done what they had to."""
    known = {name: row for row in rows for name in (row.uuid, str(row.number))}
    findings.add(REFUSED, *records.refused)
    findings.add(MADE_TWICE, *records.doubled)
    for row in rows:
        if row.ends > 1:
            findings.add(ENDED_TWICE, str(row))
        if row.error_code == "quarantined":
            findings.add(QUARANTINED, str(row))
        if row.error_code == "internal":
            findings.add(FAILED, str(row))
    done = []
    for job in records.jobs:
        own = known.get(job.name)
        if own is None or not own.has_ended:
            findings.add(LOST, f"{job.name} of {job.order.path}: {own or 'there is no such job'}")
            continue
        if job.first_end and job.first_end != own.state:
            findings.add(ENDED_TWICE, f"{own}; its client saw it {job.first_end}")
        if _ended_well(job, own):
            done.append((job, own))
        elif own.error_code not in ("quarantined", "internal") and not (own.state == "cancelled" and job.was_cancelled):
            findings.add(FAILED, f"{own}; it had to end {sorted(job.order.ending.errors) or 'with success'}")
    return done


def _ended_well(job: Job, row: Row) -> bool:
    errors = job.order.ending.errors
    return row.error_code in errors if errors else row.state == "succeeded"


def judge_results(findings: Findings, done: Sequence[tuple[Job, Row]], site: Site) -> None:
    """What the jobs have made: every image where it was ordered to be, every perf."""
    for job, row in done:
        ending = job.order.ending
        told = dict(row.result.get("pushed", {}))
        if "digest" in row.result:
            told.setdefault(row.result["image"], row.result["digest"])
        for image in {*ending.images, *told}:
            wanted, there = ending.digest or told.get(image), _digest_at(site, image)
            if wanted is None or wanted != there:
                findings.add(WRONG_DIGEST, f"{row.uuid}: {image} is {there}, not {wanted}")
        if ending.perf is not None and row.result.get("perf") != ending.perf:
            findings.add(WRONG_DIGEST, f"{row.uuid}: perf {row.result.get('perf')}, not {ending.perf}")
        kept = row.result.get("location", {}).get("digest")
        if ending.payload and kept != ending.payload:
            findings.add(WRONG_DIGEST, f"{row.uuid}: {kept} is kept, not {ending.payload}")


def _digest_at(site: Site, image: str) -> str | None:
    host, _, path = image.partition("/")
    repository, _, tag = path.rpartition(":")
    return site.registry_at(host).digest(repository, tag)


def orphans(engine: PrivateEngine, site: Site, state_dir: Path) -> list[str]:
    """All that the engine and the spool hold, but for the bases that may stay."""
    stays = {BUSYBOX, site.public_base}
    held = [f"{held.sort} {held.name} of {held.owner}" for held in holdings(engine) if held.name not in stays]
    return sorted(held) + [f"spool/{path.name}" for path in (state_dir / "spool").rglob("*") if path.is_file()]


def judge_blobs(findings: Findings, daemon: Daemon) -> None:
    """The content store has all that jobs refer to, whole, and nothing else that is old."""
    files = {f"sha256:{path.name}": path for path in (daemon.state_dir / "blobs").rglob("*") if path.is_file()}
    referenced = {digest for (digest,) in daemon.sqlite("select distinct digest from job_blob")}
    for digest in referenced:
        if digest not in files:
            findings.add(WRONG_DIGEST, f"blob {digest} is gone")
        elif digest != f"sha256:{hashlib.sha256(files[digest].read_bytes()).hexdigest()}":
            findings.add(WRONG_DIGEST, f"blob {digest} has another content")
    old = time.time() - BLOB_MIN_AGE_S - PRUNE_EVERY_S
    findings.add(
        ORPHANS, *(f"blob {d}" for d, file in files.items() if d not in referenced and file.stat().st_mtime < old)
    )


def judge_daemon(findings: Findings, daemon: Daemon, troubles: Iterable[str]) -> None:
    """Its ends, its log, its database."""
    findings.add(DEFECTS, *troubles, *_DEFECT.findall(daemon.log_text()))
    for pragma, sound in (("integrity_check", [("ok",)]), ("foreign_key_check", [])):
        if (said := daemon.sqlite(f"pragma {pragma}")) != sound:
            findings.add(DEFECTS, f"{pragma}: {said[:3]}")
    [(secrets,)] = daemon.sqlite(
        "select count(*) from job_secret join job on job.id = job_id where coalesce(error_code, '') <> 'quarantined'"
    )
    if secrets:
        findings.add(DEFECTS, f"{secrets} ended jobs still have their secrets")


def table(findings: Findings, acknowledged: int, measured: Mapping[str, str]) -> str:
    """The counts that have to be 0, and what was measured beside them."""
    counts = [("acknowledged", str(acknowledged), "")]
    counts += [(row, str(findings.count(row)), what) for row, what in COUNTED.items()]
    lines = [f"{row:<28}{count:>10}   {what}".rstrip() for row, count, what in counts]
    lines += ["─" * 38, *(f"{what:<28}{value:>10}" for what, value in measured.items())]
    return "\n".join(lines)
