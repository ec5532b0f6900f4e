"""The pieces that a comparison is made of, each done once, by any process, from plain data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

import numpy as np

from trimtab.core.hyperparameters import resolve_hyperparameters
from trimtab.core.protocols import Task
from trimtab.core.registry import make_task
from trimtab.search.methods.base import (
    Assignment,
    Outcome,
    Rhythm,
    SingleRun,
    find_method,
    loss_of,
    outcome_to,
    select,
)
from trimtab.search.methods.schedules import reference_run
from trimtab.search.methods.starts import Start, StartLaw, generator_for

_TUNED_SEEDS, _GRID_SEEDS, _GRID_POINTS = 2, 3, 32
_GRID_DECADES = 2.5
_SEEDS_OF_TUNING, _SEEDS_OF_POOL = 970_001, 980_000  # used by nothing else
_SIMULATED_POOL, _REAL_POOL = 64, 16


@dataclass(frozen=True)
class Unit:
    """One piece of work: a tuning grid's seed, a run of the pool, or a method's assignment.

    Attributes:
        kind: ``"tuned"``, ``"pool"`` or ``"method"``.
        task: Registered name or ``module:factory``.
        variant: Its size; None for its usual one.
        hyperparameters: What is steered.
        rhythm: When runs are validated.
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
    rhythm: Rhythm
    seed: int
    method: str = ""
    budget: int = 1
    start_scale: float | None = None
    policy: tuple[str, str] = ("", "")

    @property
    def key(self) -> str:
        """What the unit is, as one line of JSON; the policy by its content, not its place."""
        return json.dumps({**asdict(self), "policy": self.policy[1]}, sort_keys=True)

    @property
    def label(self) -> str:
        """What a list of progress says."""
        if self.kind != "method":
            return f"{self.task} {self.kind} {self.seed}"
        scale = "" if self.start_scale is None else f" x{self.start_scale:g}"
        return f"{self.task} {self.method}:{self.budget} seed {self.seed}{scale}"


@dataclass(frozen=True)
class Told:
    """What is known when a unit begins.

    Attributes:
        tuned_lr: The learning rate that factors are counted from.
        pool: The task's pool.
        others: Steered runs that the method is told of.
    """

    tuned_lr: float = float("nan")
    pool: Sequence[SingleRun] = ()
    others: Sequence[SingleRun] = field(default_factory=tuple)


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


def _law(task: Task, names: Sequence[str], tuned_lr: float) -> StartLaw:
    offered = {item.name: item for item in task.hyperparameters}
    return StartLaw(resolve_hyperparameters(names, offered), tuned_lr)


def _default_rate(task: Task, names: Sequence[str]) -> float:
    """Return the task's tuned learning rate, else its default."""
    known = getattr(task, "tuned_lr", None)
    if known is not None:
        return float(known)
    return next(item.default for item in _law(task, names, 1.0).items if item.kind == "lr")


def perform(unit: Unit, told: Told) -> dict[str, Any]:
    """Do a unit and return its outcome as plain data."""
    task = _task(unit.task, unit.variant)
    done = {"tuned": _tune, "pool": _pool_run, "method": _method}[unit.kind](unit, task, told)
    return outcome_to(done)


def _tune(unit: Unit, task: Task, told: Told) -> Outcome:
    """Run the reference from the tuned rate, or from every rate of a grid if it is not known."""
    del told
    centre = _default_rate(task, unit.hyperparameters)
    law = _law(task, unit.hyperparameters, centre)
    decades = (
        np.zeros(1)
        if has_known_rate(task)
        else np.linspace(-_GRID_DECADES, _GRID_DECADES, _GRID_POINTS)
    )
    rows = []
    for decade in decades:
        values = {item.name: item.default for item in law.items}
        values[law.rate] = centre * 10.0 ** float(decade)
        seed = _SEEDS_OF_TUNING + unit.seed
        rows.append(reference_run(task, law, unit.rhythm, law.start(values), seed=seed))
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


def _drawn(unit: Unit, task: Task, law: StartLaw) -> Start:
    """Return a unit's start: of the pool's run, or of the method's seed."""
    generator = generator_for("start", unit.kind, task.name, unit.seed)
    return law.draw(generator, scale=unit.start_scale)


def _pool_run(unit: Unit, task: Task, told: Told) -> Outcome:
    law = _law(task, unit.hyperparameters, told.tuned_lr)
    seed = _SEEDS_OF_POOL + unit.seed
    row = reference_run(task, law, unit.rhythm, _drawn(unit, task, law), seed=seed)
    return Outcome((row,), 0)


def _method(unit: Unit, task: Task, told: Told) -> Outcome:
    law = _law(task, unit.hyperparameters, told.tuned_lr)
    aside: dict[str, Any] = {"pool": told.pool, "others": told.others}
    assignment = Assignment(
        task=task,
        reference=(unit.task, unit.variant),
        law=law,
        rhythm=unit.rhythm,
        policy=unit.policy[0],
        budget=unit.budget,
        seed=unit.seed,
        start=_drawn(unit, task, law),
        aside=aside,
    )
    return find_method(unit.method).run(assignment)
