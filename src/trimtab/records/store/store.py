"""The store of runs: `StoreRecorder` writes one, `Store` reads them back.

A run's decisions are kept as they are made, without ever stopping the training.
"""

from __future__ import annotations

import atexit
import base64
import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.core.decision import Decision, Recorder, RunInfo, Summary
from trimtab.core.errors import StoreError
from trimtab.core.notices import tell
from trimtab.records.store.database import (
    BUSY_SECONDS,
    DEFAULT_STORE,
    close_engine,
    explain_failure,
    file_of,
    open_engine,
    prepare_schema,
    shown,
    store_url,
)
from trimtab.records.store.encoding import to_json
from trimtab.records.store.rows import (
    RunRecord,
    decision_row,
    finish_row,
    read_decision,
    read_run,
    run_row,
)

if TYPE_CHECKING:
    from sqlalchemy import Connection

_BUSY_SECONDS_IN_A_RUN = 0.2


class StoreRecorder(Recorder):
    """Writes one run into a store: its head at once, each decision when it is made, then its end.

    Opening fails loudly, before any training. From then on a store that fails stops nothing: the
    rows wait in memory, one warning is given, every later decision tries again, and what could
    not be written at the end goes to a file of JSON lines whose path is said.

    Args:
        store: Database URL, or path of an SQLite file.
        info: What is known of the run.
        run: Number of a run in this store that goes on, after `state`; None for a new one.
            Decisions that it already holds are replaced when they are made again.

    Raises:
        StoreError: The store cannot be opened, is locked, damaged, read-only, full, or of a newer
            trimtab; or it has no run of that number.
    """

    def __init__(self, store: str | Path, info: RunInfo, *, run: int | None = None) -> None:
        self.url = store_url(store)
        self._info = info
        self._head = run_row(info)
        self._pending: list[dict[str, Any]] = []
        self._end: dict[str, Any] | None = None
        self._figures: dict[str, Any] = {}
        self._warned = False
        self._failure: StoreError | None = None  # the last one
        # Whether rows that wait may already stand in the store: after a resumption, or when
        # writing them failed or was interrupted.
        self._doubtful = run is not None
        self._connection: Connection | None = None
        self._engine = open_engine(self.url, write=True)
        prepare_schema(self._engine, self.url, write=True)
        self.run = self._open(run)
        atexit.register(self._last_chance)

    # What a session calls.

    def decision(self, decision: Decision) -> None:
        """Write one decision; it is on its way to the disk when this returns, or waits its turn."""
        self._add(decision_row(decision))

    def finish(self, summary: Summary, status: str) -> None:
        """Write the run's figures, schedule and status, and whatever still waits."""
        self._end = finish_row(summary, status)
        self._figures = {**json.loads(self._end["summary"]), **self._figures}
        self._close()

    def add_figures(self, figures: Mapping[str, Any]) -> None:
        """Write figures known after the end, such as the metrics on the test split."""
        self._figures |= json.loads(to_json(dict(figures)))
        if self._end is not None:
            self._close()

    def state(self) -> dict[str, Any]:
        """Return the store's address and the run's number, for `StoreRecorder(..., run=...)`."""
        return {"store": self.url, "run": self.run}

    # Inside.

    def _open(self, run: int | None) -> int:
        from sqlalchemy.exc import SQLAlchemyError

        from trimtab.records.store.models import runs, studies

        try:
            connection = self._connect(BUSY_SECONDS)
            with connection.begin():
                if run is not None:
                    if connection.execute(runs.select().where(runs.c.id == run)).first() is None:
                        raise StoreError(
                            f"the store {shown(self.url)} has no run {run} to go on with; "
                            "start a new one, or name the store that it was written to"
                        )
                    known = ("host", "pid", "heartbeat_at", "status")
                    again = {name: self._head[name] for name in known} | {"finished_at": None}
                    connection.execute(runs.update().where(runs.c.id == run).values(again))
                    return run
                if self._info.study is not None:
                    mine = studies.select().where(studies.c.name == self._info.study)
                    found = connection.execute(mine.with_only_columns(studies.c.id)).scalar()
                    if found is None:
                        raise StoreError(
                            f"the store {shown(self.url)} has no study {self._info.study!r}; "
                            "create it first"
                        )
                    self._head["study_id"] = found
                result = connection.execute(runs.insert(), self._head)
                return int(result.inserted_primary_key[0])  # type: ignore[index]
        except SQLAlchemyError as error:
            self._disconnect()
            raise explain_failure(error, self.url) from error

    def _connect(self, busy_seconds: float) -> Connection:
        if self._connection is None:
            self._connection = self._engine.connect()
        if self.url.startswith("sqlite"):
            raw = self._connection.connection.dbapi_connection
            raw.execute(f"PRAGMA busy_timeout = {int(busy_seconds * 1000)}")  # type: ignore[union-attr]
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        with suppress(Exception):
            if connection is not None:
                connection.close()
        with suppress(Exception):
            self._engine.dispose()

    def _let_go(self) -> None:
        """Disconnect for good; whatever comes after it all the same connects anew."""
        self._disconnect()
        with suppress(Exception):
            close_engine(self._engine)

    def _add(self, row: dict[str, Any]) -> None:
        self._pending.append(row)
        self._try(_BUSY_SECONDS_IN_A_RUN)

    def _try(self, busy_seconds: float) -> bool:
        """Write all that waits, in one transaction; say whether that worked."""
        doubtful, self._doubtful = self._doubtful, True
        try:
            connection = self._connect(busy_seconds)
            with connection.begin():
                self._write(connection, doubtful=doubtful)
        except Exception as error:  # noqa: BLE001 - a store must never stop a user's training
            self._disconnect()
            self._failure = explain_failure(error, self.url)
            self._warn(self._failure)
            return False
        self._doubtful = doubtful and not self._pending
        self._pending.clear()
        return True

    def _write(self, connection: Connection, *, doubtful: bool) -> None:
        from trimtab.records.store.models import decisions, runs

        if doubtful and self._pending:
            mine = decisions.c.run_id == self.run
            later = decisions.c.decision >= self._pending[0]["decision"]
            connection.execute(decisions.delete().where(mine, later))
        for row in self._pending:
            connection.execute(decisions.insert(), {"run_id": self.run, **row})
        if self._end is not None:
            values = self._end | {"summary": to_json(self._figures)}
            connection.execute(runs.update().where(runs.c.id == self.run).values(values))

    def _close(self) -> None:
        if not self._try(BUSY_SECONDS):
            self._spill()
        self._let_go()
        atexit.unregister(self._last_chance)

    def _last_chance(self) -> None:
        """At the end of the process: write the decisions that wait, of a run nobody finished."""
        if self._pending and not self._try(BUSY_SECONDS):
            self._spill()
        self._let_go()

    def _spill(self) -> None:
        """Write what waits to a file of JSON lines, beside the store or in the temporary folder."""
        name = f"trimtab-run-{self.run}-{os.getpid()}.jsonl"
        beside = file_of(self.url)
        folders = [beside.parent] if beside is not None else []
        head = self._head | {"id": self.run}
        end = None if self._end is None else self._end | {"summary": to_json(self._figures)}
        lines = [{"run": head}, *({"decision": _as_text(row)} for row in self._pending)]
        text = "".join(json.dumps(line) + "\n" for line in [*lines, {"end": end}])
        for folder in [*folders, Path(tempfile.gettempdir())]:
            path = (folder / name).resolve()
            try:
                path.write_text(text, encoding="utf-8")
            except OSError:
                continue
            tell(
                f"the store {shown(self.url)} did not take {len(self._pending)} decisions of run "
                f"{self.run}; they are in {path} (trimtab report {path})"
            )
            return
        tell(
            f"{len(self._pending)} decisions of run {self.run} are lost: neither the store "
            f"{shown(self.url)} nor the folder {tempfile.gettempdir()} can be written"
        )

    def _warn(self, error: StoreError) -> None:
        if not self._warned:
            self._warned = True
            tell(f"{error}; training goes on, and decisions wait in memory until it works")


