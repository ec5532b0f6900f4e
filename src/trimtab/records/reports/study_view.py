"""A study as it is read to be shown: its runs, what they came to, and how they hang together.

Nothing is written. Of each unit the schedule and the path are left in the database, so that a study
of a thousand runs is read in a moment.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trimtab.core.errors import unknown_name
from trimtab.core.metrics import loss_from_validation
from trimtab.records.store.encoding import from_json
from trimtab.records.store.provenance import is_gone
from trimtab.records.store.rows import StudyRecord, UnitRecord, read_study, read_unit
from trimtab.records.store.store import Store
from trimtab.records.store.studies import status_now

_TRAINING = ("first", "restart", "reference", "fork")


@dataclass(frozen=True)
class StudyRun:
    """A run of a study, or a unit that has not begun one.

    Attributes:
        unit: Place of its unit.
        label: What it is called: the unit, and its number within it where there are several.
        run: Its number; None if it has not begun.
        kind: As in `trimtab.records.store.rows.UnitRequest`.
        status: ``"waiting"``, ``"running"``, ``"interrupted"``, ``"finished"``, ``"stopped"``,
            ``"diverged"`` or ``"failed"``.
        parent: Number of the run that it was forked from.
        begins: Share of all steps at which it begins, 0 but for forks.
        ends: Share of all steps that it has reached.
        choices: Start values and other static choices by name.
        change: What is different in a fork, in words.
        validation: Best value of the monitored metric; nan if there is none.
        loss: The same, to be made small; infinite if there is none.
        spent: Charge in whole runs.
        seconds: What it took.
        is_candidate: Whether its weights may be returned.
        error: Why it failed.
        test: Metrics on test.
        best_step: Step of the best weights; None if not known.
    """

    unit: int
    label: str
    run: int | None
    kind: str
    status: str
    parent: int | None = None
    begins: float = 0.0
    ends: float = 0.0
    choices: Mapping[str, Any] = field(default_factory=dict)
    change: str = ""
    validation: float = math.nan
    loss: float = math.inf
    spent: float = 0.0
    seconds: float = 0.0
    is_candidate: bool = False
    error: str = ""
    test: Mapping[str, Any] = field(default_factory=dict)
    best_step: float | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes of it."""
        return self.status in ("finished", "stopped", "diverged", "failed")


@dataclass(frozen=True)
class StudyView:
    """A study as it stands.

    Attributes:
        record: The study's own row.
        status: Its status; one whose processes have all died on this host is ``"interrupted"``.
        runs: In the order of their units.
        monitor: The metric that runs are compared by; empty before the first run.
        mode: ``"min"`` or ``"max"``.
        total_steps: Of a whole run; 0 before the first one.
        workers: How many units are being done.
    """

    record: StudyRecord
    status: str
    runs: tuple[StudyRun, ...]
    monitor: str
    mode: str
    total_steps: int
    workers: int

    @property
    def best(self) -> StudyRun | None:
        """The run with the lowest loss, the first among equals; None if none has one."""
        candidates = [run for run in self.runs if run.is_candidate]
        return min(candidates, key=lambda run: run.loss) if candidates else None

    @property
    def spent(self) -> float:
        """Charge of everything that is over, in whole runs."""
        return math.fsum(run.spent for run in self.runs if run.is_over)

    @property
    def best_path(self) -> tuple[StudyRun, ...]:
        """The best run and those that it was forked from, the oldest first."""
        known = {run.run: run for run in self.runs if run.run is not None}
        path: list[StudyRun] = []
        here = self.best
        while here is not None and here not in path:
            path.append(here)
            here = known.get(here.parent) if here.parent is not None else None
        return tuple(reversed(path))

    @property
    def seconds_left(self) -> float | None:
        """About how long the rest of the budget takes; None if that cannot be told, or it is over.

        What a whole run took so far, times what is left, over the number of workers.
        """
        over = [run for run in self.runs if run.is_over and run.spent > 0]
        charged = math.fsum(run.spent for run in over)
        if self.status != "running" or not charged:
            return None
        going = math.fsum(run.ends - run.begins for run in self.runs if run.status == "running")
        left = max(self.record.budget - self.spent - going, 0.0)
        return left * math.fsum(run.seconds for run in over) / charged / max(self.workers, 1)


