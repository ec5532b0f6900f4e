"""What the losses of a window's steps tell, the same for every framework."""

from __future__ import annotations

import math

import numpy as np


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
