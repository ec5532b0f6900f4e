"""Units that are runs of another method: the whole of it, or one run of a search by chance."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from trimtab.core.decision import RunInfo
from trimtab.core.hyperparameters import resolve_hyperparameters
from trimtab.core.protocols import Task
from trimtab.records.store.encoding import to_json
from trimtab.records.store.rows import run_row
from trimtab.records.store.study_rows import Claim, StudyRecord
from trimtab.search.methods.base import (
    Assignment,
    Outcome,
    Rhythm,
    SingleRun,
    find_method,
    loss_of,
    outcome_from,
    outcome_to,
)
from trimtab.search.methods.schedules import reference_run
from trimtab.search.methods.starts import Start, StartLaw, generator_for
from trimtab.search.study.plan import StudySettings


def law_of(task: Task, settings: StudySettings) -> StartLaw:
    """Return where the runs of a method start: around the study's start."""
    offered = {item.name: item for item in task.hyperparameters}
    items = resolve_hyperparameters(settings.hyperparameters, offered)
    items = tuple(
        item.starting_at(float(settings.start[item.name])) if item.name in settings.start else item
        for item in items
    )
    rate = next((item.default for item in items if item.kind == "lr"), 1.0)
    tuned = getattr(task, "tuned_lr", None)
    return StartLaw(items, float(rate if tuned is None else tuned))


def start_of(law: StartLaw) -> Start:
    """Return the start that a study was given."""
    return law.start({item.name: item.default for item in law.items})


def perform_method(
    study: StudyRecord, claim: Claim, task: Task, settings: StudySettings, policy: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Do a method's unit; return its outcome and a row of the table ``runs`` for each run."""
    request = claim.record.request
    law = law_of(task, settings)
    rhythm = Rhythm(decisions=settings.decisions)
    seed = int(request["seed"])
    if request.get("draw") is not None:
        start = _drawn(law, request)
        run = reference_run(task, law, rhythm, start, seed=seed, reference=settings.reference)
        outcome = Outcome((run,), 0)
    else:
        assignment = Assignment(
            task=task,
            reference=(study.task, settings.variant),
            law=law,
            rhythm=rhythm,
            policy=policy,
            budget=int(request["budget"]),
            seed=seed,
            start=start_of(law),
            aside={"others": _others(request)},
        )
        outcome = find_method(str(request["method"])).run(assignment)
    rows = [_row(study, claim, task, law, rhythm, run) for run in outcome.runs]
    return _plain(task, outcome), rows


def _drawn(law: StartLaw, request: Mapping[str, Any]) -> Start:
    """Return the start of one run of a search by chance or on a grid."""
    if request["draw"] == "random":
        return law.draw(generator_for("tune-random", int(request["seed"])))
    ranges = law.ranges()
    return law.start({name: ranges[name].at(share) for name, share in request["shares"].items()})


def _others(request: Mapping[str, Any]) -> list[SingleRun]:
    told = request.get("others")
    return [] if not told else [run for one in told for run in outcome_from(one).runs]


def _plain(task: Task, outcome: Outcome) -> dict[str, Any]:
    best = outcome.result
    return {
        "validation": best.validation,
        "loss": loss_of(task, best.validation),
        "best": {task.monitor: best.validation, "step": best.best_step},
        "test": dict(best.tested),
        "spent": outcome.spent,
        "steps": sum(run.steps for run in outcome.runs),
        "rollbacks": best.rollbacks,
        "diverged": best.diverged,
        "stopped": False,
        "choices": dict(best.start),
        "runs": outcome_to(outcome)["runs"],
        "chosen": outcome.chosen,
    }


def _row(
    study: StudyRecord, claim: Claim, task: Task, law: StartLaw, rhythm: Rhythm, run: SingleRun
) -> dict[str, Any]:
    start = Start(run.start, run.start_scale)
    known = all(item.name in run.start for item in law.items)
    items = law.starting(start) if known else law.items
    info = RunInfo(
        task=task.name,
        spec=rhythm.spec(hyperparameters=items),
        total_steps=task.total_steps,
        policy=str(claim.record.request.get("method", study.method)),
        seed=run.seed,
        variant=str(getattr(task, "variant", "") or ""),
        monitor=task.monitor,
        mode=task.mode,
    )
    figures = {
        "best": {task.monitor: run.validation, "step": run.best_step},
        "test": dict(run.tested),
        "spent": run.spent,
        "spent_steps": run.steps,
        "rollbacks": run.rollbacks,
        "diverged": run.diverged,
        "seconds": run.seconds,
    }
    now = time.time()
    return run_row(info) | {
        "study_id": study.id,
        "place": claim.record.place,
        "round": claim.record.round,
        "kind": claim.record.kind,
        "choices": to_json(dict(run.start)),
        "status": "diverged" if run.diverged else "finished",
        "started_at": now - run.seconds,
        "finished_at": now,
        "summary": to_json(figures),
    }
