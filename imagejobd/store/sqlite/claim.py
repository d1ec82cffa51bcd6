"""Choosing which jobs start next.

Fair between tenants: the one with the fewest running jobs is served first, then the one that was served longest ago,
and while several wait for a kind none gets more than its share of the slots. Within a tenant the highest priority goes
first, then the oldest. The choice reads the partitions that have work (rows of the table `lane`) and the head of those
it takes from: neither the length of the queue nor that of the history matters.

A job that was running through several crashes of the daemon is a suspect. It starts alone, so that the next crash has
one cause; those that ran beside it are innocent.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from heapq import heapify, heappop, heapreplace
from sqlite3 import Row

import msgspec

from imagejobd.model.job import Job, State, Transition, next_state
from imagejobd.store.protocol import EVENT_TOPIC, Capacity, job_topic
from imagejobd.store.sqlite.database import load
from imagejobd.store.sqlite.rows import job
from imagejobd.store.sqlite.writer import Transaction

_SQL = load("claim")
_encode = msgspec.json.Encoder().encode


class Started(msgspec.Struct, frozen=True):
    """A claimed job with its token; the secrets are still sealed."""

    job: Job
    token: str
    sealed: bytes | None


class _Partition:
    """One tenant's jobs of one kind, while a claim chooses."""

    def __init__(self, row: Row) -> None:
        self.tenant: str = row["tenant"]
        self.kind: str = row["kind"]
        self.ready: int = row["ready"]
        self.running: int = row["running"]
        self.last_claim_seq: int = row["last_claim_seq"]
        self.head: list[tuple[int, int]] | None = None  # (-priority, id) of what is next, the next one last

    def next(self, tx: Transaction, *, at_most: int) -> tuple[int, int]:
        """The job that is next in turn here."""
        if self.head is None:
            values = {"tenant": self.tenant, "kind": self.kind, "limit": min(self.ready, at_most)}
            rows = tx.db.execute(_SQL["head_of_lane"], values).fetchall()
            self.head = [(-row["priority"], row["id"]) for row in reversed(rows)]
        return self.head[-1]

    def take(self, seq: int) -> int:
        assert self.head  # `next` has been asked  # noqa: S101
        self.ready -= 1
        self.running += 1
        self.last_claim_seq = seq
        return self.head.pop()[1]


class _Tenant:
    """One tenant's partitions, while a claim chooses."""

    def __init__(self) -> None:
        self.partitions: list[_Partition] = []

    @property
    def running(self) -> int:
        return sum(partition.running for partition in self.partitions)

    def turn(self) -> tuple[int, int]:
        """Sorts tenants: fewest running, then served longest ago."""
        return self.running, max(partition.last_claim_seq for partition in self.partitions)

    def open_partitions(self, free: Mapping[str, int], running_max: Mapping[str, int]) -> list[_Partition]:
        """Those from which a job may start; `running_max` is how many of a kind a tenant may have running."""
        return [
            one
            for one in self.partitions
            if one.ready and free.get(one.kind, 0) > 0 and one.running < running_max.get(one.kind, one.running + 1)
        ]


def claim(tx: Transaction, worker: str, capacity: Capacity) -> list[Started]:
    """Start as many ready jobs as there is room for, in the order of their turn."""
    tx.db.execute(_SQL["promote_due"], {"now_ms": tx.now_ms})
    capacity = _unpaused(tx, capacity)
    suspects = _suspects(tx, capacity)
    ids = _choose(tx, capacity) if suspects is None else suspects
    if not ids:
        return []
    start = {
        "state": next_state(State.QUEUED, Transition.CLAIM),
        "move": Transition.CLAIM,
        "now_ms": tx.now_ms,
        "worker": worker,
        "ids": _encode(ids).decode(),
    }
    rows = tx.db.execute(_SQL["start"], start).fetchall()
    started = {row["id"]: Started(job(row), row["claim_token"], row["sealed"]) for row in rows}
    for job_id in ids:
        tx.publish(job_topic(started[job_id].job.id))
    tx.publish(EVENT_TOPIC)
    return [started[job_id] for job_id in ids]


def _unpaused(tx: Transaction, capacity: Capacity) -> Capacity:
    """Without the kinds that are paused: asked here, so that none is started once its pause is on disk."""
    paused = {row["kind"] for row in tx.db.execute(_SQL["paused"])}
    if not paused:
        return capacity
    free = {kind: count for kind, count in capacity.free.items() if kind not in paused}
    slots = {kind: count for kind, count in capacity.slots.items() if kind not in paused}
    return msgspec.structs.replace(capacity, free=free, slots=slots)


def _suspects(tx: Transaction, capacity: Capacity) -> list[int] | None:
    """The suspect to start, or none while one runs or has to wait for what runs; None where there is no suspect."""
    if tx.db.execute(_SQL["is_alone"], {"crashes_max": capacity.crashes_max}).fetchone()["is_alone"]:
        return []
    kinds = _encode([*capacity.slots, *capacity.free]).decode()
    first = tx.db.execute(_SQL["suspects"], {"crashes_max": capacity.crashes_max, "kinds": kinds}).fetchone()
    if first is None:
        return None
    return [] if first["is_busy"] else [first["id"]]


def _choose(tx: Transaction, capacity: Capacity) -> list[int]:
    """Ids of the jobs to start; notes the turns of the partitions they come from."""
    rows = tx.db.execute(_SQL["lanes"]).fetchall()
    if not rows:
        return []
    first_seq = rows[0]["seq"] + 1
    free = dict(capacity.free)
    tenants = _by_tenant(rows)
    running_max = _running_max(tenants, capacity)
    turns = [(tenant.turn(), number) for number, tenant in enumerate(tenants)]
    heapify(turns)
    ids: list[int] = []
    served: set[_Partition] = set()
    while turns:
        number = turns[0][1]
        tenant = tenants[number]
        partitions = tenant.open_partitions(free, running_max)
        if not partitions or tenant.running >= capacity.per_tenant_running:
            heappop(turns)  # for good: capacity only shrinks
            continue
        first = min(partitions, key=lambda partition: partition.next(tx, at_most=free[partition.kind]))
        ids.append(first.take(first_seq + len(ids)))
        free[first.kind] -= 1
        served.add(first)
        heapreplace(turns, (tenant.turn(), number))
    _note_turns(tx, served)
    return ids


def _running_max(tenants: Sequence[_Tenant], capacity: Capacity) -> dict[str, int]:
    """How many jobs of each kind a tenant may have running: its share of the slots, where several wait for them."""
    waiting = Counter(
        partition.kind
        for tenant in tenants
        if tenant.running < capacity.per_tenant_running
        for partition in tenant.open_partitions(capacity.slots, capacity.per_tenant)
    )
    shares = {kind: -(-capacity.slots[kind] // count) for kind, count in waiting.items()}
    bounds = shares | dict(capacity.per_tenant)
    return {kind: min(shares.get(kind, bound), bound) for kind, bound in bounds.items()}


def _by_tenant(rows: list[Row]) -> list[_Tenant]:
    tenants: dict[str, _Tenant] = {}
    for row in rows:
        tenants.setdefault(row["tenant"], _Tenant()).partitions.append(_Partition(row))
    return list(tenants.values())


def _note_turns(tx: Transaction, served: set[_Partition]) -> None:
    turns = [{"tenant": one.tenant, "kind": one.kind, "seq": one.last_claim_seq} for one in served]
    if turns:
        tx.db.execute(_SQL["note_turns"], {"turns": _encode(turns).decode()})
