"""Group commit: many requests, one transaction, each alone in its failure."""

import asyncio
import sqlite3
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from imagejobd.model.errors import ErrorCode, Fault, Permanent, StoreFailed, invalid
from imagejobd.store.sqlite import writer as writer_module
from imagejobd.store.sqlite.database import close_database, open_database
from imagejobd.store.sqlite.writer import Transaction, Writer


class Bench:
    """A writer on a table of numbers, that counts its statements by their first word."""

    def __init__(self, path: Path, *, factory: type[sqlite3.Connection] = sqlite3.Connection) -> None:
        self.path = path
        self.published: list[str] = []
        self.counts: Counter[str] = Counter()
        self.check: Callable[[], None] = lambda: None
        self._factory = factory
        self.writer = Writer(
            self._open, close_database, clock=lambda: 1, publish=self.published.extend, check=lambda: self.check()
        )

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, isolation_level=None, factory=self._factory)
        db.execute("pragma journal_mode = wal")
        db.execute("create table number (n integer primary key) strict")
        db.set_trace_callback(lambda sql: self.counts.update([sql.split()[0]]))
        return db

    def numbers(self) -> list[int]:
        return [n for (n,) in sqlite3.connect(self.path).execute("select n from number order by n")]

    async def pause(self) -> Callable[[], None]:
        """Hold the writer inside a transaction until the answer is called, so that requests gather."""
        entered, go = threading.Event(), threading.Event()

        def wait(tx: Transaction) -> None:
            entered.set()
            go.wait(10)

        self.waiting = asyncio.create_task(self.writer.do(wait))
        await asyncio.to_thread(entered.wait, 10)
        return go.set


class FailingConnection(sqlite3.Connection):
    """Raises `errors[statement]` instead of carrying the statement out."""

    errors: ClassVar[dict[str, BaseException]] = {}

    def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
        if sql in self.errors:
            raise self.errors[sql]
        return super().execute(sql, parameters)


def insert(tx: Transaction, numbers: Sequence[int]) -> list[int | Fault]:
    for n in numbers:
        tx.db.execute("insert into number values (?)", (n,))
        tx.publish(f"number:{n}")
    return list(numbers)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path / "numbers.db")
    await bench.writer.open()
    yield bench
    await bench.writer.close()


async def test_requests_that_wait_share_one_commit(bench: Bench) -> None:
    """A hundred requests that came while the writer was busy cost one transaction and one savepoint."""
    go_on = await bench.pause()
    waiting = [asyncio.create_task(bench.writer.run(insert, n)) for n in range(100)]
    await asyncio.sleep(0)
    before = bench.counts.copy()
    go_on()
    assert await asyncio.gather(*waiting) == list(range(100))
    assert bench.counts["commit"] - before["commit"] == 2  # the pause's own, and one for all
    assert bench.counts["savepoint"] - before["savepoint"] == 1
    assert bench.numbers() == list(range(100))


async def test_answers_come_after_the_commit(bench: Bench) -> None:
    """Whoever has an answer finds the row from another connection, and the topics are published."""
    await bench.writer.run(insert, 7)
    assert bench.numbers() == [7]
    assert "number:7" in bench.published


async def test_one_failing_request_fails_alone(bench: Bench) -> None:
    """In a run of like requests only the guilty one is rolled back and fails."""
    await bench.writer.run(insert, 5)
    go_on = await bench.pause()
    waiting = [asyncio.create_task(bench.writer.run(insert, n)) for n in range(10)]
    await asyncio.sleep(0)
    go_on()
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert [n for n, answer in enumerate(answers) if isinstance(answer, Exception)] == [5]
    assert isinstance(answers[5], Permanent)
    assert "CONSTRAINT" in answers[5].message
    assert bench.numbers() == list(range(10))