def choices_in_words(choices: Mapping[str, Any]) -> str:
    """Return static choices as names and values, separated by commas.

    >>> choices_in_words({"lr": 0.00012345, "blocks": 2, "norm": "layer"})
    'lr 0.0001234, blocks 2, norm layer'
    """
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in choices.items()
    )


def read_view(store: Store, name: str) -> StudyView:
    """Return a study as it stands in a store.

    Raises:
        UnknownNameError: There is none of that name.
        StoreError: The store cannot be read.
    """
    from trimtab.records.store.models import studies

    found = store.rows(studies.select().where(studies.c.name == name))
    if not found:
        raise unknown_name("study", name, store.study_names())
    record = read_study(found[0])
    units = _units(store, record.id)
    rows = _runs(store, record.id)
    first: dict[str, Any] = rows[0] if rows else {"monitor": "", "mode": "min", "total_steps": 0}
    held = [unit.owner for unit in units if unit.status == "claimed" and unit.owner]
    gone = {owner for owner in held if is_gone(owner)}
    steps = int(first["total_steps"])
    reached = _reached(store, [u.run for u in units if not u.is_over and u.run is not None], steps)
    return StudyView(
        record=record,
        status=status_now(record, (unit.owner for unit in units)),
        runs=tuple(_shown(units, rows, _forked_at(store, record.id), reached, gone)),
        monitor=str(first["monitor"]),
        mode=str(first["mode"]),
        total_steps=steps,
        workers=len(held) - len(gone),
    )


# Reading.


def _units(store: Store, study: int) -> list[UnitRecord]:
    """Return a study's units, their outcomes without what takes room."""
    from trimtab.records.store.models import units

    kept = {column.name: column for column in units.c}
    kept["request"] = _without(store.url, units.c.request, "stop", "others")
    kept["outcome"] = _without(store.url, units.c.outcome, "schedule", "path", "runs")
    columns = (column.label(name) for name, column in kept.items())
    query = units.select().with_only_columns(*columns).where(units.c.study_id == study)
    return [read_unit(row) for row in store.rows(query.order_by(units.c.place))]


def _without(url: str, column: Any, *names: str) -> Any:
    """Return a column of JSON objects without some keys, dropped where the database lies."""
    from sqlalchemy import Text, cast, func

    if url.startswith("sqlite"):
        return func.json_remove(column, *(f"$.{name}" for name in names))
    if url.startswith("postgresql"):
        from sqlalchemy.dialects.postgresql import JSONB

        shorter: Any = cast(column, JSONB)
        for name in names:
            shorter = shorter.op("-")(cast(name, Text))
        return cast(shorter, Text)
    return column


def _runs(store: Store, study: int) -> list[dict[str, Any]]:
    from trimtab.records.store.models import runs

    names = ("id", "parent_run", "place", "kind", "choices", "start", "status", "summary")
    columns = [runs.c[name] for name in (*names, "monitor", "mode", "total_steps")]
    query = runs.select().with_only_columns(*columns).where(runs.c.study_id == study)
    return store.rows(query.order_by(runs.c.place, runs.c.id))


def _forked_at(store: Store, study: int) -> dict[int, float]:
    """Return the share of all steps at which each fork begins, by run."""
    from sqlalchemy import and_, select

    from trimtab.records.store.models import decisions, runs

    same = and_(
        decisions.c.run_id == runs.c.parent_run, decisions.c.decision == runs.c.fork_decision
    )
    query = select(runs.c.id, decisions.c.progress).join(decisions, same)
    return {row["id"]: row["progress"] for row in store.rows(query.where(runs.c.study_id == study))}


def _reached(store: Store, wanted: Sequence[int], total_steps: int) -> dict[int, float]:
    """Return the share of all steps that runs have reached that are not over."""
    from sqlalchemy import func, select

    from trimtab.records.store.models import decisions

    if not wanted or not total_steps:
        return {}
    query = select(decisions.c.run_id, func.max(decisions.c.step).label("step"))
    query = query.where(decisions.c.run_id.in_(wanted)).group_by(decisions.c.run_id)
    return {row["run_id"]: row["step"] / total_steps for row in store.rows(query)}


