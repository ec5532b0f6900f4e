"""The store of runs: `StoreRecorder` writes one, `Store` reads them back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trimtab.core.errors import StoreError
from trimtab.records.store.database import (
    DEFAULT_STORE,
    close_engine,
    explain_failure,
    open_engine,
    prepare_schema,
    shown,
    store_url,
)
from trimtab.records.store.recorder import read_spill
from trimtab.records.store.rows import RunRecord, read_decision, read_run


class Store:
    """A store opened for reading; several processes may read while others write.

    Args:
        store: Database URL, or path of an SQLite file.

    Raises:
        StoreError: There is none, or it cannot be read.
    """

    def __init__(self, store: str | Path = DEFAULT_STORE) -> None:
        self.url = store_url(store)
        self._engine = open_engine(self.url, write=False)
        try:
            prepare_schema(self._engine, self.url, write=False)
        except BaseException:
            close_engine(self._engine)
            raise

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the database."""
        close_engine(self._engine)

    def run_ids(self) -> list[int]:
        """Return the numbers of all runs, the newest last."""
        from sqlalchemy import select

        from trimtab.records.store.models import runs

        return [row["id"] for row in self.rows(select(runs.c.id).order_by(runs.c.id))]

    def runs(self, limit: int = 20) -> list[RunRecord]:
        """Return the heads of the last ``limit`` runs, the newest first, without decisions."""
        from sqlalchemy import select

        from trimtab.records.store.models import runs

        rows = self.rows(select(runs).order_by(runs.c.id.desc()).limit(limit))
        return [read_run(row, ()) for row in rows]

    def run(self, name: int | str) -> RunRecord:
        """Return one run whole.

        Args:
            name: Its number, or ``"latest"``.

        Raises:
            StoreError: No run is called that, or the store cannot be read.
        """
        from sqlalchemy import select

        from trimtab.records.store.models import decisions, runs

        known = self.run_ids()
        text = str(name).strip()
        number = known[-1] if text == "latest" and known else int(text) if text.isdigit() else -1
        if number not in known:
            have = ", ".join(map(str, known[-8:])) or "none"
            raise StoreError(
                f"the store {shown(self.url)} has no run {text!r} (the last ones: {have}); "
                "give a number, or latest"
            )
        head = self.rows(select(runs).where(runs.c.id == number))[0]
        rows = self.rows(
            select(decisions).where(decisions.c.run_id == number).order_by(decisions.c.decision)
        )
        return read_run(head, tuple(map(read_decision, rows)))

    def rows(self, query: Any) -> list[dict[str, Any]]:
        """Return the rows of a query.

        Raises:
            StoreError: The store cannot be read.
        """
        from sqlalchemy.exc import SQLAlchemyError

        try:
            with self._engine.connect() as connection, connection.begin():
                return [dict(row) for row in connection.execute(query).mappings()]
        except SQLAlchemyError as error:
            raise explain_failure(error, self.url) from error


def load_run(name: str, store: str | Path = DEFAULT_STORE) -> RunRecord:
    """Return a run by number, by ``"latest"``, or from a file of JSON lines that no store took.

    A file completes what the store holds of the same run, where that can be read.

    Raises:
        StoreError: There is no such run, or it cannot be read.
    """
    path = Path(name)
    if path.suffix != ".jsonl":
        with Store(store) as opened:
            return opened.run(name)
    head, rows = read_spill(path)
    written: dict[int, Any] = {}
    try:
        with Store(store) as opened:
            stored = opened.run(head["id"])
            if stored.head["started_at"] == head["started_at"]:
                written = {item.decision: item for item in stored.decisions}
    except StoreError:
        pass
    written |= {row["decision"]: read_decision(row) for row in rows}
    return read_run(head, tuple(written[index] for index in sorted(written)))
