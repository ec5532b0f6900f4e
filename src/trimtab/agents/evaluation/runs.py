"""The runs behind a ring's rows: many tasks, starts and seeds at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trimtab.agents.evaluation.baselines import lr_finder_runs, race_runs, scheduled_runs
from trimtab.agents.evaluation.figures import FACTORS
from trimtab.agents.training.rollout import STEERING, Episodes, columns_of, fair_lr, rollout
from trimtab.agents.training.task_sampling import start_values
from trimtab.controllers.learned import PolicyFile
from trimtab.core.spec import ControlSpec
from trimtab.envs.simulators.batch import Programs

_FIGURES = (
    *("validation", "test", "accuracy", "spent", "rollbacks", "diverged", "frozen"),
    *("residual_use", "lr"),
)
_GRID = np.linspace(-2.5, 2.5, 32)
_GRID_SEEDS = 3
SEEDS = 2
"""Seeds of a task and start factor."""
BATCH = 32
"""Tasks at a time."""
SIZE = BATCH * len(FACTORS) * SEEDS
"""Runs at a time; one compilation serves all."""


class EvaluationGroup(NamedTuple):
    """One architecture of a ring with its length of run."""

    number: int
    family: Any
    programs: Programs
    steps: int
    decisions: int


def _keys(seeds: np.ndarray, salt: int) -> jax.Array:
    """Return keys of (n,) whole numbers, apart for each salt."""
    return jax.vmap(lambda s: jax.random.fold_in(jax.random.key(salt), s))(
        jnp.asarray(seeds, jnp.uint32)
    )


class Prepared(NamedTuple):
    """B runs that are about to be made.

    Attributes:
        tasks: (B,) number of the task.
        factors: (B,) start over lr*.
        seeds: (B,) of initialisation and data order.
        values: (B, H) starts.
        task_keys: (B,) keys that the tasks are drawn with.
        run_keys: (B,) keys of initialisation and data order.
    """

    tasks: np.ndarray
    factors: np.ndarray
    seeds: np.ndarray
    values: np.ndarray
    task_keys: jax.Array
    run_keys: jax.Array


def prepared_runs(
    group: EvaluationGroup,
    tasks: np.ndarray,
    factors: np.ndarray,
    seeds: np.ndarray,
    lr: np.ndarray,
    others: np.ndarray | None = None,
) -> Prepared:
    """Return runs of tasks at learning rates (B,); the ``others`` (B, H - 1) rest at defaults."""
    if others is None:
        rest = [item.default for item in group.family.hyperparameters[1:]]
        others = np.tile(np.asarray(rest, float), (len(lr), 1))
    values = np.column_stack([lr, others])
    return Prepared(
        tasks,
        factors,
        seeds,
        values.astype(np.float32),
        _keys(tasks, 11),
        _keys(tasks * 1009 + seeds, 13),
    )


def _picked(field: Any, index: np.ndarray) -> Any:
    return field[index]


def slices(prepared: Prepared) -> Iterator[tuple[int, Prepared]]:
    """Yield pieces of `SIZE` runs, the last one filled up, so that one compilation serves all."""
    total = len(prepared.tasks)
    for first in range(0, total, SIZE):
        index = np.minimum(np.arange(first, first + SIZE), total - 1)
        yield min(SIZE, total - first), jax.tree.map(partial(_picked, index=index), prepared)


def plain(
    group: EvaluationGroup, ends: np.ndarray, prepared: Prepared, how: str
) -> list[dict[str, Any]]:
    """Return rows of any number of runs without a policy."""
    rows: list[dict[str, Any]] = []
    for count, piece in slices(prepared):
        rows += _plain_rows(group, ends, piece, how)[:count]
    return rows


def _plain_rows(
    group: EvaluationGroup, ends: np.ndarray, prepared: Prepared, how: str
) -> list[dict[str, Any]]:
    """Return rows of `SIZE` runs: pool, grid, zero, floor, race or lr-finder."""
    runs, initial = group.programs.prepare(prepared.task_keys, prepared.run_keys)
    extra = 0
    if how == "race":
        outcome, extra = race_runs(group.programs, runs, np.asarray(initial), prepared.values, ends)
    elif how == "lr-finder":
        outcome = lr_finder_runs(group.programs, runs, np.asarray(initial), prepared.values, ends)
    else:
        outcome = scheduled_runs(group.programs, runs, np.asarray(initial), prepared.values, ends)
    shown = np.asarray(getattr(runs.draw, "n_validation", np.zeros(len(prepared.tasks))))
    whole = 32 * group.steps + (len(ends) + 1) * shown / 3
    spent = (whole + extra * shown / 3) / whole
    nothing = np.zeros(len(prepared.tasks))
    figures = outcome.validation, outcome.test, outcome.accuracy, spent, nothing, outcome.diverged
    return _rows(group, prepared, how, *figures, nothing, nothing, outcome.lr)


def _rows(
    group: EvaluationGroup, prepared: Prepared, method: str, *columns: Any
) -> list[dict[str, Any]]:
    """Return a row a run: what was run, and of it the figures of `_FIGURES`, in that order."""
    return [
        {
            "task": int(prepared.tasks[i]),
            "bucket": group.number,
            "method": method,
            "factor": float(prepared.factors[i]),
            "seed": int(prepared.seeds[i]),
            **{n: float(column[i]) for n, column in zip(_FIGURES, columns, strict=True)},
        }
        for i in range(len(prepared.tasks))
    ]


def steered(
    group: EvaluationGroup,
    spec: ControlSpec,
    parameters: Mapping[str, Any],
    prepared: Prepared,
    method: str,
    mode_input: Any = None,
) -> tuple[list[dict[str, Any]], Episodes]:
    """Return rows of `SIZE` steered runs, and the runs themselves.

    Args:
        group: What is trained.
        spec: What is steered; hyperparameters of the family that are not in it stay at their start.
        parameters: The policy's arrays, with those of the fallback.
        prepared: `SIZE` runs.
        method: ``"trimtab"``, ``"lr-alone"``, ``"shuffled"`` or ``"open-loop"``.
        mode_input: See `trimtab.agents.training.rollout.rollout`.
    """
    mode = {"shuffled": "shuffled", "open-loop": "fixed"}.get(method, STEERING)
    episodes = rollout(
        group.programs,
        spec,
        dict(parameters),
        prepared.task_keys,
        prepared.run_keys,
        lambda _: prepared.values,
        group.steps,
        mode=mode,
        mode_input=mode_input,
        columns=columns_of(spec, group.family.hyperparameters),
    )
    used = np.abs(episodes.offset).max(-1) > np.log10(1.05)
    ends = episodes.best_val, episodes.test_loss, episodes.test_accuracy, episodes.spent
    guard = episodes.rollbacks, episodes.diverged, np.asarray(episodes.novelty.any(0))
    lr = prepared.values[:, 0]
    rows = _rows(group, prepared, method, *ends, *guard, used.mean(0), lr)
    return rows, episodes


def tuned(
    group: EvaluationGroup, ends: np.ndarray, tasks: np.ndarray
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Return each task's best learning rate by mean validation, and its three runs' rows."""
    nothing = np.zeros(len(tasks))
    _, first = next(slices(prepared_runs(group, tasks, nothing, nothing.astype(int), nothing)))
    runs, _ = group.programs.prepare(first.task_keys, first.run_keys)
    centre = fair_lr(group.programs, runs)[: len(tasks)]
    many = np.tile(np.repeat(tasks, _GRID_SEEDS), len(_GRID))
    seeds = np.tile(np.arange(900, 900 + _GRID_SEEDS), len(tasks) * len(_GRID))
    decades = np.repeat(_GRID, len(tasks) * _GRID_SEEDS)
    lr = np.tile(np.repeat(centre, _GRID_SEEDS), len(_GRID)) * 10.0**decades
    prepared = prepared_runs(group, many, np.full(len(many), np.nan), seeds, lr)
    rows = plain(group, ends, prepared, "tuned")
    shape = (len(_GRID), len(tasks), _GRID_SEEDS)
    losses = np.array([row["validation"] for row in rows]).reshape(shape).mean(-1)
    chosen = np.argmin(np.where(np.isfinite(losses), losses, np.inf), axis=0)
    place = np.arange(len(rows)).reshape(shape)
    kept = [rows[i] for index, point in enumerate(chosen) for i in place[point, index]]
    return centre * 10.0 ** _GRID[chosen], kept


