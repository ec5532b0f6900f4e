"""What a hyperparameter's value is once its coordinate has moved away from its start."""

from __future__ import annotations

import numpy as np

from trimtab.core.hyperparameters import Hyperparameter

__all__ = ["value_at_offset", "value_in_force", "value_over_start"]


def value_at_offset(item: Hyperparameter, offset: np.float32) -> float:
    """Return the value at an offset from the start, which on the log scale may pass a bound.

    An offset of exactly zero gives the start itself, to the last bit.
    """
    if offset == 0:
        return float(item.default)
    if item.scale == "log":
        return float(item.default) * float(np.float32(10.0) ** offset)
    return item.from_coordinate(item.to_coordinate(item.default) + float(offset))


def value_in_force(item: Hyperparameter, offset: np.float32) -> float:
    """Return the value at an offset, within bounds.

    A float32 offset at a bound may pass the bound by its rounding.
    """
    return min(max(value_at_offset(item, offset), item.low), item.high)


def value_over_start(item: Hyperparameter, offset: np.float32) -> float:
    """Return what the start is multiplied by at an offset; exactly 1.0 for none.

    A start of 0 cannot be multiplied; it gives 1.0.
    """
    if offset == 0 or item.default == 0:
        return 1.0
    if item.scale == "log":
        factor = float(np.float32(10.0) ** offset)
        if item.low <= item.default * factor <= item.high:
            return factor
    return value_in_force(item, offset) / item.default
