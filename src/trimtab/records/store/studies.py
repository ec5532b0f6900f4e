"""Studies in the store: several processes work on one, each unit is done exactly once.

What a unit came to is written once, in the transaction that ends the claim on it; see
`trimtab.records.store.studies`.

Who a process is, so that another can tell whether it is still there.

Claims on a study's units: taken, kept and given up within the caller's transaction.

A unit is claimed by one process at a time. The claim is a lease: whoever holds it renews it, and
writes only while it is theirs; when the lease has ended, or the holder is known to have died on
this host, the unit may be claimed again.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.core.errors import StoreError, unknown_name
from trimtab.records.store.database import DEFAULT_STORE
from trimtab.records.store.encoding import to_json
from trimtab.records.store.snapshots import Kept, check_study_name
from trimtab.records.store.study_rows import (
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
from trimtab.records.store.transactions import Transactions

if TYPE_CHECKING:
    from sqlalchemy import Connection

UNCLAIMED: Mapping[str, Any] = {"status": "waiting", "owner": None, "lease_until": None}
"""Columns of a unit that anybody may claim."""


def take_unit(
    connection: Connection, study: StudyRecord, place: int, *, owner: str, now: float, until: float
) -> Claim | None:
    """Claim a unit; None if somebody else has it, or it is over.

    Args:
        connection: In a transaction.
        study: Whose unit.
        place: Of the unit.
        owner: Unique to this claim.
        now: Seconds since 1970; leases that ended before it hold no longer.
        until: When this claim's lease ends.
    """
    from sqlalchemy import and_, or_, select

    from trimtab.records.store.models import units

    mine = and_(units.c.study_id == study.id, units.c.place == place)
    is_free = or_(
        units.c.status == "waiting",
        and_(units.c.status == "claimed", units.c.lease_until < now),
    )
    values = {
        "status": "claimed",
        "owner": owner,
        "lease_until": until,
        "attempts": units.c.attempts + 1,
        "stalled": units.c.stalled + 1,
    }
    taken = connection.execute(units.update().where(mine, is_free).values(values))
    if taken.rowcount != 1:
        return None
    row = connection.execute(select(units).where(mine)).mappings().one()
    return Claim(study.name, row["id"], owner, read_unit(dict(row)))


def update_held(connection: Connection, claim: Claim, values: Mapping[str, Any]) -> bool:
    """Change columns of a claim's unit; False, and nothing is changed, if the claim was lost."""
    from trimtab.records.store.models import units

    still = units.c.status == "claimed"
    held = (units.c.id == claim.unit, units.c.owner == claim.owner, still)
    return connection.execute(units.update().where(*held).values(dict(values))).rowcount == 1


def free_units(connection: Connection, lost: Iterable[Mapping[str, Any]]) -> list[int]:
    """Free units, each unless it has changed hands since its row was read; return their places."""
    from trimtab.records.store.models import units

    freed = []
    for row in lost:
        same = (units.c.id == row["id"], units.c.owner == row["owner"])
        still = (*same, units.c.status == "claimed")
        if connection.execute(units.update().where(*still).values(dict(UNCLAIMED))).rowcount:
            freed.append(int(row["place"]))
    return freed


def process_token() -> str:
    """Return text that names this process on this host, and one claim of it.

    It holds the host, the process number, when that process began (numbers are used again) and a
    random word.
    """
    pid = os.getpid()
    return f"{socket.gethostname()}:{pid}:{_began(pid) or 0}:{secrets.token_hex(8)}"


def is_gone(token: str) -> bool:
    """Whether the process of a token is known to have ended; False for one on another host."""
    host, _, rest = token.rpartition(":")[0].partition(":")
    pid, _, began = rest.partition(":")
    if host != socket.gethostname() or os.name != "posix" or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    now = _began(int(pid))
    # A process that has ended and was not waited for yet has no parts of its own any more.
    return now == "" or (now is not None and began not in ("0", now))


