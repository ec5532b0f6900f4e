"""What can be steered: name, kind, start, bounds and scale, and what a moved coordinate is worth.

A decision moves a hyperparameter's coordinate by an *offset* from its start. The functions at the
end say which value that is, for one value or for each of the places in an optimiser that hold it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from numbers import Real
from typing import Any

import numpy as np

from trimtab.core.errors import SpecError, unknown_name

__all__ = [
    "KINDS",
    "Hyperparameter",
    "hyperparameter",
    "moved_value",
    "resolve_hyperparameters",
    "value_at_offset",
    "value_in_force",
    "value_over_start",
]

KINDS: tuple[str, ...] = (
    "lr",
    "weight_decay",
    "momentum",
    "beta1",
    "dropout",
    "label_smoothing",
    "clip",
    "layer_decay",
    "frozen_depth",
    "batch_size",
    "augmentation",
    "mixup",
    "ema_decay",
    "adapter_scale",
    "other",
)
"""Every kind that a policy can be told about, in the order of its one-hot code."""

SCALES: tuple[str, ...] = ("log", "linear", "complement")

# kind -> (default, low, high, scale). Learning rates take their bounds from the start instead.
_KIND_DEFAULTS: dict[str, tuple[float, float, float, str]] = {
    "lr": (1e-3, 1e-8, 1e2, "log"),
    "weight_decay": (1e-2, 1e-6, 1.0, "log"),
    "momentum": (0.9, 0.0, 0.999, "complement"),
    "beta1": (0.9, 0.0, 0.999, "complement"),
    "dropout": (0.1, 0.0, 0.7, "linear"),
    "label_smoothing": (0.05, 0.0, 0.4, "linear"),
    "clip": (1.0, 1e-3, 1e3, "log"),
    "layer_decay": (0.9, 0.3, 1.0, "linear"),
    "frozen_depth": (0.0, 0.0, 1.0, "linear"),
    "batch_size": (32.0, 4.0, 1024.0, "log"),
    "augmentation": (0.2, 0.0, 1.0, "linear"),
    "mixup": (0.1, 0.0, 1.0, "linear"),
    "ema_decay": (0.99, 0.0, 0.9999, "complement"),
    "adapter_scale": (1.0, 1e-2, 1e2, "log"),
    "other": (1.0, 1e-3, 1e3, "log"),
}


@dataclass(frozen=True)
class Hyperparameter:
    """One value that is steered while a run goes on.

    The policy sees and moves a *coordinate* of the value, never the value itself: its distance
    from the start, in decades on the ``log`` scale (``log10 v``), in decades of ``1 - v`` on the
    ``complement`` scale (``-log10(1 - v)``, for momentum-like values near one), and in units of
    the range on the ``linear`` scale (``(v - low) / (high - low)``).

    Attributes:
        name: What the user calls it; unique within a run.
        kind: One of `KINDS`; what the policy is told about it.
        default: The value at which the run starts, in the hyperparameter's own unit.
        low: Smallest value that is ever applied.
        high: Largest value that is ever applied.
        scale: ``"log"``, ``"linear"`` or ``"complement"``.

    Raises:
        SpecError: The kind or scale is unknown, a number is not finite, the bounds are the wrong
            way round, the start is outside them, or the scale cannot hold them.
    """

    name: str
    kind: str
    default: float
    low: float
    high: float
    scale: str = "log"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise SpecError(f"{self.name}: {unknown_name('kind', self.kind, KINDS)}")
        if self.scale not in SCALES:
            raise SpecError(f"{self.name}: {unknown_name('scale', self.scale, SCALES)}")
        for field in ("default", "low", "high"):
            value = getattr(self, field)
            is_number = isinstance(value, Real) and not isinstance(value, bool)
            if not is_number or not math.isfinite(value):
                raise SpecError(f"{self.name}: {field}={value!r} is not a finite number; give one")
            object.__setattr__(self, field, float(value))
        if not self.low < self.high:
            raise SpecError(
                f"{self.name}: low={self.low:g} is not below high={self.high:g}; swap the bounds"
            )
        if self.scale == "log" and self.low <= 0:
            raise SpecError(
                f"{self.name}: low={self.low:g} cannot stand on a log scale; "
                "use a positive low or scale='linear'"
            )
        if self.scale == "complement" and self.high >= 1:
            raise SpecError(
                f"{self.name}: high={self.high:g} cannot stand on the complement scale; "
                "use a high below 1 or scale='linear'"
            )
        if self.default < self.low:
            raise SpecError(
                f"{self.name}: {self.default:g} is below low={self.low:g}; "
                "lower low in the spec or start higher"
            )
        if self.default > self.high:
            raise SpecError(
                f"{self.name}: {self.default:g} is above high={self.high:g}; "
                "raise high in the spec or start lower"
            )

    def to_coordinate(self, value: float) -> float:
        """Return the coordinate of a value on this hyperparameter's scale (decades or units)."""
        if self.scale == "log":
            return math.log10(value)
        if self.scale == "complement":
            return -math.log10(1.0 - value)
        return (value - self.low) / (self.high - self.low)

    def from_coordinate(self, coordinate: float) -> float:
        """Return the value at a coordinate; the inverse of `to_coordinate`, within bounds."""
        lowest, highest = self.to_coordinate(self.low), self.to_coordinate(self.high)
        coordinate = min(max(coordinate, lowest), highest)
        if self.scale == "log":
            value = math.pow(10.0, coordinate)
        elif self.scale == "complement":
            value = 1.0 - math.pow(10.0, -coordinate)
        else:
            value = self.low + coordinate * (self.high - self.low)
        return min(max(value, self.low), self.high)

    def starting_at(self, value: float) -> Hyperparameter:
        """Return this hyperparameter with another start; a learning rate's bounds move along."""
        if self.kind == "lr" and math.isfinite(value) and value > 0:
            return replace(self, default=value, low=value * 1e-5, high=value * 1e5)
        return replace(self, default=value)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain data, for JSON."""
        return asdict(self)


def hyperparameter(name: str, default: float | None = None, **overrides: Any) -> Hyperparameter:
    """Return a hyperparameter of a known kind with that kind's usual bounds and scale.

    A learning rate is bounded by its start times 1e-5 and 1e5. A name that is no kind is taken
    as kind ``"other"`` unless ``kind=`` says better.

    Raises:
        SpecError: A value or bound is not allowed (see `Hyperparameter`).

    >>> hyperparameter("lr", 1e-3).high
    100.0
    """
    kind = overrides.pop("kind", name if name in _KIND_DEFAULTS else "other")
    if kind not in _KIND_DEFAULTS:
        raise SpecError(f"{name}: {unknown_name('kind', str(kind), KINDS)}")
    usual, low, high, scale = _KIND_DEFAULTS[kind]
    start = usual if default is None else default
    if kind == "lr" and math.isfinite(start) and start > 0:
        low, high = start * 1e-5, start * 1e5
    fields: dict[str, Any] = {"low": low, "high": high, "scale": scale} | overrides
    return Hyperparameter(name=name, kind=kind, default=start, **fields)


def resolve_hyperparameters(
    wanted: Iterable[str | Hyperparameter],
    offered: Mapping[str, Hyperparameter] | Iterable[Hyperparameter] = (),
) -> tuple[Hyperparameter, ...]:
    """Return hyperparameter objects for names or objects, taken from what a task offers.

    Raises:
        SpecError: Nothing is asked for, or one name is asked for twice.
        UnknownNameError: A name is not offered.
    """
    if isinstance(wanted, str):
        raise SpecError(f"hyperparameters: {wanted!r} is one text; write ({wanted!r},)")
    have = dict(offered) if isinstance(offered, Mapping) else {item.name: item for item in offered}
    chosen: list[Hyperparameter] = []
    for item in wanted:
        if isinstance(item, Hyperparameter):
            chosen.append(item)
        elif item in have:
            chosen.append(have[item])
        elif have:
            raise unknown_name("hyperparameter", item, have)
        else:
            chosen.append(hyperparameter(item))
    names = [item.name for item in chosen]
    if not names:
        raise SpecError("hyperparameters: () is empty; name at least one, such as ('lr',)")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SpecError(f"hyperparameters: {', '.join(twice)} is named twice; name each once")
    return tuple(chosen)


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
