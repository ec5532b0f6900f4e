"""One unit of a study, done by a worker: claimed, run or gone on with, and written down once."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from trimtab.core.decision import RunInfo
from trimtab.core.errors import SpecError, StoreError
from trimtab.core.metrics import loss_from_validation
from trimtab.core.protocols import Controller, Task, is_storable
from trimtab.core.spec import ControlSpec
from trimtab.records.store.encoding import to_json
from trimtab.records.store.rows import Claim, StudyRecord, UnitRecord, run_row
from trimtab.records.store.snapshots import read_snapshot
from trimtab.records.store.studies import Studies
from trimtab.search.engines.base import in_one_line
from trimtab.search.study.checkpointing import (
    ClaimLostError,
    Heartbeat,
    KeptRun,
    StudyRecorder,
    newest_state,
)
from trimtab.search.study.method_job import run_method_job
from trimtab.search.study.plan import StudySettings
from trimtab.search.study.runs import RunPath, policy_of, run_setup, task_of
from trimtab.tasks.run import RunResult, RunSettings, run_task


@cache
def _opened(store: str) -> Studies:
    return Studies(store)


def run_job(store: str, name: str, place: int, given: Task | None = None) -> dict[str, Any]:
    """Do a unit of a study, unless somebody else does it or it is over; return its ``status``.

    Status: ``"done"``, ``"failed"`` (the task raised; that is written down), ``"busy"`` or
    ``"lost"`` (another process does it).

    Args:
        store: The store's database.
        name: Of the study.
        place: Of the unit.
        given: The task, where the study was given an object; None to find it by its name.

    Raises:
        StoreError: The store or the disk failed; the unit is free to be done again.
    """
    studies = _opened(store)
    study = studies.study(name)
    claim = studies.claim(study, place)
    if claim is None:
        return {"status": "busy", "place": place}
    settings = StudySettings.from_plain(study.settings)
    begun = time.perf_counter()
    try:
        with Heartbeat(studies, claim):
            task = task_of(study.task, settings.variant) if given is None else given
            if claim.record.kind in ("method", "told"):
                outcome, rows = run_method_job(study, claim, task, settings, policy_of(settings))
            else:
                outcome, rows = _steered(studies, study, claim, task, settings), []
            outcome.setdefault("seconds", time.perf_counter() - begun)
            is_mine = studies.finish(claim, outcome, rows=rows)
            return {"status": "done" if is_mine else "lost", "place": place}
    except ClaimLostError:
        return {"status": "lost", "place": place}
    except (StoreError, OSError):
        _give_back(studies, claim)
        raise
    except Exception as error:  # noqa: BLE001 - one choice that fails must not end the study
        words = in_one_line(error)
        # How much a failure had trained is not known; all of it is charged, unless it was nothing.
        nothing = isinstance(error, _NoParentError)
        spent = 0.0 if nothing else float(claim.record.request.get("cost", 1.0))
        studies.finish(claim, {"error": words, "spent": spent}, status="failed")
        return {"status": "failed", "place": place, "error": words}


def _give_back(studies: Studies, claim: Claim) -> None:
    try:
        studies.release(claim)
    except StoreError:
        return  # the lease ends by itself


def _steered(
    studies: Studies, study: StudyRecord, claim: Claim, task: Task, settings: StudySettings
) -> dict[str, Any]:
    """Run a unit's steered run, from its newest snapshot if it was begun before."""
    request, record = claim.record.request, claim.record
    spec, controller, run_settings = run_setup(task, settings, request)
    known = studies.snapshots(record.run) if record.run is not None else []
    state, refused = newest_state(known)
    parent = _parent(studies, study, request)
    if state is None and parent is not None:
        state = parent[1]
    can_be_kept = is_storable(task.start(seed=run_settings.seed, **run_settings.options))
    info = _info(study, task, spec, controller, run_settings, request, parent)
    info_notices = dict(info.notices)
    if not can_be_kept:
        info_notices["resume"] = (
            "this task's runs cannot be kept in a file (no to_plain, from_plain, position, "
            "set_position): one whose process dies begins again"
        )
    if refused:
        info_notices["snapshots"] = "; ".join(refused)
    info = RunInfo(**(vars(info) | {"notices": info_notices}))
    number = record.run
    if number is None:
        columns = {"choices": to_json(dict(request["choices"])), "study_id": study.id}
        number = studies.begin_run(claim, run_row(info) | columns)
    if number is None:
        raise ClaimLostError(f"study {study.name!r}: another process does unit {record.place} now")
    recorder = StudyRecorder(studies, claim, info, run=number)
    path = RunPath(request.get("stop"), None if state is None else state["path"])
    keeper = KeptRun(
        studies,
        claim,
        recorder,
        path,
        state=state,
        seconds=settings.snapshot_seconds,
        forks=tuple(request.get("keep", ())),
        is_storable=can_be_kept,
    )
    tail = _Tail(keeper, can_be_kept)
    result = run_task(task, controller, spec, run_settings, recorder=recorder, keeper=tail)
    inherited = 0.0 if parent is None else _charge_at(parent[1]["run"], task)
    outcome = outcome_of(task, result, path, inherited=inherited)
    reached = len(outcome["path"]) - 1
    can_fork = [one for one in request.get("keep", ()) if can_be_kept and one < reached]
    return outcome | {"forks": can_fork}


