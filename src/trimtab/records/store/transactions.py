"""Transactions that are tried again while the database is locked, full or away.

All that a process does with one store has one budget of waiting: a minute in all, not in silence.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from trimtab.core.errors import TrimtabWarning
from trimtab.core.notices import tell
from trimtab.records.store.database import (
    close_engine,
    explain_failure,
    file_of,
    may_write_beside,
    open_engine,
    prepare_schema,
    store_url,
)

if TYPE_CHECKING:
    from sqlalchemy import Connection

T = TypeVar("T")

BUDGET_SECONDS = 60.0
"""How long operations on one store are tried again in all, before their failure is told."""

LEAST_SECONDS = 2.0
"""How long each operation is tried again, however long others have waited before it."""

TELL_SECONDS = 3.0
"""How long an operation waits before the user is told of it."""

_LONGEST_PAUSE = 1.0
_GIVEN_BACK = 0.25  # so that a claim's end, a minute later, does not begin a whole new wait


class StoreWaitWarning(TrimtabWarning):
    """A store is waited for; it is full, locked or away."""


class RetryBudget:
    """What one process has left of the time to wait for one store.

    Waiting uses it up, second for second; four seconds without waiting give one back. So what
    fails for a lasting cause is waited for once, and not by every operation after it anew. Several
    threads may wait at a time. The user is told once, and again only after all of it has come back.

    Args:
        clock: Seconds, never going back.
        sleep: Pauses for so many seconds.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.clock, self.sleep = clock, sleep
        self._left, self._seen_at = BUDGET_SECONDS, clock()
        self._n_waiting, self._has_told = 0, False
        self._lock = threading.Lock()

    def begin(self) -> Wait:
        """Return the wait of one operation, which begins now; use it in a ``with`` block."""
        return Wait(self)

    def enter(self, change: int) -> float:
        """Note that so many more operations wait now, and return the seconds left to wait."""
        with self._lock:
            now = self.clock()
            passed, self._seen_at = now - self._seen_at, now
            left = self._left + passed * (-1.0 if self._n_waiting else _GIVEN_BACK)
            self._left = min(max(left, 0.0), BUDGET_SECONDS)
            self._n_waiting += change
            self._has_told = self._has_told and self._left < BUDGET_SECONDS
            return self._left

    def spend(self) -> None:
        """Use it all up: another process has waited for the store, and told the user."""
        self.enter(0)
        with self._lock:
            self._left, self._has_told = 0.0, True

    def tell_once(self, message: str) -> None:
        """Tell of a wait, unless that was done."""
        with self._lock:
            has_told, self._has_told = self._has_told, True
        if not has_told:
            tell(message, StoreWaitWarning)


class Wait:
    """One operation that is tried until it works, or the budget is spent.

    Args:
        budget: Of its process with its store.
    """

    def __init__(self, budget: RetryBudget) -> None:
        self._budget = budget
        self._begun, self._pause, self._is_waiting = budget.clock(), 0.02, False

    def __enter__(self) -> Wait:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_waiting:
            self._budget.enter(-1)

    def again(self, failure: str) -> bool:
        """Pause after a failure, and say whether to try again.

        Args:
            failure: What is waited for, in words that name the store.
        """
        left = self._budget.enter(0 if self._is_waiting else 1)
        self._is_waiting = True
        waited = self._budget.clock() - self._begun
        left = max(left, LEAST_SECONDS - waited)
        if left <= 0:
            return False
        if waited >= TELL_SECONDS:
            self._budget.tell_once(
                f"{failure}; waited for {waited:.0f} s, and tried again for {left:.0f} s more"
            )
        # Waits of different length, so that processes do not meet again and again.
        self._budget.sleep(self._pause * random.uniform(0.5, 1.0))
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        return True


@cache
def retry_budget(url: str) -> RetryBudget:
    """Return this process's budget with a store, the same for all who use it.

    Args:
        url: Of the database.
    """
    del url  # it is what the cache goes by
    return RetryBudget()


class Transactions:
    """A store for reading and writing in short transactions; one object a process and store.

    Args:
        store: Database URL, or path of an SQLite file.
        create: Whether the file may be made if it is missing. Where not, a file in a folder that
            cannot be written to is opened for reading, and `change` fails.
        budget: Of waiting for the store; None for the one that this process has.

    Raises:
        StoreError: The store cannot be opened.
    """

    def __init__(
        self, store: str | Path, *, create: bool = True, budget: RetryBudget | None = None
    ) -> None:
        self.url = store_url(store)
        self._budget = retry_budget(self.url) if budget is None else budget
        path = file_of(self.url)
        if not create:  # refuses a file that is not there, rather than making one
            close_engine(open_engine(self.url, write=False))
        write = create or path is None or may_write_beside(path)
        self._writer = self._reader = open_engine(self.url, write=write)
        try:
            prepare_schema(self._writer, self.url, write=write)
        except BaseException:
            self.close()
            raise
        if write and path is not None:
            # Another engine, since a writing one of SQLite takes the write lock to read, too.
            self._reader = open_engine(self.url, write=False)

    def close(self) -> None:
        """Let go of the database."""
        close_engine(self._writer)
        if self._reader is not self._writer:
            close_engine(self._reader)

    def rows(self, query: Any) -> list[dict[str, Any]]:
        """Return the rows of a query."""
        return self.read(
            lambda connection: [dict(row) for row in connection.execute(query).mappings()]
        )

    def read(self, action: Callable[[Connection], T]) -> T:
        """Return what an action reads in one transaction.

        Raises:
            StoreError: It could not be done before the budget of waiting was spent.
        """
        return self._repeated(self._reader, action)

    def change(self, action: Callable[[Connection], T]) -> T:
        """Return what an action gives that reads and writes in one transaction.

        The action may be called several times; all but the last are undone.

        Raises:
            StoreError: It could not be done before the budget of waiting was spent.
        """
        return self._repeated(self._writer, action)

    def _repeated(self, engine: Any, action: Callable[[Connection], T]) -> T:
        from sqlalchemy.exc import SQLAlchemyError

        with self._budget.begin() as wait:
            while True:
                try:
                    with engine.connect() as connection, connection.begin():
                        return action(connection)
                except SQLAlchemyError as error:
                    failure = explain_failure(error, self.url)
                    if not (_may_pass(error) and wait.again(str(failure))):
                        raise failure from error


def _may_pass(error: Exception) -> bool:
    """Whether a failure of the database may be over in a moment."""
    from sqlalchemy.exc import IntegrityError, OperationalError

    if isinstance(error, IntegrityError):  # another process wrote the same row a moment ago
        return True
    name = str(getattr(getattr(error, "orig", None), "sqlite_errorname", ""))
    if name:
        passing = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_FULL", "SQLITE_IOERR")
        return name.startswith(passing)
    return isinstance(error, OperationalError)
