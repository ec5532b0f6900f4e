"""The figures of a ring, from its rows; definitions in `docs/measures.md`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from trimtab.records.measures import (
    best_of_n,
    bootstrap,
    interquartile_mean,
    probability_of_improvement,
    runs_worth,
)

FACTORS: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0, 100.0)
"""Start factors at which every figure is reported apart."""

Row = Mapping[str, Any]


def _by_task(rows: Sequence[Row]) -> list[dict[str, Any]]:
    tasks: dict[int, dict[str, Any]] = {}
    for row in rows:
        task = tasks.setdefault(int(row["task"]), {})
        method = str(row["method"])
        task.setdefault(method, {})[(float(row["factor"]), int(row["seed"]))] = row
    complete = []
    for number in sorted(tasks):
        task = tasks[number]
        if "pool" not in task or "trimtab" not in task or "tuned" not in task:
            continue
        pool = sorted(task["pool"].items(), key=lambda item: item[0][1])
        validation = np.array([row["validation"] for _, row in pool])
        test = np.array([row["test"] for _, row in pool])
        finite = np.isfinite(test)
        test = np.where(finite, test, test[finite].max() if finite.any() else np.nan)
        validation = np.where(np.isfinite(validation), validation, np.inf)
        task["curve"] = best_of_n(validation, test)
        task["optimum"] = float(np.mean([row["test"] for row in task["tuned"].values()]))
        task["median"] = float(np.median(test))
        complete.append(_summed_up(task))
    return complete


def _summed_up(task: dict[str, Any]) -> dict[str, Any]:
    """Return what the figures need of one task, so that resampling tasks costs nothing.

    What is measured by the pool is empty where no run of the pool is finite.
    """
    fields = ("diverged", "rollbacks", "frozen", "residual_use")
    worth = {factor: _worth(task, factor) for factor in FACTORS}
    is_told = bool(np.isfinite(task["curve"]).all())
    return {
        "untold": not is_told,
        "worth": {factor: [worth[factor]] if is_told else [] for factor in FACTORS},
        "capped": [worth[factor] >= 0.99 * len(task["curve"]) for factor in FACTORS if is_told],
        "regret": {
            (method, factor): _regrets(task, factor, method) if is_told else []
            for method in ("trimtab", "zero")
            for factor in FACTORS
        },
        "harm": {method: _harm(task, method) if is_told else [] for method in ("trimtab", "floor")},
        "wins": {rival: _wins(task, rival) for rival in _RIVALS.values()},
        "rows": {
            (field, factor): [row[field] for (f, _), row in task["trimtab"].items() if f == factor]
            for field in fields
            for factor in FACTORS
        },
    }


def _worth(task: dict[str, Any], factor: float) -> float:
    rows = [row for (f, _), row in task["trimtab"].items() if f == factor]
    if not rows:
        return float("nan")  # not known, which is not the same as ruined
    loss = float(np.mean([row["test"] for row in rows]))
    charge = float(np.mean([row["spent"] for row in rows]))
    return runs_worth(task["curve"], loss, charge)


def _regrets(task: dict[str, Any], factor: float, method: str) -> list[float]:
    scale = max(task["median"] - task["optimum"], 1e-9)
    return [
        (row["test"] - task["optimum"]) / scale
        for (f, _), row in task.get(method, {}).items()
        if f == factor
    ]


def _harm(task: dict[str, Any], method: str) -> list[float]:
    limit = 0.05 * max(task["median"] - task["optimum"], 0.0)
    pairs = [
        (row["test"], task["zero"][key]["test"])
        for key, row in task.get(method, {}).items()
        if key[0] == 1.0 and key in task["zero"]
    ]
    return [float(steered - reference > limit) for steered, reference in pairs]


def _wins(task: dict[str, Any], rival: str) -> float:
    keys = [key for key in task["trimtab"] if key in task.get(rival, {})]
    if not keys:
        return float("nan")
    mine = np.array([task["trimtab"][key]["test"] for key in keys])
    theirs = np.array([task[rival][key]["test"] for key in keys])
    return probability_of_improvement(mine, theirs)


def _pooled(values: list[list[float]]) -> float:
    return interquartile_mean(np.concatenate([np.asarray(item, float) for item in values]))


def _regret(tasks: list[Any], factor: float, method: str) -> float:
    return _pooled([task["regret"][method, factor] for task in tasks])


def _mean(values: list[list[float]]) -> float:
    every = np.concatenate([np.asarray(item, float) for item in values])
    return float(np.mean(every)) if every.size else float("nan")


def _harms(tasks: list[Any], method: str) -> float:
    return _mean([task["harm"][method] for task in tasks])


def _worth_at(tasks: list[Any], factor: float) -> float:
    return _pooled([task["worth"][factor] for task in tasks])


def _share(tasks: list[Any], field: str, factors: Sequence[float]) -> float:
    return float(np.mean([x for t in tasks for f in factors for x in t["rows"][field, f]]))


_RIVALS = {
    "p_over_reference": "zero",
    "p_over_open_loop": "open-loop",
    "p_over_race": "race",
    "p_over_lr_finder": "lr-finder",
    "p_over_shuffled": "shuffled",
    "p_over_lr_alone": "lr-alone",
}


def figures(rows: Sequence[Row]) -> dict[str, Any]:
    """Return every figure of one ring, ``{"value", "low", "high"}`` each, from its rows.

    Rows have ``task``, ``method`` (``trimtab``, ``zero``, ``race``, ``lr-finder``, ``open-loop``,
    ``shuffled``, ``pool``, ``tuned``, ``floor``), ``factor``, ``seed``, ``validation``, ``test``,
    ``spent``, ``rollbacks``, ``diverged``, ``frozen`` and ``residual_use``.

    ``untold``, which is there where it is not 0, is the share of tasks without a finite run in
    their pool; n*, regret, harm and ``capped`` are those of the others, nan if there are none.
    """
    tasks = _by_task(rows)
    if not tasks:
        return {}
    off_start = [factor for factor in FACTORS if factor != 1.0]
    rules: dict[str, Callable[[list[Any]], float]] = {
        "n_star": lambda some: _pooled(
            [task["worth"][factor] for task in some for factor in FACTORS]
        ),
        "regret": lambda some: _pooled(
            [task["regret"]["trimtab", factor] for task in some for factor in FACTORS]
        ),
        "harm": partial(_harms, method="trimtab"),
        "harm_floor": partial(_harms, method="floor"),
        "harm_over_floor": lambda some: _harms(some, "trimtab") - _harms(some, "floor"),
        "diverged": lambda some: max(_share(some, "diverged", [factor]) for factor in FACTORS),
        "rollbacks": partial(_share, field="rollbacks", factors=FACTORS),
        "frozen": partial(_share, field="frozen", factors=off_start),
        "residual_use": partial(_share, field="residual_use", factors=FACTORS),
        "capped": lambda some: _mean([task["capped"] for task in some]),
    }
    if any(task["untold"] for task in tasks):
        rules["untold"] = lambda some: float(np.mean([task["untold"] for task in some]))
    for name, rival in _RIVALS.items():
        if all(np.isnan(task["wins"][rival]) for task in tasks):
            continue  # one hyperparameter is steered: it has no runs alone
        rules[name] = lambda some, rival=rival: float(  # type: ignore[misc]
            np.nanmean([task["wins"][rival] for task in some])
        )
    result: dict[str, Any] = {name: bootstrap(tasks, rule) for name, rule in rules.items()}
    for name, method in (("regret_by_start", "trimtab"), ("regret_reference_by_start", "zero")):
        result[name] = {
            f"{factor:g}": bootstrap(tasks, partial(_regret, factor=factor, method=method))
            for factor in FACTORS
        }
    result["n_star_by_start"] = {
        f"{factor:g}": bootstrap(tasks, partial(_worth_at, factor=factor)) for factor in FACTORS
    }
    result["tasks"] = len(tasks)
    return result
