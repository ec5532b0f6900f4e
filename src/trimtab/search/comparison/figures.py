"""The figures of a comparison; definitions in `docs/measures.md`.

Intervals are 95 %, from a bootstrap over tasks and, within a task, over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trimtab.core.metrics import loss_from_validation
from trimtab.records.measures import (
    best_of_n,
    interquartile_mean,
    probability_of_improvement,
    runs_worth,
)
from trimtab.search.comparison.compare import Comparison, Entry, TaskResult

PROFILE_LEVELS = tuple(float(level) for level in np.round(np.linspace(-0.5, 2.0, 51), 3))
"""Regrets at which performance profiles are read."""

_STEERED = "trimtab"
_N_BOOTSTRAP = 1000
_FLAG_BELOW = 3.0  # standard errors
_CAPPED = 0.99


def label_of(entry: Entry, budgets: Mapping[str, int]) -> str:
    """Return a method's name, with its budget unless every budget is one run.

    One steered run is ``"trimtab"`` beside larger budgets too: every method is held against it.
    """
    is_one_steered = entry.method == _STEERED and entry.budget == 1
    if is_one_steered or budgets[entry.method] == 1:
        return entry.method
    return f"{entry.method}:{entry.budget}"


@dataclass
class _Task:
    """One task's numbers, all as losses."""

    # (N,) expected test loss of the best of n random runs; empty without a finite run in the pool
    curve: np.ndarray
    tuned: float
    median: float
    flagged: bool
    losses: dict[str, dict[tuple[float | None, int], float]] = field(default_factory=dict)
    charge: dict[str, dict[tuple[float | None, int], float]] = field(default_factory=dict)
    noise: float = 0.0  # standard error of median - tuned

    @property
    def scale(self) -> float:
        # Where tuned and random runs end alike, regret is counted in standard errors: a smaller
        # denominator would let one task outweigh all others.
        return max(self.median - self.tuned, self.noise, 1e-9)


def _loss(task: TaskResult, value: float) -> float:
    return float(loss_from_validation(value, mode=task.mode)[0])


def _summed_up(task: TaskResult) -> _Task:
    tuned = np.array([_loss(task, run.test) for run in task.tuned])
    optimum = float(np.mean(tuned))
    if not task.pool:
        return _Task(np.zeros(0), optimum, float("nan"), True)
    test = np.array([_loss(task, run.test) for run in task.pool])
    validation = np.array([_loss(task, run.validation) for run in task.pool])
    finite = np.isfinite(test)
    if not finite.any():  # nothing can be ranked or counted by it, as without a pool
        return _Task(np.zeros(0), optimum, float("nan"), True)
    test = np.where(finite, test, test[finite].max())
    validation = np.where(np.isfinite(validation), validation, np.inf)
    median = float(np.median(test))
    draws = np.random.default_rng(0).choice(test, (_N_BOOTSTRAP, len(test)))
    noise = float(np.std(np.median(draws, axis=1)))  # of the median; ruined runs hardly move it
    own = float(np.std(tuned, ddof=1)) / np.sqrt(len(tuned)) if len(tuned) > 1 else 0.0
    error = float(np.hypot(noise, own))
    is_flagged = median - optimum < _FLAG_BELOW * error
    return _Task(best_of_n(validation, test), optimum, median, bool(is_flagged), noise=error)


def _by_label(comparison: Comparison) -> dict[str, list[Entry]]:
    """Return the entries of each method and budget, in the order of their first ones."""
    budgets: dict[str, int] = {}
    for entry in comparison.entries:
        budgets[entry.method] = max(budgets.get(entry.method, 1), entry.budget)
    found: dict[str, list[Entry]] = {}
    for entry in comparison.entries:
        found.setdefault(label_of(entry, budgets), []).append(entry)
    return found


def _gathered(comparison: Comparison, of: Mapping[str, Sequence[Entry]]) -> dict[str, _Task]:
    tasks = {name: _summed_up(task) for name, task in comparison.tasks.items()}
    for label, entries in of.items():
        for entry in entries:
            task, key = tasks[entry.task], (entry.start_scale, entry.seed)
            loss = _loss(comparison.tasks[entry.task], entry.outcome.result.test)
            task.losses.setdefault(label, {})[key] = loss
            task.charge.setdefault(label, {})[key] = entry.outcome.spent
    return tasks


Key = tuple[float | None, int]
"""Start factor, None where it was drawn, and seed."""

Sample = Sequence[tuple[_Task, np.ndarray]]
"""Tasks, each with the (n, c) numbers of its results."""

