"""What one window of training reports: losses, gradient statistics, cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from trimtab.core.errors import MetricError

__all__ = [
    "FORWARD_CHARGE",
    "Metrics",
    "checked_window",
    "loss_from_validation",
    "loss_statistics",
    "lower_is_better",
    "missing_in_window",
    "window_metrics",
]

FORWARD_CHARGE = 1.0 / 3.0
"""Charge of one forward-only example; one training example with its gradient costs 1."""

_NAN = math.nan


class Metrics(NamedTuple):
    """How training went in one window, and where the model stands after it.

    Every field is a float (or, in compiled simulators, an array of one float a run). ``nan`` means
    *not measured*; whether anything was non-finite is said by ``finite`` alone. Losses are in the
    task's own unit, lower is better; what a policy sees of them are ratios within the run.

    Attributes:
        train_loss: Mean of the window's step losses.
        train_loss_first: Loss of the window's first step, measured before that step's update.
        train_loss_change: Mean of the second half of the window minus mean of the first half.
        train_loss_std: Standard deviation of the window's step losses.
        val_loss: Monitored loss on the validation split after the window.
        reward_loss: The same on the split that the reward is computed from; nan: as ``val_loss``.
        reference_loss: ``reward_loss`` of a reference run at the same step; for ``relative``.
        grad_norm: Euclidean norm of the gradient at the window's last step, before clipping.
        grad_cosine: Cosine between the gradients of the window's last two steps.
        update_ratio: Norm of the last step's update over the norm of the weights before it.
        steps: Optimiser steps done in the window.
        charge: What the window cost, in examples with gradient; forward-only examples count 1/3.
        finite: 1.0 if every loss of the window was finite, else 0.0.
        alignment: Cosine between the way back to the run's first weights and the gradient at the
            window's end. Far below the right learning rate the gradient points on, away from where
            the run began (positive: the loss falls along the way from the start); a rate too high
            has gone past it (negative).
        alignment_mean: The same over the run so far, each window weighted by the path in it.
        distance_ratio: Estimated distance from the first weights to the goal, over the length of
            a step, both per weight (Prodigy's estimate: Mishchenko and Defazio 2023, arXiv
            2306.06101); negative where ``alignment_mean`` is.
        straightness: Distance from the first weights over the length of the path so far.
    """

    train_loss: Any = _NAN
    train_loss_first: Any = _NAN
    train_loss_change: Any = _NAN
    train_loss_std: Any = _NAN
    val_loss: Any = _NAN
    reward_loss: Any = _NAN
    reference_loss: Any = _NAN
    grad_norm: Any = _NAN
    grad_cosine: Any = _NAN
    update_ratio: Any = _NAN
    steps: Any = 0.0
    charge: Any = 0.0
    finite: Any = 1.0
    alignment: Any = _NAN
    alignment_mean: Any = _NAN
    distance_ratio: Any = _NAN
    straightness: Any = _NAN

    @classmethod
    def from_losses(
        cls, losses: Sequence[float], *, val_loss: float | None = None, examples: float = 0.0
    ) -> Metrics:
        """Return all that a window's losses tell; what ``advance()`` of one's own task returns.

        Args:
            losses: One loss a step, in order; it may end with the one that is not finite.
            val_loss: Loss on the validation split after the window; None if it was not measured.
            examples: Examples trained on in the window, which is what it cost.

        Raises:
            MetricError: There is no loss, or one is no number.

        >>> Metrics.from_losses([3.0, 1.0], val_loss=2.5).train_loss_change
        -2.0
        """
        try:
            values = [float(loss) for loss in losses]
        except (TypeError, ValueError) as error:
            raise MetricError(
                f"losses: {losses!r} holds something that is not a number; give one loss a step"
            ) from error
        if not values:
            raise MetricError("losses: [] holds no loss; give one of each step of the window")
        measured = {"charge": float(examples)}
        if val_loss is not None:
            measured["val_loss"] = float(val_loss)
        found = window_metrics(values, measured)
        if val_loss is not None and not math.isfinite(val_loss):
            found = found._replace(finite=0.0)
        return found._replace(charge=float(examples))


def loss_from_validation(
    measured: float | Mapping[str, float], *, monitor: str = "loss", mode: str = "min"
) -> tuple[float, dict[str, float]]:
    """Return the value to be minimised, and all measured values, from what ``validate()`` gave.

    A metric to be maximised becomes ``1 - value``: 0 for a perfect share, and lower for better
    whatever the metric's range.

    Raises:
        MetricError: Nothing numeric was returned, or the monitored key is missing.
    """
    if isinstance(measured, Mapping):
        try:
            values = {str(key): float(value) for key, value in measured.items()}
        except (TypeError, ValueError) as error:
            raise MetricError(
                f"validate() returned {dict(measured)!r}, which holds something that is not a "
                "number; return a float or a dict of floats"
            ) from error
        if monitor not in values:
            raise MetricError(
                f"validate() returned no {monitor!r}; it has "
                f"{', '.join(sorted(values)) or 'nothing'}; add it, or set monitor= to one of these"
            )
    else:
        try:
            values = {monitor: float(measured)}
        except (TypeError, ValueError) as error:
            raise MetricError(
                f"validate() returned {measured!r}; return a float or a dict of floats"
            ) from error
    return lower_is_better(values[monitor], mode), values


def lower_is_better(value: float, mode: str) -> float:
    """Return a value turned so that lower is better: one minus it where ``mode`` is ``"max"``."""
    return 1.0 - value if mode == "max" else value


def checked_window(metrics: Metrics, asked: int, task: str) -> Metrics:
    """Return what a task reports of a window, if it trained the steps that it was asked for.

    Args:
        metrics: As ``advance()`` returned them.
        asked: Steps of the window; one whose loss was not finite may end before them.
        task: Its name, for the message.

    Raises:
        MetricError: Another number of steps is reported of a window that stayed finite.
    """
    done = int(metrics.steps)
    if metrics.finite < 1:
        # The step whose loss was not finite was taken, whether the task counts it or not.
        return metrics._replace(steps=float(min(max(done, 1), asked)))
    if done != asked:
        raise MetricError(
            f"task {task}: advance() reports steps={metrics.steps:g} after a window "
            f"of {asked}; train them all, or report finite=0.0"
        )
    return metrics


def missing_in_window(metrics: Metrics) -> list[str]:
    """Return which losses a policy reads that a finite window does not report, by field."""
    wanted = ["train_loss", "train_loss_first", "train_loss_std", "val_loss"]
    if metrics.steps > 1:
        wanted.insert(2, "train_loss_change")
    return [name for name in wanted if math.isnan(getattr(metrics, name))]


def window_metrics(losses: Sequence[float | None], measured: Mapping[str, float]) -> Metrics:
    """Return what a window's step losses tell; validation is left to the caller.

    Args:
        losses: One loss a step, in order; None where it is not known.
        measured: Further fields of `Metrics`, left out where a loss is not finite.
    """
    values = np.array([loss for loss in losses if loss is not None], np.float64)
    finite = bool(np.isfinite(values).all())
    fields: dict[str, float] = {"steps": float(len(losses)), "finite": 1.0 if finite else 0.0}
    if values.size:
        fields |= loss_statistics(values)
    return Metrics(**(fields | (dict(measured) if finite else {})))


def loss_statistics(losses: np.ndarray) -> dict[str, float]:
    """Return fields of `Metrics` from step losses, bit for bit as NumPy's mean and std give them.

    Args:
        losses: (n,) float64, at least one.

    Returns:
        ``train_loss``, ``train_loss_first``, ``train_loss_std`` (the population's) and, of two
        losses or more, ``train_loss_change``: the mean of the second half minus that of the first,
        an odd window's middle step left out.
    """
    n, half = losses.size, losses.size // 2
    add = np.add.reduce  # without the checks of np.mean, which cost more on a cold cache
    with np.errstate(invalid="ignore", over="ignore"):
        mean = add(losses) / n
        apart = losses - mean
        fields = {
            "train_loss": float(mean),
            "train_loss_first": float(losses[0]),
            "train_loss_std": math.sqrt(add(apart * apart) / n),
        }
        if half:
            change = add(losses[n - half :]) / half - add(losses[:half]) / half
            fields["train_loss_change"] = float(change)
    return fields
