"""Where the hyperparameters of a population's members may be."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from trimtab.core.errors import SpecError
from trimtab.core.hyperparameters import KINDS

__all__ = ["SearchRange", "kind_of"]

_ALIASES = {"learning_rate": "lr", "wd": "weight_decay", "beta_1": "beta1"}


def kind_of(name: str) -> str:
    """Return the kind that a hyperparameter's name says, or ``"other"``.

    >>> kind_of("learning_rate")
    'lr'
    """
    known = _ALIASES.get(name, name)
    return known if known in KINDS else "other"


@dataclass(frozen=True)
class SearchRange:
    """Where a hyperparameter may be: a range, or one of some choices.

    Attributes:
        name: Its key in a trial's configuration.
        kind: One of `trimtab.core.hyperparameters.KINDS`.
        low: Smallest value.
        high: Largest value.
        is_log: Whether it is drawn on a log scale.
        is_integer: Whether values are rounded.
        choices: The values, in their order, in the place of a range.
    """

    name: str
    kind: str
    low: float = 0.0
    high: float = 1.0
    is_log: bool = False
    is_integer: bool = False
    choices: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise SpecError(f"{self.name}: kind {self.kind!r} is none of {', '.join(KINDS)}")
        if self.choices:
            return
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise SpecError(
                f"{self.name}: [{self.low}, {self.high}] is no range; give low below high"
            )
        if self.is_log and self.low <= 0:
            raise SpecError(
                f"{self.name}: low={self.low} cannot stand on a log scale; give a positive one"
            )

    def within(self, value: Any) -> Any:
        """Return the nearest value that is allowed."""
        if self.choices:
            return value if value in self.choices else self.choices[0]
        held = min(max(float(value), self.low), self.high)
        return round(held) if self.is_integer else held

    def draw(self, generator: np.random.Generator) -> Any:
        """Return a value drawn from the range, evenly on its scale."""
        if self.choices:
            return self.choices[int(generator.integers(len(self.choices)))]
        share = float(generator.random())
        if self.is_log:
            return self.within(self.low * (self.high / self.low) ** share)
        return self.within(self.low + share * (self.high - self.low))

    def neighbour(self, value: Any, factor: float) -> Any:
        """Return the value times a factor, or the next of the choices up or down."""
        if not self.choices:
            return self.within(float(value) * factor)
        place = self.choices.index(self.within(value)) + (1 if factor > 1 else -1)
        return self.choices[min(max(place, 0), len(self.choices) - 1)]