Values = Callable[[_Task, Sequence[Key]], np.ndarray]
Statistic = Callable[[Sample], float]


def _interval(
    tasks: Sequence[_Task],
    label: str,
    values: Values,
    statistic: Statistic,
    scale: float | None = None,
) -> dict[str, float] | None:
    """Return a statistic of a method's results with its interval; None if it has none.

    Args:
        tasks: All tasks.
        label: The method whose results are resampled.
        values: Gives the (n, c) numbers of a task's results that the statistic is made of.
        statistic: Of tasks with such numbers.
        scale: Only results from this start factor; None for all.
    """
    have = []
    for task in tasks:
        keys = [k for k in task.losses.get(label, {}) if scale is None or k[0] == scale]
        found = values(task, keys) if keys else np.zeros((0, 1))
        if len(found):
            have.append((task, found))
    if not have:
        return None
    generator = np.random.default_rng(0)
    drawn = []
    for _ in range(_N_BOOTSTRAP):
        sample = []
        for place in generator.integers(len(have), size=len(have)):
            task, found = have[place]
            sample.append((task, found[generator.integers(len(found), size=len(found))]))
        drawn.append(statistic(sample))
    value = statistic(have)
    if not np.isfinite(value):
        return None
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return {"value": float(value), "low": float(low), "high": float(high)}


def _regrets(label: str) -> Values:
    def values(task: _Task, keys: Sequence[Key]) -> np.ndarray:
        return np.array([[(task.losses[label][key] - task.tuned) / task.scale] for key in keys])

    return values


def _regret(sample: Sample) -> float:
    return interquartile_mean(_worst_for_nan(np.concatenate([found[:, 0] for _, found in sample])))


def _worst_for_nan(values: np.ndarray) -> np.ndarray:
    """Return values in which what is not finite is as bad as the worst."""
    finite = np.isfinite(values)
    if finite.all():
        return values
    return np.where(finite, values, values[finite].max() if finite.any() else np.nan)


def _losses_and_charges(label: str) -> Values:
    def values(task: _Task, keys: Sequence[Key]) -> np.ndarray:
        return np.array([[task.losses[label][key], task.charge[label][key]] for key in keys])

    return values


def _worth(sample: Sample) -> float:
    values = []
    for task, found in sample:
        loss, charge = float(np.mean(_worst_for_nan(found[:, 0]))), float(np.mean(found[:, 1]))
        values.append(runs_worth(task.curve, loss, charge))
    return interquartile_mean(np.array(values))


def _pairs(rival: str) -> Values:
    """Pair steered losses with a rival's: by start and seed, else by seed."""

    def values(task: _Task, keys: Sequence[Key]) -> np.ndarray:
        theirs = task.losses.get(rival, {})
        found = []
        for key in keys:
            other = key if key in theirs else (None, key[1])
            if other in theirs:
                found.append([task.losses[_STEERED][key], theirs[other]])
        return np.array(found)

    return values


def _improvement(sample: Sample) -> float:
    """Return the share of pairs in which the steered run is better, averaged over tasks."""
    shares = [probability_of_improvement(found[:, 0], found[:, 1]) for _, found in sample]
    return float(np.mean(shares))


def _profile(tasks: Sequence[_Task], label: str) -> list[float]:
    """Return the share of results with a regret of at most each of `PROFILE_LEVELS`."""
    values = np.array(
        [
            (loss - task.tuned) / task.scale
            for task in tasks
            for loss in task.losses.get(label, {}).values()
        ]
    )
    return [float(np.mean(values <= level)) for level in PROFILE_LEVELS]


