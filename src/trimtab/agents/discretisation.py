"""Continuous observations as numbers of states, for tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from trimtab.core.errors import SpecError
from trimtab.core.features import observation_table
from trimtab.core.spec import ControlSpec

__all__ = ["Discretisation", "default_bins"]

_MOST_STATES = 10**6

# Feature -> edges between its bins, in the feature's own unit (see the table of the environment).
_BINS: tuple[tuple[str, tuple[float, ...]], ...] = (
    ("progress", (0.005, 0.05, 0.25, 0.6)),  # first, short windows, early, middle, late
    ("val_change", (-0.04, 0.04)),  # falling, flat, rising
    ("val_over_best", (0.1,)),  # at the best or above it
    ("harm_seen", (0.5,)),  # of the first hyperparameter, as the next two
    ("from_safe", (-0.5, 0.5)),  # below, at or above the highest value that helped
    ("from_harmful", (-1.5, -0.6)),  # far below, below or near the lowest that harmed
)


def default_bins(spec: ControlSpec | None, size: int) -> list[tuple[int, list[float]]]:
    """Return ``(index, edges)`` of each feature that makes up a state.

    For a ``Hyperparam`` environment: progress (5 bins), change of the validation loss (3), whether
    it is above its best (2), and for the first hyperparameter whether harm was seen (2) and where
    the value is relative to the highest that helped (3) and the lowest that harmed (3): 540
    states. Elsewhere every number of the observation is cut at -0.5 and 0.5.
    """
    if spec is None:
        return [(index, [-0.5, 0.5]) for index in range(size)]
    index_of = {row["name"]: row["index"] for row in observation_table(spec)}
    first = spec.hyperparameters[0].name
    return [
        (index_of.get(name, index_of.get(f"{first}.{name}", -1)), list(edges))
        for name, edges in _BINS
    ]


class Discretisation:
    """Numbers states by which bin each chosen feature lies in.

    Args:
        bins: ``(index, rising edges)`` of each feature.
        size: Length of an observation.

    Raises:
        SpecError: An index is outside the observation, edges do not rise, or there would be more
            than a million states.
    """

    def __init__(self, bins: Sequence[Any], size: int) -> None:
        self._bins = [(int(index), np.asarray(edges, np.float64)) for index, edges in bins]
        for index, edges in self._bins:
            if not 0 <= index < size:
                raise SpecError(f"bins: index {index} is outside 0..{size - 1}; choose one inside")
            if np.any(np.diff(edges) <= 0):
                raise SpecError(f"bins: edges {edges.tolist()} of index {index} do not rise")
        self.n_states = math.prod(len(edges) + 1 for _, edges in self._bins)
        if self.n_states > _MOST_STATES:
            raise SpecError(
                f"bins: {len(self._bins)} features make {self.n_states} states, more than "
                f"{_MOST_STATES}; give fewer as bins=[(index, edges), ...]"
            )

    def state(self, observation: np.ndarray) -> int:
        """Return the number of the state that an observation falls into."""
        number = 0
        for index, edges in self._bins:
            number = number * (len(edges) + 1) + int(np.searchsorted(edges, observation[index]))
        return number
