"""What the steps of a window tell by their losses, the same for every framework."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from trimtab.core.metrics import Metrics


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