def comparison_figures(comparison: Comparison) -> dict[str, Any]:
    """Return every figure of a comparison as plain data.

    ``methods`` names the methods in order. ``regret``, ``n_star`` and
    ``probability_of_improvement`` (of the steered run over the method) hold ``value``, ``low`` and
    ``high`` for each; ``regret_by_start`` and ``n_star_by_start`` the same for each start factor.
    ``capped`` is the share of tasks on which n* is at the pool's size; ``spent``, ``seconds``
    and ``examples`` are means over all results; ``n_tasks`` is on how many tasks a method was run,
    ``steered`` what steered runs came to on just these; ``profile`` is read at
    ``profile_levels``; ``test`` holds each task's mean of the monitored metric, ``tasks`` what
    the figures are counted from.
    """
    of = _by_label(comparison)
    by_name, labels = _gathered(comparison, of), list(of)
    tasks = list(by_name.values())
    with_pool = [task for task in tasks if task.curve.size]
    scales = sorted({e.start_scale for e in comparison.entries if e.start_scale is not None})
    found: dict[str, Any] = {
        "methods": labels,
        "regret": {
            label: _interval(with_pool, label, _regrets(label), _regret) for label in labels
        },
        "n_star": {
            label: _interval(with_pool, label, _losses_and_charges(label), _worth)
            for label in labels
        },
        "capped": {label: _capped(with_pool, label) for label in labels},
        "probability_of_improvement": {
            label: _interval(tasks, _STEERED, _pairs(label), _improvement)
            for label in labels
            if label != _STEERED
        },
        "profile": {label: _profile(with_pool, label) for label in labels if with_pool},
        "profile_levels": list(PROFILE_LEVELS),
    }
    for name, values, statistic in (
        ("regret", _regrets, _regret),
        ("n_star", _losses_and_charges, _worth),
    ):
        found[f"{name}_by_start"] = {
            label: {
                f"{s:g}": _interval(with_pool, label, values(label), statistic, s) for s in scales
            }
            for label in labels
        }
    return found | _means(comparison, by_name, of)


def steered_worth(comparison: Comparison) -> dict[str, float] | None:
    """Return ``n_star`` of the steered runs alone, as `comparison_figures` counts it."""
    gathered = _gathered(comparison, _by_label(comparison)).values()
    with_pool = [task for task in gathered if task.curve.size]
    return _interval(with_pool, _STEERED, _losses_and_charges(_STEERED), _worth)


def _capped(tasks: Sequence[_Task], label: str) -> float | None:
    have = [task for task in tasks if label in task.losses]
    if not have:
        return None
    limit = [
        np.mean(list(task.losses[label].values())) <= np.minimum.accumulate(task.curve)[-1]
        for task in have
    ]
    return float(np.mean(limit))


def _steered_beside(
    by_name: Mapping[str, _Task],
    of: Mapping[str, Sequence[Entry]],
    label: str,
    comparison: Comparison,
) -> dict[str, float | None] | None:
    """Return what steered runs came to on the tasks that a method was run on; None without any."""
    names = {entry.task for entry in of[label]}
    mine = [entry for entry in of.get(_STEERED, ()) if entry.task in names]
    if {entry.task for entry in mine} != names:
        return None
    tasks = [by_name[name] for name in sorted(names) if by_name[name].curve.size]
    values = _regrets(_STEERED)
    sample = [(task, values(task, list(task.losses[_STEERED]))) for task in tasks]
    return {
        "regret": _regret(sample) if sample else None,
        "spent": _mean_spent(mine),
        "seconds": _mean_seconds(mine),
        "examples": _examples(comparison, mine),
    }


def _mean_spent(entries: Sequence[Entry]) -> float:
    return float(np.mean([entry.outcome.spent for entry in entries]))


def _mean_seconds(entries: Sequence[Entry]) -> float:
    return float(np.mean([sum(run.seconds for run in e.outcome.runs) for e in entries]))


def _examples(comparison: Comparison, entries: Sequence[Entry]) -> float | None:
    """Return the mean charge in training examples; None where a task does not tell its own."""
    charges = [e.outcome.spent * comparison.tasks[e.task].examples for e in entries]
    mean = float(np.mean(charges))
    return None if math.isnan(mean) else mean


def _means(
    comparison: Comparison, by_name: Mapping[str, _Task], of: Mapping[str, Sequence[Entry]]
) -> dict[str, Any]:
    return {
        "n_tasks": {label: len({e.task for e in entries}) for label, entries in of.items()},
        "steered": {label: _steered_beside(by_name, of, label, comparison) for label in of},
        "examples": {label: _examples(comparison, entries) for label, entries in of.items()},
        "spent": {label: _mean_spent(entries) for label, entries in of.items()},
        "seconds": {label: _mean_seconds(entries) for label, entries in of.items()},
        "test": {
            name: {
                label: float(np.mean([e.outcome.result.test for e in entries if e.task == name]))
                for label, entries in of.items()
                if any(e.task == name for e in entries)
            }
            for name in comparison.tasks
        },
        "tasks": {
            name: {
                "metric": task.monitor,
                "mode": task.mode,
                "tuned_lr": task.tuned_lr,
                "tuned": by_name[name].tuned,
                "median": by_name[name].median,
                "pool": len(task.pool),
                "examples": None if math.isnan(task.examples) else task.examples,
                "flagged": by_name[name].flagged,
            }
            for name, task in comparison.tasks.items()
        },
    }
