"""Group commit: one thread applies queued steps, many to a transaction, and answers only after the commit."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection, Engine, RootTransaction
from sqlalchemy.exc import DBAPIError

from memgrid_coordinator.store import events
from memgrid_coordinator.store.dialects import WRITES

Value = TypeVar("Value")
BATCH_MAX = 256
"""Steps in one transaction at most: bounds what one commit can make others wait for."""


class BatchObserver(Protocol):
    """Told of every transaction, for the metrics."""

    def __call__(self, *, steps: int, seconds: float) -> None: ...


@dataclass(frozen=True, slots=True)
class _Queued:
    step: Callable[[Connection], Any]
    answer: Future[Any]


class Writer:
    """The only one who writes. A step that raises is rolled back to its savepoint; its neighbours stand.

    No timer collects a batch: while one transaction is being synced to disk the next steps queue up, so batches
    grow with the load and a lone step never waits.
    """

    def __init__(self, engine: Engine, observer: BatchObserver | None = None) -> None:
        self._engine = engine
        self._observer = observer
        self._queue: queue.SimpleQueue[_Queued | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="store-write", daemon=True)
        self._thread.start()

    def submit(self, step: Callable[[Connection], Value]) -> Future[Value]:
        """Queue a step; its future resolves when the step is on disk, or with what it raised."""
        answer: Future[Value] = Future()
        self._queue.put(_Queued(step, answer))
        return answer

    def close(self) -> None:
        """Apply what is queued, then stop."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        with self._engine.connect().execution_options(**WRITES) as connection:
            while batch := self._next_batch():
                started = time.perf_counter()  # a duration for the metrics, not a time of day
                self._apply(connection, batch)
                if self._observer is not None:
                    self._observer(steps=len(batch), seconds=time.perf_counter() - started)
                if self._closing:
                    return

    _closing = False

    def _next_batch(self) -> list[_Queued]:
        batch: list[_Queued] = []
        queued = self._queue.get()
        while queued is not None:
            batch.append(queued)
            if len(batch) == BATCH_MAX:
                return batch
            try:
                queued = self._queue.get_nowait()
            except queue.Empty:
                return batch
        self._closing = True
        return batch

    def _apply(self, connection: Connection, batch: list[_Queued]) -> None:
        # Whoever has gone meanwhile was promised nothing.
        wanted = [queued for queued in batch if queued.answer.set_running_or_notify_cancel()]
        outcomes: list[tuple[_Queued, Any, BaseException | None]] = []
        try:
            with _begun(connection):
                if len(wanted) == 1:  # the transaction itself is its savepoint
                    outcomes = [(wanted[0], _taken(connection, wanted[0]), None)]
                else:
                    outcomes = [self._apart(connection, queued) for queued in wanted]
        except Exception as error:  # noqa: BLE001 - a lone step raised, or the commit failed: nothing happened
            outcomes = [(queued, None, error) for queued in wanted]
        for queued, value, failure in outcomes:
            if failure is None:
                queued.answer.set_result(value)
            else:
                queued.answer.set_exception(failure)

    def _apart(self, connection: Connection, queued: _Queued) -> tuple[_Queued, Any, BaseException | None]:
        """One step among others, behind a savepoint."""
        try:
            with connection.begin_nested():
                return queued, _taken(connection, queued), None
        except Exception as error:  # noqa: BLE001 - it belongs to whoever queued the step
            return queued, None, error


def _taken(connection: Connection, queued: _Queued) -> Any:
    """What a step returns; its events are written with it, at its end."""
    with events.gathered(connection):
        return queued.step(connection)


def _begun(connection: Connection) -> RootTransaction:
    """A transaction. One whose connection turns out to be dead is begun again: nothing has been done in it."""
    try:
        return connection.begin()
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
        connection.rollback()
        return connection.begin()