async def test_half_a_request_is_no_request(bench: Bench) -> None:
    """What a request wrote before it failed is undone, and its neighbours in the transaction stay."""

    def fail_half_way(tx: Transaction) -> None:
        tx.db.execute("insert into number values (1)")
        raise invalid("no")

    go_on = await bench.pause()
    failing = asyncio.create_task(bench.writer.do(fail_half_way))
    fine = asyncio.create_task(bench.writer.run(insert, 2))
    await asyncio.sleep(0)
    go_on()
    with pytest.raises(Permanent, match="no"):
        await failing
    assert await fine == 2
    assert bench.numbers() == [2]


async def test_a_verb_may_refuse_some_of_its_run(bench: Bench) -> None:
    """A Fault among the answers goes to its caller only."""

    def odd_only(tx: Transaction, numbers: Sequence[int]) -> list[int | Fault]:
        return [n if n % 2 else invalid(f"{n} is even") for n in numbers]

    answers = await asyncio.gather(*(bench.writer.run(odd_only, n) for n in range(4)), return_exceptions=True)
    assert [isinstance(answer, Fault) for answer in answers] == [True, False, True, False]


async def test_a_cancelled_caller_harms_nobody(bench: Bench) -> None:
    """Its request may still be carried out; the others of the batch are answered."""
    go_on = await bench.pause()
    given_up = asyncio.create_task(bench.writer.run(insert, 1))
    patient = asyncio.create_task(bench.writer.run(insert, 2))
    await asyncio.sleep(0)
    given_up.cancel()
    go_on()
    assert await patient == 2
    assert given_up.cancelled()


async def test_callers_wait_when_too_much_is_pending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past `PENDING_MAX` requests, the unanswered ones included, callers wait their turn, and none is lost."""
    monkeypatch.setattr(writer_module, "PENDING_MAX", 3)
    bench = Bench(tmp_path / "numbers.db")
    await bench.writer.open()
    go_on = await bench.pause()
    waiting = [asyncio.create_task(bench.writer.run(insert, n)) for n in range(20)]
    await asyncio.sleep(0)
    go_on()
    assert await asyncio.gather(*waiting) == list(range(20))
    assert bench.counts["commit"] >= 1 + 1 + 6  # the pause, two beside it, and three at a time
    await bench.writer.close()


async def test_a_batch_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """More requests than `BATCH_MAX` take more than one transaction, so that the first never waits for all."""
    monkeypatch.setattr(writer_module, "BATCH_MAX", 10)
    go_on = await bench.pause()
    waiting = [asyncio.create_task(bench.writer.run(insert, n)) for n in range(25)]
    await asyncio.sleep(0)
    go_on()
    await asyncio.gather(*waiting)
    assert bench.counts["commit"] == 4


async def test_closing_carries_out_what_is_queued(tmp_path: Path) -> None:
    """Requests from before the close are committed; those after it are refused."""
    bench = Bench(tmp_path / "numbers.db")
    await bench.writer.open()
    go_on = await bench.pause()
    waiting = [asyncio.create_task(bench.writer.run(insert, n)) for n in range(5)]
    await asyncio.sleep(0)
    closing = asyncio.create_task(bench.writer.close())
    await asyncio.sleep(0)
    go_on()
    assert await asyncio.gather(*waiting) == list(range(5))
    await closing
    with pytest.raises(Permanent) as refused:
        await bench.writer.run(insert, 9)
    assert refused.value.code is ErrorCode.INTERNAL
    assert bench.numbers() == list(range(5))


async def test_opening_tells_why_it_cannot(tmp_path: Path) -> None:
    """What opening the database raises is raised to whoever opens the writer."""
    path = tmp_path / "no such folder" / "x.db"
    writer = Writer(lambda: open_database(path), close_database, clock=lambda: 1, publish=lambda _: None)
    with pytest.raises(Permanent, match="no such folder"):
        await writer.open()


async def assert_stopped(bench: Bench, reason: str) -> None:
    """Nothing more is taken, `failed` says why, and the writer can be closed."""
    async with asyncio.timeout(20):
        assert reason in await bench.writer.failed
        for _ in range(2):
            with pytest.raises(StoreFailed, match=reason):
                await bench.writer.run(insert, 100)
        await bench.writer.close()


@pytest.mark.parametrize(
    "errors",
    [
        {"begin immediate": MemoryError("none left")},
        {"savepoint run": MemoryError("none left")},
        {"commit": MemoryError("none left")},
        {"commit": SystemExit("none left")},
        {"commit": MemoryError("none left"), "rollback": MemoryError("none left")},
    ],
    ids=["begin", "savepoint", "commit", "exit", "rollback too"],
)
async def test_a_writer_that_breaks_leaves_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, errors: dict[str, BaseException]
) -> None:
    """Whatever goes wrong around the requests, all of them fail, nothing is half-written, and the store stops."""
    bench = Bench(tmp_path / "numbers.db", factory=FailingConnection)
    await bench.writer.open()
    await bench.writer.run(insert, 1)
    go_on = await bench.pause()
    waiting = [asyncio.create_task(bench.writer.run(insert, n)) for n in range(2, 9)]
    await asyncio.sleep(0)
    monkeypatch.setattr(FailingConnection, "errors", errors)
    go_on()
    async with asyncio.timeout(20):
        await asyncio.wait([bench.waiting])
        answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert bench.waiting.exception() is None or isinstance(bench.waiting.exception(), StoreFailed)
    assert all(isinstance(answer, StoreFailed) for answer in answers), answers
    assert len({id(answer) for answer in answers}) == len(answers)
    await assert_stopped(bench, "none left")
    assert bench.numbers() == [1]


async def test_a_verb_that_answers_for_too_few_stops_the_store(tmp_path: Path) -> None:
    """Whose answer is missing can't be known: nobody hears of a success, and nothing is kept."""
    bench = Bench(tmp_path / "numbers.db")
    await bench.writer.open()

    def answer_one(tx: Transaction, numbers: Sequence[int]) -> list[int | Fault]:
        return insert(tx, numbers)[:1]

    go_on = await bench.pause()
    waiting = [asyncio.create_task(bench.writer.run(answer_one, n)) for n in range(3)]
    await asyncio.sleep(0)
    go_on()
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(answer, StoreFailed) for answer in answers), answers
    await assert_stopped(bench, "ValueError")
    assert bench.numbers() == []


