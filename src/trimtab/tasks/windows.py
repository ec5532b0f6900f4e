"""What every run does at the two ends of a window: read the values given, validate.

Hyperparameters that a window is given no values of are at the task's defaults. ``steps`` in its
metrics, and its charge, count every batch taken, also the one whose loss was not finite (its update
is not done). After a diverged window nothing is evaluated: ``val_loss`` is nan.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from trimtab.core.errors import SpecError, unknown_name
from trimtab.core.metrics import FORWARD_CHARGE, Metrics, loss_from_validation


class ValidatedRun(Protocol):
    """A run that `validated` ends a window of; its setup has ``monitor``, ``mode``, ``splits``."""

    setup: Any
    measured: dict[str, float]
    measure_selection: bool

    def evaluate(self, split: str) -> dict[str, float]:
        """Return the metrics of a split, ``"examples"`` among them."""
        ...


def values_by_step(
    values: Mapping[str, np.ndarray],
    steps: int,
    defaults: Mapping[str, float],
    known: Collection[str] = (),
) -> list[dict[str, float]]:
    """Return the value of every hyperparameter at each step of a window, checked.

    Args:
        values: As given to `trimtab.core.protocols.TrainingRun.advance`.
        steps: Optimiser steps of the window.
        defaults: Values of those that are not given.
        known: Hyperparameters of the run that have no default.

    Raises:
        SpecError: ``steps`` is below 1, or an array does not hold one value a step.
        UnknownNameError: A name is no hyperparameter of the run.
    """
    if steps < 1:
        raise SpecError(f"steps: {steps} is below 1; advance by at least one step")
    columns: dict[str, np.ndarray] = {}
    for name, value in values.items():
        if name not in defaults and name not in known:
            raise unknown_name("hyperparameter", name, {*defaults, *known})
        columns[name] = np.asarray(value, np.float64)
        if columns[name].shape != (steps,):
            raise SpecError(
                f"values[{name!r}]: shape {columns[name].shape} is not ({steps},); "
                "give one value a step"
            )
    return [
        {**defaults, **{name: float(column[step]) for name, column in columns.items()}}
        for step in range(steps)
    ]


def checked_split(split: str, splits: Sequence[str]) -> str:
    """Return a split's name if the task has it.

    Raises:
        UnknownNameError: It has not.
    """
    if split not in splits:
        raise unknown_name("split", split, splits)
    return split


def validated(run: ValidatedRun, metrics: Metrics) -> Metrics:
    """Return a window's metrics with what validation gave and cost; ``run.measured`` is set.

    ``reward_loss`` is measured on the selection split where the run is asked to and has one.

    Args:
        run: Where it stands after the window.
        metrics: Of the window's training; returned as they are if it diverged.
    """
    if not metrics.finite:
        return metrics
    names = {"monitor": run.setup.monitor, "mode": run.setup.mode}
    run.measured = dict(run.evaluate("validation"))
    val_loss, _ = loss_from_validation(run.measured, **names)
    reward_loss = math.nan
    if run.measure_selection and "selection" in run.setup.splits:
        reward_loss, _ = loss_from_validation(run.evaluate("selection"), **names)
    return metrics._replace(
        val_loss=val_loss,
        reward_loss=reward_loss,
        charge=metrics.charge + FORWARD_CHARGE * run.measured["examples"],
        finite=1.0 if math.isfinite(val_loss) else 0.0,
    )
