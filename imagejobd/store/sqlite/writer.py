"""The one thread that writes, with group commit.

SQLite has one writer at a time and every commit costs an fsync, so requests queue up here and one transaction takes
all that wait: `BEGIN IMMEDIATE`, a savepoint for each run of like requests, one `COMMIT`, and only then all their
answers. Requests that are outstanding at the same time have no order among each other.

It never retries a commit, and it never lets one request's failure touch another's. What fails outside of one request
fails all of them, now and later, and resolves `failed`: nobody waits for a thread that has ended.
"""

import asyncio
import contextlib
import copy
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from imagejobd.model.errors import ErrorCode, Fault, Permanent, StoreFailed
from imagejobd.model.failpoint import failpoint
from imagejobd.store.sqlite import errors

# Requests waiting for the writer; past it callers wait in `run`. At full load it is a fraction of a second's work.
PENDING_MAX = 2048
# Requests in one transaction: bounds how long the first of them waits for the last.
BATCH_MAX = 256

A = TypeVar("A")
R = TypeVar("R")


class Transaction:
    """What a verb works with: the writing connection, the time of the whole transaction, the topics that it changed."""

    __slots__ = ("db", "now_ms", "topics")

    def __init__(self, db: sqlite3.Connection, now_ms: int) -> None:
        self.db = db
        self.now_ms = now_ms
        self.topics: set[str] = set()

    def publish(self, topic: str) -> None:
        """Publish `topic` after the commit."""
        self.topics.add(topic)


# A verb carries out a run of requests at once, all or none, and answers each; one that it refuses before it has written
# anything may be answered by a Fault.
Verb = Callable[[Transaction, Sequence[A]], Sequence[R | Fault]]


class _Request:
    __slots__ = ("answer", "argument", "error", "future", "verb")

    def __init__(self, verb: Verb[Any, Any], argument: object, future: asyncio.Future[Any]) -> None:
        self.verb = verb
        self.argument = argument
        self.future = future
        self.answer: Any = None
        self.error: BaseException | None = None


