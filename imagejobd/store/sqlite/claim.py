"""Choosing which jobs start next.

Fair between tenants: the one with the fewest running jobs is served first, then the one that was served longest ago,
and while several wait for a kind none gets more than its share of the slots. Within a tenant the highest priority goes
first, then the oldest. The choice reads the lanes that have work and the head of those it takes from: neither the
length of the queue nor that of the history matters.

A job that was running through several crashes of the daemon is a suspect. It starts alone, so that the next crash has
one cause; those that ran beside it are innocent.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from heapq import heapify, heappop, heapreplace
from sqlite3 import Row

import msgspec

from imagejobd.model.job import Job, State, Transition, next_state
from imagejobd.store.protocol import Capacity, job_topic
from imagejobd.store.sqlite import queries
from imagejobd.store.sqlite.database import load
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
            wanted = {"tenant": self.tenant, "kind": self.kind, "limit": min(self.ready, at_most)}
            found = tx.db.execute(_SQL["head_of_lane"], wanted).fetchall()
            self.head = [(-row["priority"], row["id"]) for row in reversed(found)]
        return self.head[-1]

    def take(self, seq: int) -> int:
        assert self.head  # `next` has been asked  # noqa: S101
        self.ready -= 1
        self.running += 1
        self.last_claim_seq = seq
        return self.head.pop()[1]


class _Tenant:
    """All lanes of one tenant, while a claim chooses."""

    def __init__(self) -> None:
        self.lanes: list[_Partition] = []

    @property
    def running(self) -> int:
        return sum(lane.running for lane in self.lanes)

    def turn(self) -> tuple[int, int]:
        """Sorts tenants: fewest running, then served longest ago."""
        return self.running, max(lane.last_claim_seq for lane in self.lanes)

    def open_lanes(self, free: dict[str, int], most: Mapping[str, int]) -> list[_Partition]:
        """Those from which a job may start: `most` is how many of a kind a tenant may have running."""
        return [
            lane
            for lane in self.lanes
            if lane.ready and free.get(lane.kind, 0) > 0 and lane.running < most.get(lane.kind, lane.running + 1)
        ]


def claim(tx: Transaction, worker: str, room: Capacity) -> list[Started]:
    """Start as many ready jobs as there is room for, in the order of their turn."""
    tx.db.execute(_SQL["promote_due"], {"now_ms": tx.now_ms})
    suspects = _suspects(tx, room)
    ids = _choose(tx, room) if suspects is None else suspects
    if not ids:
        return []
    start = {
        "state": next_state(State.QUEUED, Transition.CLAIM),
        "move": Transition.CLAIM,
        "now_ms": tx.now_ms,
        "worker": worker,
        "ids": _encode(ids).decode(),
    }
    found = tx.db.execute(_SQL["start"], start).fetchall()
    started = {row["id"]: Started(queries.job(row), row["claim_token"], row["sealed"]) for row in found}
    for job_id in ids:
        tx.publish(job_topic(started[job_id].job.id))
    return [started[job_id] for job_id in ids]


def _suspects(tx: Transaction, room: Capacity) -> list[int] | None:
    """The suspect to start, or none while one runs or has to wait for what runs; None where there is no suspect."""
    if tx.db.execute(_SQL["is_alone"], {"crashes_max": room.crashes_max}).fetchone()["is_alone"]:
        return []
    kinds = _encode([*room.slots, *room.free]).decode()
    first = tx.db.execute(_SQL["suspects"], {"crashes_max": room.crashes_max, "kinds": kinds}).fetchone()
    if first is None:
        return None
    return [] if first["is_busy"] else [first["id"]]


def _choose(tx: Transaction, room: Capacity) -> list[int]:
    """Ids of the jobs to start; notes the turns of the lanes they come from."""
    found = tx.db.execute(_SQL["lanes"]).fetchall()
    if not found:
        return []
    first_seq = found[0]["seq"] + 1
    free = dict(room.free)
    tenants = _by_tenant(found)
    most = _most_per_tenant(tenants, room)
    turns = [(tenant.turn(), number) for number, tenant in enumerate(tenants)]
    heapify(turns)
    ids: list[int] = []
    served: set[_Partition] = set()
    while turns:
        number = turns[0][1]
        tenant = tenants[number]
        lanes = tenant.open_lanes(free, most)
        if not lanes or tenant.running >= room.per_tenant_running:
            heappop(turns)  # for good: room only shrinks
            continue
        lane = min(lanes, key=lambda lane: lane.next(tx, at_most=free[lane.kind]))
        ids.append(lane.take(first_seq + len(ids)))
        free[lane.kind] -= 1
        served.add(lane)
        heapreplace(turns, (tenant.turn(), number))
    _note_turns(tx, served)
    return ids


def _most_per_tenant(tenants: Sequence[_Tenant], room: Capacity) -> dict[str, int]:
    """How many jobs of each kind a tenant may have running: its share of the slots, where several wait for them."""
    waiting = Counter(
        lane.kind
        for tenant in tenants
        if tenant.running < room.per_tenant_running
        for lane in tenant.open_lanes(dict(room.slots), room.per_tenant)
    )
    shares = {kind: -(-room.slots[kind] // count) for kind, count in waiting.items()}
    return {kind: min(shares.get(kind, most), most) for kind, most in (shares | dict(room.per_tenant)).items()}


def _by_tenant(found: list[Row]) -> list[_Tenant]:
    tenants: dict[str, _Tenant] = {}
    for row in found:
        tenants.setdefault(row["tenant"], _Tenant()).lanes.append(_Partition(row))
    return list(tenants.values())


def _note_turns(tx: Transaction, served: set[_Partition]) -> None:
    turns = [{"tenant": lane.tenant, "kind": lane.kind, "seq": lane.last_claim_seq} for lane in served]
    if turns:
        tx.db.execute(_SQL["note_turns"], {"turns": _encode(turns).decode()})
