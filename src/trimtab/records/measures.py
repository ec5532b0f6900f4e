"""The measures that every reported figure is made of; definitions in `docs/measures.md`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import lgamma
from typing import Any

import numpy as np

_N_BOOTSTRAP = 1000


def interquartile_mean(values: np.ndarray) -> float:
    """Return the mean of the middle half of (n,) values (Agarwal et al., 2021); nan of none.

    >>> interquartile_mean(np.array([0.0, 1.0, 2.0, 100.0]))
    1.5
    """
    ordered = np.sort(np.asarray(values, float))
    if not ordered.size:
        return float("nan")
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean())


def best_of_n(validation: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Return (N,): the expected test loss of the best of n = 1..N runs drawn from a pool.

    ``V(n) = sum_i C(N - i, n - 1) / C(N, n) test_i`` over the pool ranked by validation loss, best
    first, i = 1..N: draws without replacement, the best chosen on validation.

    Args:
        validation: (N,) validation losses.
        test: (N,) test losses.
    """
    ranked = np.asarray(test, float)[np.argsort(np.asarray(validation), kind="stable")]
    size = len(ranked)

    def log_choose(n: int, k: int) -> float:
        return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)

    curve = np.zeros(size)
    for n in range(1, size + 1):
        total = log_choose(size, n)
        for i in range(1, size - n + 2):
            curve[n - 1] += np.exp(log_choose(size - i, n - 1) - total) * ranked[i - 1]
    return curve


def runs_worth(curve: np.ndarray, loss: float, charge: float = 1.0) -> float:
    """Return n*: how many random runs a run with this mean test loss is worth.

    Linear in log n between the points of the best-of-n curve, 0 when worse than one run, at most
    N, divided by the run's charge in whole runs. A loss that is nan is worse than one run. A curve
    that is not finite, of a pool in which every run was ruined, tells nothing: nan.

    >>> runs_worth(np.array([0.4, 0.2]), 0.2), runs_worth(np.array([0.4, 0.2]), float("nan"))
    (2.0, 0.0)
    >>> runs_worth(np.array([float("inf"), float("inf")]), 0.2)
    nan
    """
    if not np.isfinite(curve).all():
        return float("nan")
    lowest = np.minimum.accumulate(curve)
    if np.isnan(loss) or loss > lowest[0]:
        return 0.0
    if loss <= lowest[-1]:
        return len(curve) / charge
    index = int(np.argmax(lowest < loss))  # the first n that is better
    above, below = lowest[index - 1], lowest[index]
    share = (above - loss) / max(above - below, 1e-12)
    logs = np.log(index) + share * (np.log(index + 1) - np.log(index))
    return float(np.exp(logs)) / charge


def bootstrap(
    per_task: Sequence[Any], statistic: Callable[[list[Any]], float], seed: int = 0
) -> dict[str, float]:
    """Return a statistic over tasks with its 95 % percentile interval from resampled tasks.

    Samples whose statistic is nan are left out; if all are, so are the bounds.
    """
    generator = np.random.default_rng(seed)
    size = len(per_task)
    drawn = [
        statistic([per_task[i] for i in generator.integers(size, size=size)])
        for _ in range(_N_BOOTSTRAP)
    ]
    nothing = (float("nan"), float("nan"))
    low, high = nothing if np.isnan(drawn).all() else np.nanpercentile(drawn, [2.5, 97.5])
    return {"value": float(statistic(list(per_task))), "low": float(low), "high": float(high)}


def probability_of_improvement(first: np.ndarray, second: np.ndarray) -> float:
    """Return the share of pairs in which ``first`` has the lower loss, ties one half."""
    first, second = np.asarray(first, float), np.asarray(second, float)
    bad = ~np.isfinite(second)
    wins = np.where(bad, np.isfinite(first), first < second)
    return float(np.mean(wins + 0.5 * ((first == second) | (bad & ~np.isfinite(first)))))
