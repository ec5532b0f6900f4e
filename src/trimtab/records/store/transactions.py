"""Transactions that are tried again while the database is locked, full or away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from trimtab.records.store.database import (
    close_engine,
    explain_failure,
    file_of,
    open_engine,
    prepare_schema,
    store_url,
)
from trimtab.records.store.patience import Patience, patience_with
from trimtab.records.store.read_only import may_write_beside

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = ["Transactions"]

T = TypeVar("T")


class Transactions:
    """A store for reading and writing in short transactions; one object a process and store.

    Args:
        store: Database URL, or path of an SQLite file.
        create: Whether the file may be made if it is missing. Where not, a file in a folder that
            cannot be written to is opened for reading, and `change` fails.
        patience: With the store; None for the one that this process has.

    Raises:
        StoreError: The store cannot be opened.
    """

    def __init__(
        self, store: str | Path, *, create: bool = True, patience: Patience | None = None
    ) -> None:
        self.url = store_url(store)
        self._patience = patience_with(self.url) if patience is None else patience
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
            StoreError: It could not be done while patience with the store lasted.
        """
        return self._repeated(self._reader, action)

    def change(self, action: Callable[[Connection], T]) -> T:
        """Return what an action gives that reads and writes in one transaction.

        The action may be called several times; all but the last are undone.

        Raises:
            StoreError: It could not be done while patience with the store lasted.
        """
        return self._repeated(self._writer, action)

    def _repeated(self, engine: Any, action: Callable[[Connection], T]) -> T:
        from sqlalchemy.exc import SQLAlchemyError

        with self._patience.begin() as wait:
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
