"""What the store keeps of a study, as plain data: the study, its units, its tree of runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from trimtab.core.errors import SpecError
from trimtab.records.store.encoding import from_json, to_json


@dataclass(frozen=True)
class StudyRecord:
    """A study as it stands in the store.

    Attributes:
        id: Its number.
        name: Unique in its store; the name of its folder of snapshots too.
        task: Registered name or ``module:factory``.
        method: Who proposes.
        budget: Whole-run equivalents that may be spent in all.
        seed: Of its runs and of whatever is drawn.
        settings: Everything else that results depend on, JSON decoded.
        status: ``"running"``, ``"interrupted"``, ``"finished"`` or ``"failed"``.
        created_at: Seconds since 1970, UTC.
        finished_at: Likewise; None until then.
        summary: Figures of the finished study; empty until then.
    """

    id: int
    name: str
    task: str
    method: str
    budget: float
    seed: int
    settings: Mapping[str, Any]
    status: str
    created_at: float
    finished_at: float | None
    summary: Mapping[str, Any]


@dataclass(frozen=True)
class UnitRequest:
    """A unit that a study proposes.

    Attributes:
        place: 0, 1, ... within the study.
        round: In which it was proposed.
        kind: ``"first"``, ``"restart"``, ``"reference"``, ``"fork"``, ``"method"`` or ``"told"``.
        request: What is to be done, as plain data.
    """

    place: int
    round: int
    kind: str
    request: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class UnitRecord:
    """A unit as it stands in the store.

    Attributes:
        place: 0, 1, ... within the study.
        round: In which it was proposed.
        kind: As in `UnitRequest`.
        request: What is to be done.
        status: ``"waiting"``, ``"claimed"``, ``"done"`` or ``"failed"``.
        owner: Who has claimed it, see `trimtab.records.store.provenance`; None if nobody has.
        attempts: How often it was claimed.
        stalled: How often since something was last kept of it.
        run: Number of its run; None until it began, and for units of many runs.
        outcome: What came of it; empty until it is done or failed.
    """

    place: int
    round: int
    kind: str
    request: Mapping[str, Any]
    status: str
    owner: str | None
    attempts: int
    stalled: int
    run: int | None
    outcome: Mapping[str, Any]

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do."""
        return self.status in ("done", "failed")


@dataclass(frozen=True)
class Claim:
    """The right to do a unit, until the lease ends or somebody else takes it.

    Attributes:
        study: Name of the study.
        unit: Number of the unit's row.
        owner: Unique to this claim.
        record: The unit as it was when it was claimed.
    """

    study: str
    unit: int
    owner: str
    record: UnitRecord


@dataclass(frozen=True)
class RunNode:
    """A run in the tree of a study's forks.

    Attributes:
        run: Its number.
        parent: The run that it was forked from; None for one that began anew.
        fork_decision: The decision of the parent at which it was forked.
        place: Of its unit.
        round: Of its unit.
        kind: Of its unit.
        choices: Static choices by name.
        status: As in `trimtab.records.store.rows.RunRecord`.
        figures: Best, test, spent and the like; empty until it has finished.
    """

    run: int
    parent: int | None
    fork_decision: int | None
    place: int | None
    round: int | None
    kind: str | None
    choices: Mapping[str, Any]
    status: str
    figures: Mapping[str, Any]


@dataclass(frozen=True)
class SnapshotRecord:
    """A snapshot's file as it was registered.

    Attributes:
        id: Its number.
        run: The run that it is of.
        decision: The decision after which it was made, counted from 0.
        step: Steps done then.
        path: The file.
        size: In bytes.
        sha256: Of its content, in hex.
        purpose: ``"latest"``: to go on from; ``"fork"``: to fork from; ``"final"``: with the best
            weights of a finished run.
    """

    id: int
    run: int
    decision: int
    step: int
    path: str
    size: int
    sha256: str
    purpose: str


def read_study(row: Mapping[str, Any]) -> StudyRecord:
    """Return a study from its columns."""
    numbers = {"budget": float(row["budget"]), "seed": int(row["seed"])}
    data = {name: _data(row[name]) for name in ("settings", "summary")}
    return StudyRecord(**_same(StudyRecord, row) | numbers | data)


def read_unit(row: Mapping[str, Any]) -> UnitRecord:
    """Return a unit from its columns."""
    data = {name: _data(row[name]) for name in ("request", "outcome")}
    return UnitRecord(**_same(UnitRecord, row) | data, run=row["run_id"])


def read_node(row: Mapping[str, Any]) -> RunNode:
    """Return a run of the tree from its columns."""
    data = {"choices": _data(row["choices"]), "figures": _data(row["summary"])}
    return RunNode(**_same(RunNode, row) | data, run=row["id"], parent=row["parent_run"])


def read_snapshot_row(row: Mapping[str, Any]) -> SnapshotRecord:
    """Return a snapshot from its columns."""
    return SnapshotRecord(**_same(SnapshotRecord, row), run=row["run_id"], size=row["bytes"])


def _same(kind: type[Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns that are called as an attribute of what is read."""
    return {one.name: row[one.name] for one in fields(kind) if one.name in row}


def _data(text: str | None) -> dict[str, Any]:
    """Return a column of JSON; empty where there is none yet."""
    return dict(from_json(text)) if text else {}


def require_same(found: StudyRecord, asked: Mapping[str, Any]) -> None:
    """Refuse to go on with a study under other settings than it was made with.

    Args:
        found: The study.
        asked: ``task``, ``method``, ``seed``, and ``settings`` as JSON.

    Raises:
        SpecError: They differ.
    """
    theirs: dict[str, Any] = {"task": found.task, "method": found.method, "seed": found.seed}
    theirs |= json.loads(to_json(found.settings))
    mine = {name: asked[name] for name in theirs if name in asked} | json.loads(asked["settings"])
    for name in [*theirs, *(name for name in mine if name not in theirs)]:
        if theirs.get(name) != mine.get(name):
            raise SpecError(
                f"study {found.name!r} was made with {name} {to_json(theirs.get(name))}, not "
                f"{to_json(mine.get(name))}; continue it with the same settings, or choose another "
                "--study"
            )
