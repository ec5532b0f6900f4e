"""Another method in a study: how it spends the budget, and how its units are done.

A unit is the whole of a method, or one run of a search by chance.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from trimtab.core.decision import RunInfo
from trimtab.core.errors import SpecError
from trimtab.core.protocols import Task
from trimtab.records.store.encoding import to_json
from trimtab.records.store.rows import Claim, StudyRecord, UnitRequest, run_row
from trimtab.search.methods.base import (
    Assignment,
    Context,
    DecisionSchedule,
    Method,
    Outcome,
    SingleRun,
    find_method,
    loss_of,
    outcome_from,
    outcome_to,
)
from trimtab.search.methods.pool import grid_levels
from trimtab.search.methods.schedules import reference_run
from trimtab.search.methods.starts import Start, StartDistribution, generator_for
from trimtab.search.study.plan import Entry, StudySettings, spent_by
from trimtab.search.study.runs import starts_of

_ROUNDING = 1e-6
_TOLD_SEEDS = 2  # steered runs of other seeds that a control is told of


class MethodStrategy:
    """Another method's way to spend a budget.

    Runs by chance and on a grid are units of their own, done side by side. Every other method is
    one unit, since each of its runs may depend on those before; a budget that grows later is spent
    by the same method with another seed, and the better of the two counts.

    Args:
        task: What is trained.
        method: Who chooses.
        seed: Of the runs and of what is drawn.
        settings: Of the study.

    Raises:
        SpecError: The task cannot be run by it.
    """

    def __init__(self, task: Task, method: Method, seed: int, settings: StudySettings) -> None:
        reason = method.reason_against(task)
        if reason is not None:
            raise SpecError(f"method {method.name!r}: {task.name}: {reason}")
        self._task, self._method, self._seed, self._settings = task, method, seed, settings

    def propose(self, entries: Sequence[Entry], budget: float) -> list[UnitRequest]:
        """Return the next units; see `trimtab.search.study.plan.Strategy`."""
        whole = self._whole(budget)
        if self._method.needs == "pool":
            return self._apart(entries, whole)
        told = [entry for entry in entries if entry.kind == "told"]
        if self._method.needs == "trimtab" and len(told) < _TOLD_SEEDS:
            return [self._told(place) for place in range(_TOLD_SEEDS)]
        own = [entry for entry in entries if entry.kind != "told"]
        left = whole - sum(int(entry.request["budget"]) for entry in own)
        if left < self._method.least or (own and self._method.most == 1):
            return []
        others = [
            {"chosen": entry.outcome["chosen"], "runs": entry.outcome["runs"]} for entry in told
        ]
        request = {
            "method": self._method.name,
            "budget": left,
            "seed": self._seed if not own else self._derived(len(entries)),
            "others": others,
            "cost": float(left),
        }
        return [UnitRequest(len(entries), _next_round(entries), "method", request)]

    def _whole(self, budget: float) -> int:
        whole, method = int(budget + _ROUNDING), self._method
        most = method.most
        if whole < method.least or (most is not None and whole > most):
            limit = "more" if most is None else str(most)
            raise SpecError(
                f"method {method.name!r}: a budget of {budget:g} whole runs is not in "
                f"{method.least}..{limit}; choose one of these"
            )
        return whole

    def _derived(self, place: int) -> int:
        return int(generator_for("tune", self._seed, place).integers(2**31))

    def _told(self, place: int) -> UnitRequest:
        request = {
            "method": "trimtab",
            "budget": 1,
            "seed": self._derived(place),
            "cost": 1.0,
        }
        return UnitRequest(place, 0, "told", request)

    def _apart(self, entries: Sequence[Entry], whole: int) -> list[UnitRequest]:
        """Return the runs of a search by chance, or of a grid, that are not there yet."""
        starts = starts_of(self._task, self._settings)
        ranges = starts.ranges()
        points: list[dict[str, Any]] = [{"draw": "random"} for _ in range(whole)]
        if self._method.name == "grid":
            ordered = [starts.rate, *(name for name in ranges if name != starts.rate)]
            axes = [
                [(number + 0.5) / count for number in range(count)]
                for count in grid_levels(whole, len(ordered))
            ]
            points = [
                {"draw": "grid", "shares": dict(zip(ordered, point, strict=True))}
                for point in product(*axes)
            ]
        left = math.floor(whole - spent_by(entries) + 0.5)
        have = [entry.request.get("shares") for entry in entries]
        points = [one for one in points if "shares" not in one or one["shares"] not in have]
        return [
            UnitRequest(
                len(entries) + number,
                _next_round(entries),
                "method",
                point
                | {
                    "method": self._method.name,
                    "budget": 1,
                    "seed": self._derived(len(entries) + number),
                    "cost": 1.0,
                },
            )
            for number, point in enumerate(points[: max(left, 0)])
        ]


def _next_round(entries: Sequence[Entry]) -> int:
    return max((entry.round for entry in entries), default=-1) + 1


def run_method_job(
    study: StudyRecord, claim: Claim, task: Task, settings: StudySettings, policy: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Do a method's unit; return its outcome and a row of the table ``runs`` for each run."""
    request = claim.record.request
    starts = starts_of(task, settings)
    windows = DecisionSchedule(decisions=settings.decisions)
    seed = int(request["seed"])
    if request.get("draw") is not None:
        start = _drawn(starts, request)
        run = reference_run(task, starts, windows, start, seed=seed, reference=settings.reference)
        outcome = Outcome((run,), 0)
    else:
        assignment = Assignment(
            task=task,
            reference=(study.task, settings.variant),
            starts=starts,
            windows=windows,
            policy=policy,
            budget=int(request["budget"]),
            seed=seed,
            start=starts.start({item.name: item.default for item in starts.items}),
            context=Context(starts.tuned_lr, others=_others(request)),
        )
        outcome = find_method(str(request["method"])).run(assignment)
    rows = [_row(study, claim, task, starts, windows, run) for run in outcome.runs]
    return _plain(task, outcome), rows


def _drawn(starts: StartDistribution, request: Mapping[str, Any]) -> Start:
    """Return the start of one run of a search by chance or on a grid."""
    if request["draw"] == "random":
        return starts.draw(generator_for("tune-random", int(request["seed"])))
    ranges = starts.ranges()
    return starts.start({name: ranges[name].at(share) for name, share in request["shares"].items()})


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
    study: StudyRecord,
    claim: Claim,
    task: Task,
    starts: StartDistribution,
    windows: DecisionSchedule,
    run: SingleRun,
) -> dict[str, Any]:
    start = Start(run.start, run.start_scale)
    known = all(item.name in run.start for item in starts.items)
    items = starts.starting(start) if known else starts.items
    info = RunInfo(
        task=task.name,
        spec=windows.spec(hyperparameters=items),
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