# Putting together.


def _shown(
    units: Sequence[UnitRecord],
    rows: Sequence[Mapping[str, Any]],
    forked_at: Mapping[int, float],
    reached: Mapping[int, float],
    gone: set[str],
) -> list[StudyRun]:
    by_unit: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["place"] is not None:
            by_unit.setdefault(row["place"], []).append(row)
    shown: list[StudyRun] = []
    for unit in units:
        own = by_unit.get(unit.place, [])
        if unit.kind in _TRAINING or not own:
            shown.append(_steered(unit, own[0] if own else None, forked_at, reached, gone))
        else:
            shown += [_of_method(unit, row, at, len(own)) for at, row in enumerate(own)]
    return shown


def _status(unit: UnitRecord, gone: set[str]) -> str:
    outcome = unit.outcome
    if unit.status == "done":
        stopped = "stopped" if outcome.get("stopped") else "finished"
        return "diverged" if outcome.get("diverged") else stopped
    if unit.status == "claimed":
        return "interrupted" if unit.owner in gone else "running"
    return unit.status


def _steered(
    unit: UnitRecord,
    row: Mapping[str, Any] | None,
    forked_at: Mapping[int, float],
    reached: Mapping[int, float],
    gone: set[str],
) -> StudyRun:
    outcome, status = unit.outcome, _status(unit, gone)
    number = None if row is None else int(row["id"])
    begins = forked_at.get(number, 0.0) if number is not None else 0.0
    ends = max(begins, reached.get(number, 0.0) if number is not None else 0.0)
    if row is not None and outcome.get("steps"):
        ends = min(float(outcome["steps"]) / max(int(row["total_steps"]), 1), 1.0)
    choices = {} if row is None else from_json(row["start"])
    loss = _finite(outcome.get("loss"))
    return StudyRun(
        unit=unit.place,
        label=str(unit.place),
        run=number,
        kind=unit.kind,
        status=status,
        parent=None if row is None else row["parent_run"],
        begins=begins,
        ends=ends,
        choices=choices
        | dict(unit.request.get("choices") or {})
        | dict(outcome.get("choices") or {}),
        change=_change(unit.request.get("fork")),
        validation=_number(outcome.get("validation")),
        loss=loss,
        spent=float(outcome.get("spent") or 0.0),
        seconds=float(outcome.get("seconds") or 0.0),
        is_candidate=unit.status == "done" and unit.kind != "told" and math.isfinite(loss),
        error=str(outcome.get("error") or ""),
        test=dict(outcome.get("test") or {}),
        best_step=(outcome.get("best") or {}).get("step"),
    )


def _of_method(unit: UnitRecord, row: Mapping[str, Any], at: int, count: int) -> StudyRun:
    """Return one of the runs of another method's unit."""
    figures = from_json(row["summary"]) if row["summary"] else {}
    best = figures.get("best") or {}
    value = _number(best.get(row["monitor"]))
    loss = _finite(loss_from_validation(value, mode=row["mode"])[0]) if value == value else math.inf
    return StudyRun(
        unit=unit.place,
        label=str(unit.place) if count == 1 else f"{unit.place}.{at + 1}",
        run=int(row["id"]),
        kind=unit.kind,
        status=str(row["status"]),
        ends=min(float(figures.get("spent_steps") or 0) / max(int(row["total_steps"]), 1), 1.0),
        choices=from_json(row["choices"]) if row["choices"] else {},
        validation=value,
        loss=loss,
        spent=float(figures.get("spent") or 0.0),
        seconds=float(figures.get("seconds") or 0.0),
        is_candidate=unit.kind != "told" and math.isfinite(loss),
        test=dict(figures.get("test") or {}),
        best_step=best.get("step"),
    )


def _change(fork: Mapping[str, Any] | None) -> str:
    if fork is None:
        return ""
    if fork.get("noise"):
        return "the moves made noisy"
    shift = float(fork.get("shift") or 0.0)
    return f"the moves shifted {'up' if shift > 0 else 'down'}" if shift else "other moves"


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _finite(value: Any) -> float:
    found = _number(value)
    return found if math.isfinite(found) else math.inf
