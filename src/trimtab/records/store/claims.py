"""Claims on a study's units: taken, kept and given up within the caller's transaction.

A unit is claimed by one process at a time. The claim is a lease: whoever holds it renews it, and
writes only while it is theirs; when the lease has ended, or the holder is known to have died on
this host, the unit may be claimed again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from trimtab.records.store.study_rows import Claim, StudyRecord, read_unit

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = ["UNCLAIMED", "free_units", "take_unit", "update_held"]

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
