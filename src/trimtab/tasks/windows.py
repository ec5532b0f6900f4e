"""What every run does at the two ends of a window: read the values given, validate."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from trimtab.core.errors import SpecError, unknown_name
from trimtab.core.metrics import FORWARD_CHARGE, Metrics, loss_from_validation


def values_by_step(
    values: Mapping[str, np.ndarray], steps: int, known: Collection[str]
) -> dict[str, np.ndarray]:
    """Return the values of a window, by name (steps,) float64, checked.

    Args:
        values: As given to `trimtab.core.protocols.TrainingRun.advance`.
        steps: Optimiser steps of the window.
        known: The hyperparameters of the run.

    Raises:
        SpecError: ``steps`` is below 1, or an array does not hold one value a step.
        UnknownNameError: A name is no hyperparameter of the run.
    """
    if steps < 1:
        raise SpecError(f"steps: {steps} is below 1; advance by at least one step")
    columns: dict[str, np.ndarray] = {}
    for name, value in values.items():
        if name not in known:
            raise unknown_name("hyperparameter", name, known)
        columns[name] = np.asarray(value, np.float64)
        if columns[name].shape != (steps,):
            raise SpecError(
                f"values[{name!r}]: shape {columns[name].shape} is not ({steps},); "
                "give one value a step"
            )
    return columns


def checked_split(split: str, splits: Sequence[str]) -> str:
    """Return a split's name if the task has it.

    Raises:
        UnknownNameError: It has not.
    """
    if split not in splits:
        raise unknown_name("split", split, splits)
    return split


def validated(
    metrics: Metrics,
    evaluate: Callable[[str], dict[str, float]],
    *,
    monitor: str,
    mode: str,
    with_selection: bool,
) -> tuple[Metrics, dict[str, float]]:
    """Return a window's metrics with what validation gave and cost, and all that it measured.

    Args:
        metrics: Of the window's training.
        evaluate: Returns the metrics of a split, ``"examples"`` among them.
        monitor: Which of them is ``val_loss``.
        mode: ``"min"`` or ``"max"`` of it.
        with_selection: Whether ``reward_loss`` is measured on the selection split.
    """
    validation = dict(evaluate("validation"))
    val_loss, _ = loss_from_validation(validation, monitor=monitor, mode=mode)
    reward_loss = math.nan
    if with_selection:
        reward_loss, _ = loss_from_validation(evaluate("selection"), monitor=monitor, mode=mode)
    ended = metrics._replace(
        val_loss=val_loss,
        reward_loss=reward_loss,
        charge=metrics.charge + FORWARD_CHARGE * validation["examples"],
        finite=1.0 if math.isfinite(val_loss) else 0.0,
    )
    return ended, validation
