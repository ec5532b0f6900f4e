"""How the cost of steering is timed, and the row that says it; for `benchmarks.overhead`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from time import perf_counter, thread_time
from typing import Any

import numpy as np

__all__ = ["Clock", "Stopwatch", "row", "usual_mean"]

LIMIT_MICROSECONDS = 50.0
LIMIT_SHARE = 0.01
LIMIT_SNAPSHOTS = 0.05
LONG_STEP_MS = 5.0


class Clock:
    """Gives seconds on the wall, or, while ``careful``, of this thread on the processor."""

    def __init__(self) -> None:
        self.careful = False

    def __call__(self) -> float:
        """Return the time."""
        return thread_time() if self.careful else perf_counter()


class Stopwatch:
    """Notes the seconds spent inside the functions that it wraps.

    Attributes:
        seconds: Of all calls together.
        calls: Of each call.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.seconds = 0.0
        self.calls: list[float] = []

    def usual(self) -> float:
        """Return the seconds of all calls, had each taken the median time."""
        return float(np.median(self.calls)) * len(self.calls) if self.calls else 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, timed."""

        def timed(*arguments: Any, **settings: Any) -> Any:
            begun = self._clock()
            try:
                return function(*arguments, **settings)
            finally:
                self.calls.append(self._clock() - begun)
                self.seconds += self.calls[-1]

        return timed


def usual_mean(seconds: Sequence[float], ends: Sequence[int]) -> tuple[float, float, float]:
    """Return mean seconds a step made of each kind's median, and those of the first and last kind.

    A kind of which there is no step has no median: nan.

    Args:
        seconds: Of each step.
        ends: The step after each window's last one, rising.
    """
    last = np.asarray(ends, int) - 1
    before = np.setdiff1d(last - 1, np.append(last, -1))
    ordinary = np.setdiff1d(np.arange(len(seconds)), np.concatenate([last, before]))
    values = np.asarray(seconds)
    kinds = (ordinary, before, last)
    medians = [float(np.median(values[k])) if len(k) else math.nan for k in kinds]
    total = sum(m * len(k) for m, k in zip(medians, kinds, strict=True) if len(k))
    mean = total / len(values)
    return mean, medians[0], medians[2]


def row(
    name: str,
    adapter: str,
    steering: tuple[float, float, float],
    *,
    steps: int,
    a_step: float,
    paired: float,
    keeping: Stopwatch,
    validating: Stopwatch,
) -> dict[str, Any]:
    """Return the row of one task; None stands for what there was no step to tell by.

    Args:
        name: Of the task.
        adapter: What steers: ``"torch"``, ``"transformers"`` or ``"keras"``.
        steering: Seconds a step: mean, of an ordinary step, of a window's last (`usual_mean`).
        steps: Of the run.
        a_step: Seconds of a step without steering.
        paired: Seconds by which an ordinary step is longer with steering.
        keeping: Snapshots.
        validating: Validations.
    """
    mean, ordinary, last = steering
    share, snapshot_share = mean / a_step, keeping.usual() / (a_step * steps)
    is_long = 1e3 * a_step >= LONG_STEP_MS
    good = share <= LIMIT_SHARE if is_long else 1e6 * mean <= LIMIT_MICROSECONDS
    line = {
        "name": name,
        "adapter": adapter,
        "steps": steps,
        "ms_per_step": 1e3 * a_step,
        "steering_us_per_step": 1e6 * mean,
        "share": share,
        "ordinary_step_us": 1e6 * ordinary,
        "decision_ms": 1e3 * last,
        "paired_us_per_step": 1e6 * paired,
        "snapshot_share": snapshot_share,
        "validation_share": validating.usual() / (a_step * steps),
        "within_limits": bool(good and snapshot_share <= LIMIT_SNAPSHOTS),
    }
    unknown = {key for key, value in line.items() if isinstance(value, float) and math.isnan(value)}
    return line | dict.fromkeys(unknown)