def spec_for(
    policy: PolicyFile, group: EvaluationGroup, names: Sequence[str] | None = None
) -> ControlSpec:
    """Return a policy's spec for a group, steering all that it offers or just some names."""
    items = group.family.hyperparameters
    if names is not None:
        items = tuple(item for item in items if item.name in names)
    return replace(policy.spec, hyperparameters=items, decisions=group.decisions)


def crossed(
    group: EvaluationGroup, tasks: np.ndarray, best: np.ndarray, *, drawn: bool = False
) -> Prepared:
    """Return every task at every start factor and seed.

    Args:
        group: What is trained.
        tasks: (n,) numbers.
        best: (n,) their tuned learning rates.
        drawn: Start the other hyperparameters by the start distribution, not at their defaults.
    """
    many = np.repeat(tasks, len(FACTORS) * SEEDS)
    factors = np.tile(np.repeat(FACTORS, SEEDS), len(tasks))
    seeds = np.tile(np.arange(SEEDS), len(FACTORS) * len(tasks))
    lr = np.repeat(best, len(FACTORS) * SEEDS) * factors
    others = sample_others(group, many, seeds) if drawn else None
    return prepared_runs(group, many, factors, seeds, lr, others)


def sample_others(
    group: EvaluationGroup, tasks: np.ndarray, seeds: np.ndarray
) -> np.ndarray | None:
    """Return (B, H - 1) starts of all but the learning rate, one draw a task and seed."""
    items = group.family.hyperparameters[1:]
    if not items:
        return None
    rows = []
    for task, seed in zip(tasks.tolist(), seeds.tolist(), strict=True):
        rng = np.random.default_rng([17, int(task), int(seed)])
        rows.append(start_values(items, np.ones(1), np.zeros(1), rng)[0])
    return np.stack(rows)