@pytest.mark.parametrize("defect", [KeyError("a defect"), StopIteration("a defect")], ids=["KeyError", "StopIteration"])
async def test_a_defect_of_one_verb_fails_its_caller_alone(bench: Bench, defect: Exception) -> None:
    """Its changes are undone, its caller hears of it, and the others of the transaction are committed."""

    def fail(tx: Transaction) -> None:
        tx.db.execute("insert into number values (1)")
        raise defect

    go_on = await bench.pause()
    failing = asyncio.create_task(bench.writer.do(fail))
    fine = asyncio.create_task(bench.writer.run(insert, 2))
    await asyncio.sleep(0)
    go_on()
    async with asyncio.timeout(20):
        with pytest.raises((KeyError, RuntimeError), match="a defect"):
            await failing
        assert await fine == 2
    assert bench.numbers() == [2]
    assert not bench.writer.failed.done()


async def test_what_the_check_finds_stops_the_store(tmp_path: Path) -> None:
    """The check comes before each commit; what it refuses is not committed."""
    bench = Bench(tmp_path / "numbers.db")
    await bench.writer.open()
    await bench.writer.run(insert, 1)

    def lost() -> None:
        raise StoreFailed("the file is gone")

    bench.check = lost
    with pytest.raises(StoreFailed, match="the file is gone"):
        await bench.writer.run(insert, 2)
    await assert_stopped(bench, "the file is gone")
    assert bench.numbers() == [1]


def test_a_loop_that_is_closed_ends_the_thread(tmp_path: Path) -> None:
    """A writer whose loop has gone closes its database, and does not wait for requests that nobody can make."""

    async def leave() -> tuple[Bench, Callable[[], None]]:
        bench = Bench(tmp_path / "numbers.db")
        await bench.writer.open()
        go_on = await bench.pause()
        bench.waiting.cancel()
        return bench, go_on

    bench, go_on = asyncio.run(leave())
    go_on()
    bench.writer._thread.join(20)
    assert not bench.writer._thread.is_alive()
