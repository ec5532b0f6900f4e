"""What Ray Tune calls search spaces, as ranges that are kept.

Where the hyperparameters of a population's members may be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray import tune
from ray.tune.search import sample

from trimtab.core.errors import SpecError
from trimtab.core.hyperparameters import KINDS

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


_WIDE = 10.0  # from this ratio of the bounds on, a positive range is taken on a log scale


def ranges_of(
    mutations: Mapping[str, Any], bounds: Mapping[str, Sequence[float]], kinds: Mapping[str, str]
) -> tuple[SearchRange, ...]:
    """Return the ranges that a scheduler was given, in Ray's domains, lists or pairs of bounds.

    Args:
        mutations: Name -> domain or list of choices.
        bounds: Name -> ``[low, high]``.
        kinds: Name -> kind, where the name does not say it.

    Raises:
        SpecError: Something has no bounds that could be kept, or is given twice.
    """
    twice = sorted(set(mutations) & set(bounds))
    if twice:
        raise SpecError(f"{twice[0]} is in hyperparam_mutations and in hyperparam_bounds; keep one")
    found: list[SearchRange] = []
    for name, given in mutations.items():
        found.append(_range_of(name, kinds.get(name, kind_of(name)), given))
    for name, pair in bounds.items():
        if len(pair) != 2:
            raise SpecError(f"{name}: {list(pair)!r} is no pair of bounds; give [low, high]")
        low, high = float(pair[0]), float(pair[1])
        kind = kinds.get(name, kind_of(name))
        is_log = low > 0 and (kind == "lr" or high >= _WIDE * low)
        found.append(SearchRange(name, kind, low, high, is_log))
    return tuple(found)


def _range_of(name: str, kind: str, given: Any) -> SearchRange:
    if isinstance(given, sample.Categorical):
        given = given.categories
    if isinstance(given, list | tuple):
        if not given or kind == "lr":
            raise SpecError(
                f"{name}: {list(given)!r} cannot be steered; give a range such as "
                "tune.loguniform(1e-5, 1e-1)"
            )
        return SearchRange(name, kind, choices=tuple(given))
    if isinstance(given, sample.Float | sample.Integer):
        sampler = given.get_sampler()
        sampler = getattr(sampler, "sampler", sampler)  # a quantised one wraps another
        is_integer = isinstance(given, sample.Integer)
        high = float(given.upper) - (1.0 if is_integer else 0.0)  # integers end before it
        is_log = type(sampler).__name__.endswith("LogUniform")
        return SearchRange(name, kind, float(given.lower), high, is_log, is_integer)
    raise SpecError(
        f"{name}: {given!r} has no bounds that could be kept; give tune.uniform(), "
        "tune.loguniform(), tune.randint(), a list of choices, or hyperparam_bounds"
    )


def domain_of(item: SearchRange) -> Any:
    """Return what Ray itself is told of a range; it names it and never draws from it."""
    return list(item.choices) if item.choices else tune.uniform(item.low, item.high)
