"""From a learner to a policy file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.controllers.learned import PolicyFile, write_policy
from trimtab.core.hyperparameters import hyperparameter
from trimtab.core.spec import LEAST_STEPS, ControlSpec

__all__ = ["NOVELTY_LIMIT", "spread_of", "write_trained"]

NOVELTY_LIMIT = 12.0
"""Mean squared distance from training, in units of the features' scale, taken as unseen."""

_LEAST_SCALE = 0.1


def spread_of(scale: np.ndarray) -> np.ndarray:
    """Return the features' standard deviation in training, from a policy's scale of novelty."""
    return np.maximum(scale.astype(float) - _LEAST_SCALE, 0.0)


def write_trained(
    settings: Any,
    average: Mapping[str, Any],
    statistics: np.ndarray,
    counts: dict[str, Any],
    folder: Path,
) -> Path:
    """Write the averaged policy of a training and return its path.

    Args:
        settings: The `LearnSettings`.
        average: The policy's averaged arrays.
        statistics: (2, n_global) mean and mean square of the global features met in training.
        counts: Runs, steps and seconds that training took.
        folder: Where the file goes.
    """
    fields = {name: value for name, value in settings.spec.items() if name != "hyperparameters"}
    items = tuple(hyperparameter(name) for name in settings.spec["hyperparameters"])
    spec = ControlSpec(
        hyperparameters=items,
        decisions=int(np.median(settings.decisions)),
        **{"reward": "best-so-far", "least_steps": LEAST_STEPS, **fields},
    )
    mean, square = statistics
    scale = np.sqrt(np.maximum(square - mean**2, 0.0)) + _LEAST_SCALE
    policy = PolicyFile(
        name=settings.name,
        spec=spec,
        parameters={name: np.asarray(value) for name, value in average.items()},
        novelty={
            "novelty_mean": mean.astype(np.float32),
            "novelty_scale": scale.astype(np.float32),
            "novelty_limit": np.float32(NOVELTY_LIMIT).reshape(1),
        },
        about={
            "families": ", ".join(item.name for item in settings.families),
            "runs": str(counts["runs"]),
            "inner_steps": str(counts["steps"]),
            "minutes": f"{counts['seconds'] / 60:.1f}",
        },
    )
    path = folder / f"{settings.name}.safetensors"
    write_policy(path, policy)
    return path