class Writer:
    """Owns the writing connection. `failed` resolves with the reason when the database can't be trusted any more.

    `check` comes before every commit; what it raises stops the store. After that the connection is closed as it is, so
    that the next start knows of no clean stop. `observe` is told the requests and the seconds of each commit, in the
    writer's thread.
    """

    def __init__(
        self,
        open_database: Callable[[], sqlite3.Connection],
        close_database: Callable[[sqlite3.Connection], None],
        *,
        clock: Callable[[], int],
        publish: Callable[[Iterable[str]], None],
        check: Callable[[], None] = lambda: None,
        observe: Callable[[int, float], None] = lambda requests, seconds: None,
    ) -> None:
        self._open_database = open_database
        self._close_database = close_database
        self._clock = clock
        self._publish = publish
        self._check = check
        self._observe = observe
        self._loop = asyncio.get_running_loop()
        self._inbox: deque[_Request] = deque()
        self._batch: list[_Request] = []
        self._wake = threading.Event()
        self._is_waking = False
        self._slots = asyncio.Semaphore(PENDING_MAX)
        self._thread = threading.Thread(target=self._run_thread, name="store-writer", daemon=True)
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._closing = False
        self._failure: StoreFailed | None = None
        self.failed: asyncio.Future[str] = self._loop.create_future()

    async def open(self) -> None:
        """Start the thread and open the database in it. Raises what opening raises."""
        self._thread.start()
        await asyncio.shield(self._opened)

    async def close(self) -> None:
        """Carry out what is queued, then close the database."""
        if not self._closing:
            self._closing = True
            self._wake.set()
        await asyncio.shield(self._closed)
        self._thread.join()

    async def run(self, verb: Verb[A, R], argument: A) -> R:
        """Carry out one request of `verb`, together with all like it that wait. When this returns it is on disk.

        A cancelled caller's request may still be carried out.
        """
        await self._slots.acquire()
        if self._closing or self._failure is not None:
            self._slots.release()
            raise copy.copy(self._failure) if self._failure else Permanent(ErrorCode.INTERNAL, "the store is closed")
        future: asyncio.Future[R] = self._loop.create_future()
        self._inbox.append(_Request(verb, argument, future))
        if not self._is_waking:
            self._is_waking = True
            self._loop.call_soon(self._wake_up)
        return await future

    async def do(self, act: Callable[[Transaction], R]) -> R:
        """Carry out one request that is like no other."""
        return await self.run(lambda tx, _: [act(tx)], None)

    def fail(self, failure: StoreFailed) -> None:
        """Take no more requests, for a failure outside of any transaction. The first failure counts."""
        self._failure = self._failure or failure
        if not self.failed.done():
            self.failed.set_result(self._failure.reason)

    def _wake_up(self) -> None:
        """Wake the thread, once for all that a turn of the loop has brought.

        Woken for each request, it would fight the loop for the interpreter lock as often, and win it with little to
        commit.
        """
        self._is_waking = False
        self._wake.set()

    # Below here all runs in the writer's thread, but for `_resolve` and `_fail_all`.

    def _run_thread(self) -> None:
        try:
            self._db = self._open_database()
        except BaseException as error:  # noqa: BLE001  carried over to the caller of `open`
            self._call_on_loop(_settle, self._opened, error)
            return
        try:
            self._call_on_loop(_settle, self._opened, None)
            while self._wait_for_requests():
                self._batch = [self._inbox.popleft()]
                topics = self._commit_batch(self._batch)
                self._call_on_loop(self._resolve, self._batch, topics)
        except BaseException as error:  # noqa: BLE001  whatever it is, somebody may be waiting
            self._failure = errors.failed(error, "the writer's own work")
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits
                self._call_on_loop(self._fail_all, self._failure)
        self._close_connection()

    def _wait_for_requests(self) -> bool:
        """False when it is time to close."""
        while not self._inbox:
            if self._closing:
                return False
            self._wake.wait()
            self._wake.clear()
        return True

    def _commit_batch(self, batch: list[_Request]) -> set[str]:
        """Carry out `batch` and, joining it, all that waits by then; returns the topics that were changed."""
        if self._failure is not None:
            return _refuse(batch, self._failure)
        doing, began = "BEGIN", time.monotonic()
        try:
            self._db.execute("begin immediate")
            # Only now: under load the thread has just waited for the interpreter lock, and more has come in.
            while len(batch) < BATCH_MAX and self._inbox:
                batch.append(self._inbox.popleft())
            tx = Transaction(self._db, self._clock())
            doing = "a statement"
            for run in _runs(batch):
                _carry_out(tx, run)
            doing = "COMMIT"
            self._check()
            failpoint("before_commit")
            self._db.execute("commit")
            failpoint("after_commit")
            self._observe(len(batch), time.monotonic() - began)
        except BaseException as error:  # noqa: BLE001  no request outlives the transaction it was in
            return _refuse(batch, self._roll_back(error, doing))
        return tx.topics

    def _roll_back(self, error: BaseException, doing: str) -> Fault:
        """Roll back; the fault for all requests of the batch."""
        fault = errors.passing(error)
        try:
            if self._db.in_transaction:  # SQLite has rolled back by itself after most of these
                self._db.execute("rollback")
        except sqlite3.Error as second:
            if fault is not None:
                fault, error, doing = None, second, "ROLLBACK"
        if fault is not None:
            return fault
        failure = errors.failed(error, doing)
        self._failure = failure
        self._call_on_loop(self.fail, failure)
        return failure

    def _close_connection(self) -> None:
        failure: BaseException | None = None
        try:
            if self._failure is None:
                self._close_database(self._db)
            else:
                self._db.close()
        except BaseException as error:  # noqa: BLE001  carried over to the caller of `close`
            failure = None if self._failure else error
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits
            self._call_on_loop(_settle, self._closed, failure)

    def _call_on_loop(self, callback: Callable[..., None], *arguments: object) -> None:
        self._loop.call_soon_threadsafe(callback, *arguments)

    def _resolve(self, batch: list[_Request], topics: set[str]) -> None:
        """On the loop: answer all requests of one commit, and publish what it changed."""
        for request in batch:
            self._slots.release()
            if request.future.done():  # its caller was cancelled
                continue
            if request.error is not None:
                request.future.set_exception(request.error)
            else:
                request.future.set_result(request.answer)
        self._publish(topics)

    def _fail_all(self, failure: StoreFailed) -> None:
        """On the loop: the thread has ended. Who asked before is answered here, who asks later by `run`."""
        self.fail(failure)
        requests = [*self._batch, *self._inbox]
        self._inbox.clear()
        _refuse(requests, failure)
        self._resolve(requests, set())


def _runs(batch: list[_Request]) -> Iterable[list[_Request]]:
    """The requests of each verb together, verbs in the order of their first request."""
    runs: dict[Verb[Any, Any], list[_Request]] = {}
    for request in batch:
        runs.setdefault(request.verb, []).append(request)
    return runs.values()


def _carry_out(tx: Transaction, run: list[_Request]) -> None:
    """Carry out a run at once; when that fails, each of its requests alone, so that only the guilty one fails.

    Raises `sqlite3.Error` where the whole transaction is lost, and `StoreFailed` where the database is.
    """
    tx.db.execute("savepoint run")
    try:
        answers = run[0].verb(tx, [request.argument for request in run])
    except Exception as error:
        if isinstance(error, StoreFailed) or not errors.concerns_one_request(error):
            raise
        tx.db.execute("rollback to run")
        tx.db.execute("release run")
        if len(run) == 1:
            run[0].error = errors.of_request(error, "a change")
            return
        for request in run:
            _carry_out(tx, [request])
        return
    tx.db.execute("release run")
    for request, answer in zip(run, answers, strict=True):
        if isinstance(answer, Fault):
            request.error = answer
        else:
            request.answer = answer


def _refuse(batch: list[_Request], fault: Fault) -> set[str]:
    for request in batch:
        request.error = copy.copy(fault)
    return set()


def _settle(future: asyncio.Future[None], error: BaseException | None) -> None:
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(None)