def _began(pid: int) -> str | None:
    """Return when a process began in the kernel's ticks; "" if it has ended; None if unknown."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return "" if fields[0] in ("Z", "X") else fields[19]


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
        from trimtab.records.store.models import studies

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
        from sqlalchemy import select

        from trimtab.records.store.models import studies

        query = select(studies).order_by(studies.c.id.desc())
        return [read_study(row) for row in self._database.rows(query)]

    def set_status(
        self, study: StudyRecord, status: str, summary: Mapping[str, Any] | None = None
    ) -> None:
        """Note that a study is ``"running"``, ``"interrupted"``, ``"finished"`` or ``"failed"``."""
        from trimtab.records.store.models import studies

        now = time.time()
        values: dict[str, Any] = {"status": status, "heartbeat_at": now}
        values["finished_at"] = now if status == "finished" else None
        if summary is not None:
            values["summary"] = to_json(dict(summary))
        query = studies.update().where(studies.c.id == study.id).values(values)
        self._database.change(lambda connection: connection.execute(query))

    def tree(self, study: StudyRecord) -> list[RunNode]:
        """Return the runs of a study in the order of their units; each knows its parent."""
        from sqlalchemy import select

        from trimtab.records.store.models import runs

        names = ("id", "parent_run", "fork_decision", "place", "round", "kind", "choices")
        columns = [runs.c[name] for name in (*names, "status", "summary")]
        query = select(*columns).where(runs.c.study_id == study.id)
        return [
            read_node(row) for row in self._database.rows(query.order_by(runs.c.place, runs.c.id))
        ]

    # Units.

    def add_units(self, study: StudyRecord, wanted: Sequence[UnitRequest]) -> None:
        """Add the units that the study does not have yet; those of a place that it has stay."""
        from sqlalchemy import select

        from trimtab.records.store.models import units

        def add(connection: Connection) -> None:
            mine = units.c.study_id == study.id
            have = set(connection.execute(select(units.c.place).where(mine)).scalars())
            for one in wanted:
                if one.place not in have:
                    row: dict[str, Any] = {"study_id": study.id, "place": one.place}
                    row |= {"round": one.round}
                    row |= {"kind": one.kind, "request": to_json(dict(one.request))}
                    row |= {"status": "waiting", "attempts": 0, "stalled": 0}
                    connection.execute(units.insert(), row | {"created_at": time.time()})

        self._database.change(add)

    def units(self, study: StudyRecord) -> list[UnitRecord]:
        """Return a study's units in the order of their places."""
        from sqlalchemy import select

        from trimtab.records.store.models import units

        query = select(units).where(units.c.study_id == study.id).order_by(units.c.place)
        return [read_unit(row) for row in self._database.rows(query)]

    def claim(self, study: StudyRecord, place: int) -> Claim | None:
        """Claim a unit for this process; None if somebody else has it, or it is over."""
        now, owner = time.time(), process_token()
        until = now + LEASE_SECONDS
        return self._database.change(
            lambda connection: take_unit(
                connection, study, place, owner=owner, now=now, until=until
            )
        )

    def renew(self, claim: Claim) -> bool:
        """Extend a claim's lease; False if the claim was lost."""
        lease = {"lease_until": time.time() + LEASE_SECONDS}
        return self._database.change(lambda connection: update_held(connection, claim, lease))

    def begin_run(self, claim: Claim, columns: Mapping[str, Any]) -> int | None:
        """Add the run that a unit is, in one with the unit's note of it; None if it was lost.

        Args:
            claim: Of the unit.
            columns: Of the run's row, see `trimtab.records.store.rows.run_row`.

        Returns:
            The run's number.
        """
        from trimtab.records.store.models import runs

        record = claim.record
        row = dict(columns) | {"place": record.place, "round": record.round, "kind": record.kind}

        def begin(connection: Connection) -> int | None:
            made = connection.execute(runs.insert(), row).inserted_primary_key
            number = int(made[0]) if made is not None else 0
            if update_held(connection, claim, {"run_id": number}):
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
        from trimtab.records.store.models import runs

        values: dict[str, Any] = {
            "status": status,
            "outcome": to_json(dict(outcome)),
            "lease_until": None,
        }
        values["finished_at"] = time.time()
        added = [dict(row) for row in rows]

        def end(connection: Connection) -> bool:
            if not update_held(connection, claim, values):
                return False
            for row in added:
                connection.execute(runs.insert(), row)
            return True

        return self._database.change(end)

    def release(self, claim: Claim) -> None:
        """Give a claim back, so that the unit can be claimed again at once."""
        self._database.change(lambda connection: update_held(connection, claim, UNCLAIMED))

    def release_dead(self, study: StudyRecord) -> list[int]:
        """Free the units whose holders have died on this host, or let their lease end.

        Returns:
            The places of the freed units.
        """
        from sqlalchemy import select

        from trimtab.records.store.models import units

        now = time.time()
        held = select(units).where(units.c.study_id == study.id, units.c.status == "claimed")
        lost = [
            row
            for row in self._database.rows(held)
            if is_gone(str(row["owner"])) or float(row["lease_until"] or 0.0) < now
        ]
        if not lost:
            return []
        return self._database.change(lambda connection: free_units(connection, lost))

    # Snapshots.

    def add_snapshot(
        self, claim: Claim, run: int, kept: Kept, *, decision: int, step: int, purpose: str
    ) -> list[SnapshotRecord] | None:
        """Register a snapshot's file; the claim's lease is renewed, and its unit has moved on.

        Returns:
            Snapshots of the run that this one replaces, no longer registered, whose files the
            caller removes; None, and nothing is registered, if the claim was lost.
        """
        from sqlalchemy import select

        from trimtab.records.store.models import snapshots

        row: dict[str, Any] = {"run_id": run, "decision": decision, "step": step}
        row |= {"path": str(kept.path)}
        row |= {"bytes": kept.size, "sha256": kept.sha256, "purpose": purpose}
        lease = {"lease_until": time.time() + LEASE_SECONDS, "stalled": 0}
        mine = snapshots.c.run_id == run
        # The same moment again, after a resumption, or what was only there to go on from.
        same = snapshots.c.path == str(kept.path)
        older = (snapshots.c.purpose == "latest") | same

        def add(connection: Connection) -> list[SnapshotRecord] | None:
            if not update_held(connection, claim, lease):
                return None
            found = connection.execute(select(snapshots).where(mine, older)).mappings().all()
            connection.execute(snapshots.delete().where(mine, older))
            connection.execute(snapshots.insert(), row | {"created_at": time.time()})
            replaced = [read_snapshot_row(dict(one)) for one in found]
            return [one for one in replaced if one.path != str(kept.path)]

        return self._database.change(add)

    def snapshots(self, *runs_wanted: int) -> list[SnapshotRecord]:
        """Return the registered snapshots of some runs, or of all, by run and decision."""
        from sqlalchemy import select

        from trimtab.records.store.models import snapshots

        query = select(snapshots).order_by(snapshots.c.run_id, snapshots.c.decision, snapshots.c.id)
        if runs_wanted:
            query = query.where(snapshots.c.run_id.in_(runs_wanted))
        return [read_snapshot_row(row) for row in self._database.rows(query)]

    def forget_snapshots(self, forgotten: Iterable[SnapshotRecord]) -> None:
        """Unregister snapshots, before their files are removed."""
        from trimtab.records.store.models import snapshots

        numbers = [one.id for one in forgotten]
        query = snapshots.delete().where(snapshots.c.id.in_(numbers))
        if numbers:
            self._database.change(lambda connection: connection.execute(query))

    # Inside.

    def _find(self, connection: Connection, name: str) -> StudyRecord | None:
        from sqlalchemy import select

        from trimtab.records.store.models import studies

        row = connection.execute(select(studies).where(studies.c.name == name)).mappings().first()
        return None if row is None else read_study(dict(row))


def _known(found: StudyRecord | None) -> StudyRecord:
    if found is None:
        raise StoreError("the study vanished while it was opened; run the command again")
    return found