def _charge_at(state: Mapping[str, Any], task: Task) -> float:
    """Return the charge of a run up to a state of it, in whole runs."""
    session, budget = state["session"], float(state["budget"])
    if math.isfinite(budget) and budget > 0:
        return float(session["charge"]) / budget
    return float(session["steps_done"]) / task.total_steps


class _Tail:
    """A keeper that, at the end of a run, also keeps its best weights."""

    def __init__(self, keeper: KeptRun, is_storable: bool) -> None:
        self._keeper, self._is_storable = keeper, is_storable

    def resumed(self) -> Mapping[str, Any] | None:
        return self._keeper.resumed()

    def after(self, now: Any, state: Any) -> str | None:
        status = self._keeper.after(now, state)
        if self._is_storable and now.decision is None and now.step >= now.total_steps:
            whole = state()
            best = whole["weights"] if whole["best"] is None else whole["best"]
            self._keeper.keep_best(best, len(self._keeper.path.points) - 1, now.step)
        return status


class _NoParentError(SpecError):
    """What a fork begins from is not there, so nothing was trained."""


def _parent(
    studies: Studies, study: StudyRecord, request: Mapping[str, Any]
) -> tuple[UnitRecord, Mapping[str, Any]] | None:
    """Return the unit that a fork begins from, with its state there."""
    fork = request.get("fork")
    if fork is None:
        return None
    unit = next(one for one in studies.units(study) if one.place == fork["place"])
    kept = [
        one
        for one in studies.snapshots(unit.run or 0)
        if one.purpose == "fork" and one.decision == fork["decision"]
    ]
    if not kept:
        raise _NoParentError(
            f"study {study.name!r}: unit {unit.place} has no snapshot of decision "
            f"{fork['decision']} any more, so nothing can be forked from it"
        )
    try:
        return unit, read_snapshot(Path(kept[0].path), kept[0].sha256)
    except StoreError as error:  # not to be tried again: the file will not mend
        raise _NoParentError(str(error)) from error


def _info(
    study: StudyRecord,
    task: Task,
    spec: ControlSpec,
    controller: Controller,
    settings: RunSettings,
    request: Mapping[str, Any],
    parent: tuple[UnitRecord, Mapping[str, Any]] | None,
) -> RunInfo:
    notice = str(getattr(task, "notice", "") or "")
    fork = request.get("fork") or {}
    return RunInfo(
        task=task.name,
        spec=spec,
        total_steps=task.total_steps,
        policy=controller.name,
        reference=str(settings.reference),
        seed=settings.seed,
        variant=str(getattr(task, "variant", "") or ""),
        monitor=task.monitor,
        mode=task.mode,
        study=study.name,
        parent_run=None if parent is None else parent[0].run,
        fork_decision=fork.get("decision"),
        notices={"data": notice} if notice else {},
    )


def outcome_of(
    task: Task, result: RunResult, path: RunPath, *, inherited: float = 0.0
) -> dict[str, Any]:
    """Return what a run came to, as plain data.

    Args:
        task: What was trained.
        result: Of the run.
        path: Its course.
        inherited: Charge of the part that a fork shares with its parent, paid by that one.
    """
    value = float(result.best.get(task.monitor, math.nan))
    loss = loss_from_validation(value, mode=task.mode)[0] if math.isfinite(value) else math.nan
    names = [name for name in (result.schedule[0] if result.schedule else {}) if name != "step"]
    return {
        "validation": value,
        "loss": loss,
        "best": result.best,
        "test": result.test,
        "spent": result.spent - inherited,
        "steps": result.spent_steps,
        "rollbacks": result.rollbacks,
        "diverged": result.diverged,
        "stopped": result.spent_steps < task.total_steps and not result.diverged,
        "path": [[point[0], point[1]] for point in path.points],
        "schedule": {name: [row[name] for row in result.schedule] for name in names},
    }