def _as_text(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, "observation": base64.b64encode(row["observation"]).decode()}


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
        from trimtab.records.store.models import runs

        query = runs.select().with_only_columns(runs.c.id).order_by(runs.c.id)
        return [row["id"] for row in self.rows(query)]

    def study_names(self) -> list[str]:
        """Return the names of all studies, the oldest first."""
        from trimtab.records.store.models import studies

        query = studies.select().with_only_columns(studies.c.name).order_by(studies.c.id)
        return [row["name"] for row in self.rows(query)]

    def runs(self, limit: int = 20) -> list[RunRecord]:
        """Return the heads of the last ``limit`` runs, the newest first, without decisions."""
        from trimtab.records.store.models import runs

        rows = self.rows(runs.select().order_by(runs.c.id.desc()).limit(limit))
        return [read_run(row, ()) for row in rows]

    def run(self, name: int | str) -> RunRecord:
        """Return one run whole.

        Args:
            name: Its number, or ``"latest"``.

        Raises:
            StoreError: No run is called that, or the store cannot be read.
        """
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
        head = self.rows(runs.select().where(runs.c.id == number))[0]
        mine = decisions.select().where(decisions.c.run_id == number)
        rows = self.rows(mine.order_by(decisions.c.decision))
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
    head, rows = _read_spill(path)
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


def _read_spill(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the run's columns and its decisions' from a file that a store did not take.

    The file may end early; what is whole is read.

    Raises:
        StoreError: The file cannot be read, or is none of these.
    """
    head: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(
            f"{path} cannot be read ({error}); name a run or its JSON lines"
        ) from error
    for line in text.splitlines():
        try:
            kind, value = next(iter(json.loads(line).items()))
        except (json.JSONDecodeError, AttributeError, StopIteration):
            break
        if kind == "run":
            head = value
        elif kind == "decision":
            rows.append({**value, "observation": base64.b64decode(value["observation"])})
        elif kind == "end" and value is not None:
            head |= value
    if "task" not in head:
        raise StoreError(f"{path} holds no run's record; name a run by its number, or such a file")
    return head, rows
