"""Jobs that no run has left: written beside a running daemon, by the schema's own triggers.

What would take hours to come about, or a peer of each kind, is there at once, and stays as it is.
"""

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from imagejobd.model.job import uuid7

INSERT = """
insert into job (uuid, kind, tenant, client, moved_ms, priority, created_ms, labels, spec, submitter)
values (:uuid, :kind, 'local', '', :at_ms, 0, :at_ms, :labels, :spec, :submitter)
"""
CLAIM = """
update job set state = 'running', move = 'claim', moved_ms = :at_ms, attempt = 1, started_ms = :at_ms,
    claim_token = uuid, worker = 'w', progress = :progress where id = :id
"""
ENTER = "update job set phase = :phase, phase_ms = :at_ms where id = :id"
END = """
update job set phase = null, phase_ms = :at_ms, state = :state, move = :move, moved_ms = :at_ms, claim_token = null,
    finished_ms = :at_ms, error_code = :code, error_message = :message, result = :result where id = :id
"""
LOG = "insert into log_block (job_id, offset, size, at_ms, text) values (:id, :offset, :size, 0, :text)"
MOVES = {"succeeded": "succeed", "failed": "fail", "cancelled": "cancel"}
BLOCK_LINES = 1_000
WAIT_MS = 2_000


class Rows:
    """Writes jobs; times are relative to its making."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._now_ms = time.time_ns() // 1_000_000

    def note(self, uuid: str, event: str, **data: Any) -> None:
        """A line in a job's history."""
        statement = "insert into event (job_id, at_ms, type, data) select id, ?, ?, ? from job where uuid = ?"
        self._db.execute(statement, (self._now_ms, event, json.dumps(data), uuid))

    def job(
        self,
        kind: str = "build",
        spec: Mapping[str, Any] | None = None,
        *,
        state: str = "succeeded",
        age_s: float = 600.0,
        took_s: float = 20.0,
        phases: Mapping[str, float] | None = None,
        log: Sequence[str] = (),
        error: tuple[str, str] | None = None,
        **fields: Mapping[str, Any],
    ) -> str:
        """One job; its UUID. `phases` are the shares of its time, in order; `fields` are `labels`, `submitter`,
        `progress` and `result`."""
        uuid, created_ms = uuid7(), int(self._now_ms - age_s * 1000)
        row = {
            "uuid": uuid,
            "kind": kind,
            "at_ms": created_ms,
            "spec": json.dumps(spec or {"image": "registry.example/app:1"}),
        }
        row |= {name: json.dumps(fields.get(name, {})) for name in ("labels", "submitter")}
        self._db.execute("begin immediate")
        number = self._db.execute(INSERT, row).lastrowid
        if state != "queued":
            self._run(number, created_ms + WAIT_MS, took_s, phases or {}, json.dumps(fields.get("progress", {})))
            self._write(number, log)
        if state in MOVES:
            code, message = error or (None, None)
            result = json.dumps(fields["result"]) if "result" in fields else None
            ending = {"state": state, "move": MOVES[state], "code": code, "message": message, "result": result}
            self._db.execute(END, ending | {"id": number, "at_ms": int(created_ms + WAIT_MS + took_s * 1000)})
        self._db.execute("commit")
        return uuid

    def _run(self, number: int | None, at_ms: int, took_s: float, phases: Mapping[str, float], progress: str) -> None:
        self._db.execute(CLAIM, {"id": number, "at_ms": at_ms, "progress": progress})
        for phase, share in phases.items():
            self._db.execute(ENTER, {"id": number, "at_ms": at_ms, "phase": phase})
            at_ms += int(took_s * 1000 * share)

    def _write(self, number: int | None, lines: Sequence[str]) -> None:
        offset = 0
        for start in range(0, len(lines), BLOCK_LINES):
            text = "".join(f"{line}\n" for line in lines[start : start + BLOCK_LINES])
            size = len(text.encode())
            self._db.execute(LOG, {"id": number, "offset": offset, "size": size, "text": text})
            offset += size


@contextmanager
def rows_in(database: Path) -> Iterator[Rows]:
    with closing(sqlite3.connect(database, timeout=30, isolation_level=None)) as db:
        yield Rows(db)
