"""The method ``trimtab``: one steered run, or a study in the process that asks, nothing kept."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trimtab.controllers.learned import policy_file_digest
from trimtab.records.store.studies import Studies
from trimtab.search.engines.local import InlineEngine
from trimtab.search.methods.base import Assignment, Method, Outcome, SingleRun, select
from trimtab.search.methods.schedules import steered_run
from trimtab.search.study.coordinator import Coordinator
from trimtab.search.study.plan import Entry, StudySettings, given_name
from trimtab.search.study.samplers import usual_sampler


def spend(assignment: Assignment) -> Outcome:
    """Spend an assignment's budget as ``trimtab tune`` does; a row for each unit.

    The first run is the one that the method makes with a budget of 1.
    """
    task, starts = assignment.task, assignment.starts
    policy = Path(assignment.policy)
    settings = StudySettings(
        hyperparameters=tuple(item.name for item in starts.items),
        start={name: float(value) for name, value in assignment.start.values.items()},
        policy=str(policy),
        policy_sha256=policy_file_digest(policy),
        decisions=assignment.windows.decisions,
        sampler=usual_sampler(),
        snapshot_seconds=math.inf,
    )
    with (
        tempfile.TemporaryDirectory(prefix="trimtab-") as folder,
        Studies(Path(folder) / "study.db") as studies,
    ):
        record = studies.open(
            "comparison",
            task=given_name(task),
            method="trimtab",
            budget=float(assignment.budget),
            seed=assignment.seed,
            settings=settings.to_plain(),
        )
        coordinator = Coordinator(studies, record, task, InlineEngine(), None)
        coordinator.run()
        entries = coordinator.entries()
    return select(
        task, [_row(assignment, entry, coordinator.choices_of(entry)) for entry in entries]
    )


def _row(assignment: Assignment, entry: Entry, choices: Mapping[str, Any]) -> SingleRun:
    outcome, monitor = entry.outcome, assignment.task.monitor
    test = {key: _number(value) for key, value in (outcome.get("test") or {}).items()}
    rate = float(choices[assignment.starts.rate])
    return SingleRun(
        seed=int(entry.request["seed"]),
        start={key: float(value) for key, value in choices.items() if _is_number(value)},
        start_scale=rate / assignment.starts.tuned_lr,
        validation=_number(outcome.get("validation")),
        test=test.get(monitor, math.nan),
        spent=_number(outcome.get("spent")),
        seconds=_number(outcome.get("seconds")),
        steps=int(outcome.get("steps") or 0),
        best_step=int((outcome.get("best") or {}).get("step") or 0),
        rollbacks=int(outcome.get("rollbacks") or 0),
        diverged=bool(outcome.get("diverged")),
        tested=test,
    )


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _steered(assignment: Assignment) -> Outcome:
    if assignment.budget > 1:
        return spend(assignment)
    return Outcome((steered_run(assignment, lambda controller: controller),), 0)


TRIMTAB = Method(
    "trimtab",
    "the learned policy; with more budget restarts and forks",
    _steered,
    most=None,
    usual=1,
)
