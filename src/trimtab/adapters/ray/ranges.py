"""What Ray Tune calls search spaces, as ranges that are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ray import tune
from ray.tune.search import sample

from trimtab.adapters.ray.population_ranges import SearchRange, kind_of
from trimtab.core.errors import SpecError

__all__ = ["domain_of", "ranges_of"]

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
