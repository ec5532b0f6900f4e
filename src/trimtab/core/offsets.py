"""Where a value stands after its hyperparameter's coordinate was moved, in every framework."""

from __future__ import annotations

import numpy as np

from trimtab.core.hyperparameters import Hyperparameter

__all__ = ["moved_value"]


def moved_value(item: Hyperparameter, start: float, offset: float) -> float:
    """Return where a place that began at ``start`` stands after a move of the coordinate.

    An offset of exactly 0 leaves the start untouched, to the last bit; on the log scale the start
    is multiplied, so that ratios between places are kept.
    """
    if offset == 0:
        return start
    if item.scale == "log":
        moved = start * float(np.float32(10.0) ** np.float32(offset))
        # A float32 factor may overstep a bound by its rounding.
        return min(max(moved, item.low), item.high) if start == item.default else moved
    return item.from_coordinate(item.to_coordinate(start) + float(offset))
