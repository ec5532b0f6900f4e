"""Snapshots that nothing needs any more: what they are, and freeing their room."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trimtab.records.store.rows import SnapshotRecord, StudyRecord, UnitRecord
from trimtab.records.store.snapshots import is_snapshot_of, remove_snapshot, snapshot_folder
from trimtab.records.store.studies import Studies
from trimtab.search.study.plan import Entry, best_of


@dataclass(frozen=True)
class Collected:
    """What was, or would be, removed of a study.

    Attributes:
        study: Its name.
        files: The files.
        size: Their size in bytes.
        kept: How many snapshots stay.
    """

    study: str
    files: tuple[Path, ...]
    size: int
    kept: int


def prune(studies: Studies, study: StudyRecord) -> None:
    """Remove, while a study goes on, the snapshots of finished runs that nothing will need.

    What stays: everything of the best run and of the best steered one, which may be forked; of runs
    that go on, and of those they are forked from.
    """
    units = studies.units(study)
    steered = [unit for unit in units if unit.kind != "reference"]
    needed = {_best_unit(units), _best_unit(steered)} | {
        unit.place for unit in units if not unit.is_over
    }
    needed |= {u.request["fork"]["place"] for u in units if not u.is_over and "fork" in u.request}
    gone = [one for one in _snapshots(studies, units) if one[0] not in needed]
    _remove(studies, study, gone)


def collect(studies: Studies, study: StudyRecord, *, dry_run: bool = False) -> Collected:
    """Remove a study's snapshots by policy, or say what would be removed.

    Of a finished study only the best run's best weights stay; of one that is not, what `prune`
    keeps. Files that are not registered (of a process that died while it wrote) go, too.

    Args:
        studies: The store.
        study: Which one.
        dry_run: Remove nothing.
    """
    units = studies.units(study)
    best = _best_unit(units)
    steered = _best_unit([unit for unit in units if unit.kind != "reference"])
    is_finished = study.status == "finished"
    every = _snapshots(studies, units)
    if is_finished:
        gone = [(p, one) for p, one in every if p != best or one.purpose != "final"]
    else:
        needed = {best, steered} | {unit.place for unit in units if not unit.is_over}
        needed |= {unit.request["fork"]["place"] for unit in units if "fork" in unit.request}
        gone = [(place, one) for place, one in every if place not in needed]
    folder = snapshot_folder(studies.url, study.name)
    registered = {Path(one.path) for _, one in every}
    strays = [
        file
        for file in sorted(folder.glob("run-*/*"))
        if file.is_file() and file not in registered and (is_finished or _is_abandoned(file, units))
    ]
    known = [Path(one.path) for _, one in gone]
    files = [one for one in known if is_snapshot_of(one, study.name) and one.is_file()] + strays
    size = sum(file.stat().st_size for file in files)
    if not dry_run:
        _remove(studies, study, gone)
        for file in strays:
            file.unlink(missing_ok=True)
        for empty in [
            one for one in folder.glob("run-*") if one.is_dir() and not any(one.iterdir())
        ]:
            empty.rmdir()
    return Collected(study.name, tuple(files), size, len(every) - len(gone))


def _is_abandoned(file: Path, units: Sequence[UnitRecord]) -> bool:
    going_on = {f"run-{unit.run or 0:06d}" for unit in units if not unit.is_over}
    return file.parent.name not in going_on


def _best_unit(units: Sequence[UnitRecord]) -> int | None:
    entries = [
        Entry(u.place, u.round, u.kind, u.request, u.outcome, u.status == "failed")
        for u in units
        if u.is_over
    ]
    best = best_of(entries)
    return None if best is None else best.place


def _snapshots(studies: Studies, units: Sequence[UnitRecord]) -> list[tuple[int, SnapshotRecord]]:
    places = {unit.run: unit.place for unit in units if unit.run is not None}
    return [(places[one.run], one) for one in studies.snapshots(*places)] if places else []


def _remove(
    studies: Studies, study: StudyRecord, gone: Sequence[tuple[int, SnapshotRecord]]
) -> None:
    studies.forget_snapshots(one for _, one in gone)
    for _, one in gone:
        remove_snapshot(Path(one.path), study.name)
