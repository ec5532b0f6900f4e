"""Studies in the store: several processes work on one, each unit is done exactly once.

A unit is claimed by one process at a time. The claim is a lease: whoever holds it renews it, and
writes only while it is theirs; when the lease has ended, or the holder is known to have died on
this host, the unit may be claimed again. What a unit came to is written once, in the transaction
that ends the claim on it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.core.errors import StoreError, unknown_name
from trimtab.records.store.database import DEFAULT_STORE
from trimtab.records.store.encoding import to_json
from trimtab.records.store.provenance import is_gone, process_token
from trimtab.records.store.rows import (
    Claim,
    RunNode,
    SnapshotRecord,
    StudyRecord,
    UnitRecord,
    UnitRequest,
    read_node,
    read_snapshot_row,
    read_study,
    read_unit,
    require_same,
)
from trimtab.records.store.snapshots import SnapshotFile, check_study_name
from trimtab.records.store.transactions import Transactions

if TYPE_CHECKING:
    from sqlalchemy import Connection

_UNCLAIMED: Mapping[str, Any] = {"status": "waiting", "owner": None, "lease_until": None}

LEASE_SECONDS = 60.0
"""How long a claim holds without being renewed."""


class Studies:
    """A store opened for studies; one object a process and store.

    Every method that changes something is one transaction, tried again for a while,
    while the database is locked, full or away.

    Args:
        store: Database URL, or path of an SQLite file.
        create: Whether the file may be made if it is missing.

    Raises:
        StoreError: The store cannot be opened.
    """

    def __init__(self, store: str | Path = DEFAULT_STORE, *, create: bool = True) -> None:
        from trimtab.records.store import models

        self._tables = models
        self._database = Transactions(store, create=create)
        self.url = self._database.url

    def __enter__(self) -> Studies:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the database."""
        self._database.close()

    # Studies.

    def open(
        self,
        name: str,
        *,
        task: str,
        method: str,
        budget: float,
        seed: int,
        settings: Mapping[str, Any],
    ) -> StudyRecord:
        """Return the study of that name, made now if there is none; it is ``running`` afterwards.

        The budget of a study that exists grows to the one given, and never shrinks.

        Raises:
            SpecError: The name is not allowed, or the study was made with other settings.
        """
        studies = self._tables.studies
        check_study_name(name)
        asked = {"task": task, "method": method, "seed": seed, "settings": to_json(settings)}

        def make(connection: Connection) -> StudyRecord:
            found = self._find(connection, name)
            if found is None:
                row = asked | {"name": name, "budget": budget, "status": "running"}
                connection.execute(studies.insert(), row | {"created_at": time.time()})
                return _known(self._find(connection, name))
            require_same(found, asked)
            mine = studies.c.id == found.id
            grown = max(float(budget), found.budget)
            if grown > found.budget or found.status != "finished":
                values = {"budget": grown, "status": "running", "finished_at": None}
                connection.execute(studies.update().where(mine).values(values))
            return _known(self._find(connection, name))

        return self._database.change(make)

    def study(self, name: str) -> StudyRecord:
        """Return a study.

        Raises:
            UnknownNameError: There is none of that name.
        """
        found = self._database.read(lambda connection: self._find(connection, name))
        if found is None:
            raise unknown_name("study", name, [one.name for one in self.all()])
        return found

    def all(self) -> list[StudyRecord]:
        """Return all studies, the newest first."""
        studies = self._tables.studies
        query = studies.select().order_by(studies.c.id.desc())
        return [read_study(row) for row in self._database.rows(query)]

    def set_status(
        self, study: StudyRecord, status: str, summary: Mapping[str, Any] | None = None
    ) -> None:
        """Note that a study is ``"running"``, ``"interrupted"``, ``"finished"`` or ``"failed"``."""
        studies = self._tables.studies
        now = time.time()
        values: dict[str, Any] = {"status": status, "heartbeat_at": now}
        values["finished_at"] = now if status == "finished" else None
        if summary is not None:
            values["summary"] = to_json(dict(summary))
        query = studies.update().where(studies.c.id == study.id).values(values)
        self._database.change(lambda connection: connection.execute(query))

    def tree(self, study: StudyRecord) -> list[RunNode]:
        """Return the runs of a study in the order of their units; each knows its parent."""
        runs = self._tables.runs
        names = ("id", "parent_run", "fork_decision", "place", "round", "kind", "choices")
        columns = [runs.c[name] for name in (*names, "status", "summary")]
        query = runs.select().with_only_columns(*columns).where(runs.c.study_id == study.id)
        return [
            read_node(row) for row in self._database.rows(query.order_by(runs.c.place, runs.c.id))
        ]

    # Units.

    def add_units(self, study: StudyRecord, wanted: Sequence[UnitRequest]) -> None:
        """Add the units that the study does not have yet; those of a place that it has stay."""
        units = self._tables.units
        places = units.select().with_only_columns(units.c.place)

        def add(connection: Connection) -> None:
            mine = places.where(units.c.study_id == study.id)
            have = set(connection.execute(mine).scalars())
            for one in wanted:
                if one.place not in have:
                    row: dict[str, Any] = {"study_id": study.id, "place": one.place}
                    row |= {"round": one.round, "kind": one.kind}
                    row |= {"request": to_json(dict(one.request)), "created_at": time.time()}
                    row |= {"status": "waiting", "attempts": 0, "stalled": 0}
                    connection.execute(units.insert(), row)

        self._database.change(add)

    def units(self, study: StudyRecord) -> list[UnitRecord]:
        """Return a study's units in the order of their places."""
        units = self._tables.units
        query = units.select().where(units.c.study_id == study.id).order_by(units.c.place)
        return [read_unit(row) for row in self._database.rows(query)]

    def claim(self, study: StudyRecord, place: int) -> Claim | None:
        """Claim a unit for this process; None if somebody else has it, or it is over."""
        now, owner = time.time(), process_token()
        units = self._tables.units
        mine = (units.c.study_id == study.id, units.c.place == place)
        is_lapsed = (units.c.status == "claimed") & (units.c.lease_until < now)
        values = {
            "status": "claimed",
            "owner": owner,
            "lease_until": now + LEASE_SECONDS,
            "attempts": units.c.attempts + 1,
            "stalled": units.c.stalled + 1,
        }

        def take(connection: Connection) -> Claim | None:
            free = (*mine, (units.c.status == "waiting") | is_lapsed)
            if connection.execute(units.update().where(*free).values(values)).rowcount != 1:
                return None
            row = connection.execute(units.select().where(*mine)).mappings().one()
            return Claim(study.name, row["id"], owner, read_unit(dict(row)))

        return self._database.change(take)

    def renew(self, claim: Claim) -> bool:
        """Extend a claim's lease; False if the claim was lost."""
        lease = {"lease_until": time.time() + LEASE_SECONDS}
        return self._database.change(lambda connection: self._update_held(connection, claim, lease))

    def begin_run(self, claim: Claim, columns: Mapping[str, Any]) -> int | None:
        """Add the run that a unit is, in one with the unit's note of it; None if it was lost.

        Args:
            claim: Of the unit.
            columns: Of the run's row, see `trimtab.records.store.rows.run_row`.

        Returns:
            The run's number.
        """
        runs = self._tables.runs
        record = claim.record
        row = dict(columns) | {"place": record.place, "round": record.round, "kind": record.kind}

        def begin(connection: Connection) -> int | None:
            made = connection.execute(runs.insert(), row).inserted_primary_key
            number = int(made[0]) if made is not None else 0
            if self._update_held(connection, claim, {"run_id": number}):
                return number
            connection.execute(runs.delete().where(runs.c.id == number))
            return None

        return self._database.change(begin)

    def finish(
        self,
        claim: Claim,
        outcome: Mapping[str, Any],
        *,
        status: str = "done",
        rows: Iterable[Mapping[str, Any]] = (),
    ) -> bool:
        """End a claim with what came of it; False, and nothing is written, if it was lost.

        Args:
            claim: Of the unit.
            outcome: Plain data.
            status: ``"done"`` or ``"failed"``.
            rows: Runs to be added, of a unit that is many; columns of the table ``runs``.
        """
        runs = self._tables.runs
        values: dict[str, Any] = {
            "status": status,
            "outcome": to_json(dict(outcome)),
            "lease_until": None,
            "finished_at": time.time(),
        }
        added = [dict(row) for row in rows]

        def end(connection: Connection) -> bool:
            if not self._update_held(connection, claim, values):
                return False
            for row in added:
                connection.execute(runs.insert(), row)
            return True

        return self._database.change(end)

    def release(self, claim: Claim) -> None:
        """Give a claim back, so that the unit can be claimed again at once."""
        self._database.change(lambda connection: self._update_held(connection, claim, _UNCLAIMED))

    def release_dead(self, study: StudyRecord) -> list[int]:
        """Free the units whose holders have died on this host, or let their lease end.

        Returns:
            The places of the freed units.
        """
        units = self._tables.units
        now = time.time()
        held = units.select().where(units.c.study_id == study.id, units.c.status == "claimed")
        lost = [
            row
            for row in self._database.rows(held)
            if is_gone(str(row["owner"])) or float(row["lease_until"] or 0.0) < now
        ]

        def free(connection: Connection) -> list[int]:
            freed = []
            for row in lost:  # unless it has changed hands since it was read
                same = (units.c.id == row["id"], units.c.owner == row["owner"])
                still = (*same, units.c.status == "claimed")
                if connection.execute(units.update().where(*still).values(_UNCLAIMED)).rowcount:
                    freed.append(int(row["place"]))
            return freed

        return self._database.change(free) if lost else []

    # Snapshots.

    def add_snapshot(
        self, claim: Claim, run: int, kept: SnapshotFile, *, decision: int, step: int, purpose: str
    ) -> list[SnapshotRecord] | None:
        """Register a snapshot's file; the claim's lease is renewed, and its unit has moved on.

        Returns:
            Snapshots of the run that this one replaces, no longer registered, whose files the
            caller removes; None, and nothing is registered, if the claim was lost.
        """
        snapshots = self._tables.snapshots
        row: dict[str, Any] = {"run_id": run, "decision": decision, "step": step}
        row |= {"path": str(kept.path), "bytes": kept.size, "sha256": kept.sha256}
        row |= {"purpose": purpose, "created_at": time.time()}
        lease = {"lease_until": time.time() + LEASE_SECONDS, "stalled": 0}
        mine = snapshots.c.run_id == run
        # The same moment again, after a resumption, or what was only there to go on from.
        same = snapshots.c.path == str(kept.path)
        older = (snapshots.c.purpose == "latest") | same

        def add(connection: Connection) -> list[SnapshotRecord] | None:
            if not self._update_held(connection, claim, lease):
                return None
            found = connection.execute(snapshots.select().where(mine, older)).mappings().all()
            connection.execute(snapshots.delete().where(mine, older))
            connection.execute(snapshots.insert(), row)
            replaced = [read_snapshot_row(dict(one)) for one in found]
            return [one for one in replaced if one.path != str(kept.path)]

        return self._database.change(add)

    def snapshots(self, *runs_wanted: int) -> list[SnapshotRecord]:
        """Return the registered snapshots of some runs, or of all, by run and decision."""
        snapshots = self._tables.snapshots
        query = snapshots.select().order_by(
            snapshots.c.run_id, snapshots.c.decision, snapshots.c.id
        )
        if runs_wanted:
            query = query.where(snapshots.c.run_id.in_(runs_wanted))
        return [read_snapshot_row(row) for row in self._database.rows(query)]

    def forget_snapshots(self, forgotten: Iterable[SnapshotRecord]) -> None:
        """Unregister snapshots, before their files are removed."""
        snapshots = self._tables.snapshots
        numbers = [one.id for one in forgotten]
        query = snapshots.delete().where(snapshots.c.id.in_(numbers))
        if numbers:
            self._database.change(lambda connection: connection.execute(query))

    # Inside.

    def _find(self, connection: Connection, name: str) -> StudyRecord | None:
        studies = self._tables.studies
        query = studies.select().where(studies.c.name == name)
        row = connection.execute(query).mappings().first()
        return None if row is None else read_study(dict(row))

    def _update_held(self, connection: Connection, claim: Claim, values: Mapping[str, Any]) -> bool:
        """Change columns of a claim's unit; False, and nothing is changed, if it was lost."""
        units = self._tables.units
        same = (units.c.id == claim.unit, units.c.owner == claim.owner)
        held = units.update().where(*same, units.c.status == "claimed")
        return connection.execute(held.values(dict(values))).rowcount == 1


def status_now(study: StudyRecord, owners: Iterable[str | None]) -> str:
    """Return a study's status; one that runs nowhere any more on this host is interrupted.

    Args:
        study: As it stands in the store.
        owners: Who has, or had, claimed its units; None where nobody has.
    """
    known = [owner for owner in owners if owner]
    is_left = study.status == "running" and known and all(map(is_gone, known))
    return "interrupted" if is_left else study.status


def _known(found: StudyRecord | None) -> StudyRecord:
    if found is None:
        raise StoreError("the study vanished while it was opened; run the command again")
    return found
