"""The range of learning rates that a user would have given a sweep, as bounds of the steering."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from numbers import Real
from typing import Any

from trimtab.core.errors import SpecError
from trimtab.core.hyperparameters import Hyperparameter, hyperparameter
from trimtab.core.spec import WIDEST_START

LrRange = tuple[float, float]
"""Lowest and highest learning rate."""


def checked_range(lr_range: Any) -> LrRange:
    """Return a range as two floats.

    Raises:
        SpecError: It is not two finite numbers above 0, the lower one first.
    """
    try:
        low, high = lr_range
        are_numbers = all(isinstance(x, Real) and not isinstance(x, bool) for x in (low, high))
    except (TypeError, ValueError):
        are_numbers = False
    if not are_numbers or not 0 < low < high < math.inf:
        raise SpecError(
            f"lr_range: {lr_range!r} is not two learning rates above 0, the lower one first; give "
            "the range that you would have given a sweep, such as (1e-5, 1e-3)"
        )
    return float(low), float(high)


def within_range(
    items: Iterable[Hyperparameter], lr_range: Any, *, version: int = 1
) -> list[Hyperparameter]:
    """Return hyperparameters whose learning rates stay within a range.

    Args:
        items: What is steered.
        lr_range: Lowest and highest learning rate, in the place of bounds that it had; None leaves
            these, and under version 2 of the spec turns the usual ones into two decades either
            way of the start.
        version: Of the spec.

    Raises:
        SpecError: The range is none, no learning rate is steered, or one starts outside of it.
    """
    items = list(items)
    if lr_range is None:
        return [_usual(item) for item in items] if version > 1 else items
    low, high = checked_range(lr_range)
    if not any(item.kind == "lr" for item in items):
        names = ", ".join(item.name for item in items)
        raise SpecError(f"lr_range: {low:g} to {high:g}, but only {names} is steered; leave it out")
    return [_bounded(item, low, high) if item.kind == "lr" else item for item in items]


def _bounded(item: Hyperparameter, low: float, high: float) -> Hyperparameter:
    if not low <= item.default <= high:
        raise SpecError(
            f"lr_range: {low:g} to {high:g} leaves out the learning rate {item.default:g} that the "
            "run has; give the optimiser one inside it, or a wider range"
        )
    return replace(item, low=low, high=high)


def _usual(item: Hyperparameter) -> Hyperparameter:
    """Return a learning rate with bounds `WIDEST_START` off its start, if it has the usual ones."""
    if item.kind != "lr" or item.default <= 0 or item != hyperparameter(item.name, item.default):
        return item
    span = 10.0**WIDEST_START
    return replace(item, low=item.default / span, high=item.default * span)
