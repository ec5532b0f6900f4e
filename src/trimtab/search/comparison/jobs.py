"""The pieces that a comparison is made of, each done once, by any process, from plain data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np

from trimtab.core.hyperparameters import resolve_hyperparameters
from trimtab.core.protocols import Task
from trimtab.core.registry import make_task
from trimtab.search.methods.base import (
    Assignment,
    Context,
    DecisionSchedule,
    Outcome,
    SingleRun,
    find_method,
    loss_of,
    outcome_to,
    select,
)
from trimtab.search.methods.schedules import reference_run
from trimtab.search.methods.starts import Start, StartDistribution, generator_for

_TUNED_SEEDS, _GRID_SEEDS, _GRID_POINTS = 2, 3, 32
_GRID_DECADES = 2.5
_SEEDS_OF_TUNING, _SEEDS_OF_POOL = 970_001, 980_000  # used by nothing else
_SIMULATED_POOL, _REAL_POOL = 64, 16


@dataclass(frozen=True)
class Job:
    """One piece of work: a tuning grid's seed, a run of the pool, or a method's assignment.

    Attributes:
        kind: ``"tuned"``, ``"pool"`` or ``"method"``.
        task: Registered name or ``module:factory``.
        variant: Its size; None for its usual one.
        hyperparameters: What is steered.
        windows: When runs are validated.
        seed: Number of the seed, or of the run in the pool.
        method: Name of the method.
        budget: Its budget in whole runs.
        start_scale: Factor of the start; None to draw one, or for methods that need none.
        policy: File of the policy, and the first digits of its hash.
    """

    kind: str
    task: str
    variant: str | None
    hyperparameters: tuple[str, ...]
    windows: DecisionSchedule
    seed: int
    method: str = ""
    budget: int = 1
    start_scale: float | None = None
    policy: tuple[str, str] = ("", "")

    @property
    def key(self) -> str:
        """What the job is, as one line of JSON; the policy by its content, not its place."""
        found = {**asdict(self), "policy": self.policy[1]}
        found["rhythm"] = found.pop("windows")  # its name in files
        return json.dumps(found, sort_keys=True)

    @property
    def label(self) -> str:
        """What a list of progress says."""
        if self.kind != "method":
            return f"{self.task} {self.kind} {self.seed}"
        scale = "" if self.start_scale is None else f" x{self.start_scale:g}"
        return f"{self.task} {self.method}:{self.budget} seed {self.seed}{scale}"


@cache
def _task(name: str, variant: str | None) -> Task:
    return make_task(name, variant=variant, default_member=0)


def has_known_rate(task: Task) -> bool:
    """Whether the task tells its tuned learning rate, or is no simulated one that can be tuned.

    A rate that the task works out when it is first asked for counts, and is not asked for here.
    """
    if not _is_simulated(task) or hasattr(type(task), "tuned_lr"):
        return True
    return getattr(task, "tuned_lr", None) is not None


def usual_pool(task: Task) -> int:
    """Return how many runs the pool of a task has: 64 where runs are simulated, else 16."""
    return _SIMULATED_POOL if _is_simulated(task) else _REAL_POOL


def tuning_seeds(task: Task) -> int:
    """Return how many seeds the tuned learning rate is run with."""
    return _GRID_SEEDS if _is_simulated(task) else _TUNED_SEEDS


def _is_simulated(task: Task) -> bool:
    return getattr(task, "kind", "") == "simulated"


def _starts(task: Task, names: Sequence[str], tuned_lr: float) -> StartDistribution:
    offered = {item.name: item for item in task.hyperparameters}
    return StartDistribution(resolve_hyperparameters(names, offered), tuned_lr)


def _default_rate(task: Task, names: Sequence[str]) -> float:
    """Return the task's tuned learning rate, else its default."""
    known = getattr(task, "tuned_lr", None)
    if known is not None:
        return float(known)
    return next(item.default for item in _starts(task, names, 1.0).items if item.kind == "lr")


def run_job(job: Job, context: Context) -> dict[str, Any]:
    """Do a job and return its outcome as plain data."""
    task = _task(job.task, job.variant)
    done = {"tuned": _tune, "pool": _pool_run, "method": _method}[job.kind](job, task, context)
    return outcome_to(done)


def _tune(job: Job, task: Task, context: Context) -> Outcome:
    """Run the reference from the tuned rate, or from every rate of a grid if it is not known."""
    del context
    centre = _default_rate(task, job.hyperparameters)
    starts = _starts(task, job.hyperparameters, centre)
    decades = (
        np.zeros(1)
        if has_known_rate(task)
        else np.linspace(-_GRID_DECADES, _GRID_DECADES, _GRID_POINTS)
    )
    rows = []
    for decade in decades:
        values = {item.name: item.default for item in starts.items}
        values[starts.rate] = centre * 10.0 ** float(decade)
        seed = _SEEDS_OF_TUNING + job.seed
        rows.append(reference_run(task, starts, job.windows, starts.start(values), seed=seed))
    return select(task, rows)


def tuned_rate(task: Task, rate: str, grids: Sequence[Outcome]) -> tuple[float, list[SingleRun]]:
    """Return the learning rate with the lowest mean validation loss, and its runs.

    Args:
        task: What was tuned.
        rate: Name of its learning rate.
        grids: One grid a seed, the same points in each.
    """
    losses = np.array([[loss_of(task, run.validation) for run in grid.runs] for grid in grids])
    mean = np.where(np.isfinite(losses), losses, np.inf).mean(axis=0)
    best = int(np.argmin(mean))
    runs = [grid.runs[best] for grid in grids]
    return float(runs[0].start[rate]), runs


def _drawn(job: Job, task: Task, starts: StartDistribution) -> Start:
    """Return a job's start: of the pool's run, or of the method's seed."""
    generator = generator_for("start", job.kind, task.name, job.seed)
    return starts.draw(generator, scale=job.start_scale)


def _pool_run(job: Job, task: Task, context: Context) -> Outcome:
    starts = _starts(task, job.hyperparameters, context.tuned_lr)
    seed = _SEEDS_OF_POOL + job.seed
    row = reference_run(task, starts, job.windows, _drawn(job, task, starts), seed=seed)
    return Outcome((row,), 0)


def _method(job: Job, task: Task, context: Context) -> Outcome:
    starts = _starts(task, job.hyperparameters, context.tuned_lr)
    assignment = Assignment(
        task=task,
        reference=(job.task, job.variant),
        starts=starts,
        windows=job.windows,
        policy=job.policy[0],
        budget=job.budget,
        seed=job.seed,
        start=_drawn(job, task, starts),
        context=context,
    )
    return find_method(job.method).run(assignment)
