"""Where runs start: the distribution that every method of a comparison shares."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from trimtab.core.errors import SpecError
from trimtab.core.hyperparameters import Hyperparameter

LOWEST_FACTOR, HIGHEST_FACTOR = 0.01, 100.0
"""Learning rates start between these factors of the tuned one."""

_OTHERS_FACTOR = 10.0


@dataclass(frozen=True)
class Range:
    """What a method may choose a hyperparameter from.

    Attributes:
        low: Smallest value.
        high: Largest value.
        is_log: Whether values are spread log-uniformly.
    """

    low: float
    high: float
    is_log: bool

    def at(self, share: float) -> float:
        """Return the value at a share in [0, 1] of the way from low to high."""
        if self.is_log:
            value = math.exp(math.log(self.low) + share * math.log(self.high / self.low))
        else:
            value = self.low + share * (self.high - self.low)
        return min(max(value, self.low), self.high)

    def share_of(self, value: float) -> float:
        """Return how far from low to high a value lies; the inverse of `at`."""
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Start:
    """The values that a run starts with.

    Attributes:
        values: Value of each steered hyperparameter, by name.
        scale: Its learning rate over the tuned one.
    """

    values: Mapping[str, float]
    scale: float


@dataclass(frozen=True)
class StartDistribution:
    """What starts are drawn from, and the ranges that searches search.

    A learning rate starts log-uniformly from 0.01 to 100 times the tuned one; what else is on a
    log scale, within ten times its default either way; the rest uniformly within its bounds. A
    task whose tuned learning rate is not known is counted from its default.

    Attributes:
        items: The steered hyperparameters, as the task offers them.
        tuned_lr: The learning rate that factors are counted from.

    Raises:
        SpecError: No learning rate is steered, or more than one.
    """

    items: tuple[Hyperparameter, ...]
    tuned_lr: float

    def __post_init__(self) -> None:
        rates = [item.name for item in self.items if item.kind == "lr"]
        if len(rates) != 1:
            raise SpecError(
                f"hyperparameters: {', '.join(rates) or 'none'} of kind lr among "
                f"{', '.join(item.name for item in self.items)}; steer exactly one learning rate"
            )

    @property
    def rate(self) -> str:
        """Name of the learning rate."""
        return next(item.name for item in self.items if item.kind == "lr")

    def ranges(self) -> dict[str, Range]:
        """Return the range of each hyperparameter, by name."""
        return {item.name: self._range(item) for item in self.items}

    def draw(self, generator: np.random.Generator, *, scale: float | None = None) -> Start:
        """Return a start.

        Args:
            generator: Draws one number a hyperparameter, the learning rate's too if it is fixed.
            scale: Factor of the learning rate; None to draw it.
        """
        shares = generator.uniform(size=len(self.items))
        ranges = self.ranges()
        values = {
            item.name: ranges[item.name].at(float(share))
            for item, share in zip(self.items, shares, strict=True)
        }
        if scale is not None:
            values[self.rate] = scale * self.tuned_lr
        return self.start(values)

    def start(self, values: Mapping[str, float]) -> Start:
        """Return the start that has these values."""
        given = {name: float(value) for name, value in values.items()}
        return Start(given, given[self.rate] / self.tuned_lr)

    def starting(self, start: Start) -> tuple[Hyperparameter, ...]:
        """Return the hyperparameters at a start."""
        return tuple(item.starting_at(start.values[item.name]) for item in self.items)

    def _range(self, item: Hyperparameter) -> Range:
        if item.kind == "lr":
            return Range(LOWEST_FACTOR * self.tuned_lr, HIGHEST_FACTOR * self.tuned_lr, True)
        if item.scale == "log" and item.default > 0:
            low = max(item.low, item.default / _OTHERS_FACTOR)
            return Range(low, min(item.high, item.default * _OTHERS_FACTOR), True)
        return Range(item.low, item.high, False)


def generator_for(*words: str | int) -> np.random.Generator:
    """Return a generator that these words fix, the same on every machine."""
    return np.random.default_rng(
        [word if isinstance(word, int) else zlib.crc32(word.encode()) for word in words]
    )
