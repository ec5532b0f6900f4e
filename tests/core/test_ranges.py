"""The range of learning rates that a user would have given a sweep."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest

from trimtab.core.carry import begin
from trimtab.core.control import apply, observe
from trimtab.core.errors import SpecError
from trimtab.core.features import observation_size, observation_table
from trimtab.core.hyperparameters import hyperparameter
from trimtab.core.metrics import Metrics
from trimtab.core.ranges import checked_range, within_range
from trimtab.core.spec import ControlSpec


def _spec(low: float, high: float, version: int = 2) -> ControlSpec:
    items = within_range([hyperparameter("lr", 1e-3)], (low, high), version=version)
    return ControlSpec(hyperparameters=tuple(items), version=version)


@pytest.mark.parametrize(
    "given", [(1e-3, 1e-5), (0.0, 1.0), (1e-3,), 3, "1e-5..1e-3", (1e-5, math.inf), (True, 2.0)]
)
def test_what_is_no_range_is_named(given: Any) -> None:
    with pytest.raises(SpecError, match=re.escape(f"lr_range: {given!r} is not two learning")):
        checked_range(given)


def test_a_start_outside_its_range_is_told_with_both() -> None:
    items = [hyperparameter("lr", 1e-2)]
    with pytest.raises(SpecError, match=r"0\.0001 to 0\.001 leaves out the learning rate 0\.01"):
        within_range(items, (1e-4, 1e-3))


def test_a_range_without_a_learning_rate_is_refused() -> None:
    with pytest.raises(SpecError, match="only weight_decay is steered"):
        within_range([hyperparameter("weight_decay")], (1e-4, 1e-3))


@pytest.mark.parametrize(("version", "decades"), [(1, 5.0), (2, 2.0)])
def test_the_usual_bounds_go_by_the_spec(version: int, decades: float) -> None:
    item, other = within_range(
        [hyperparameter("lr", 1e-3), hyperparameter("momentum")], None, version=version
    )
    assert item.high == pytest.approx(1e-3 * 10**decades)
    assert other == hyperparameter("momentum")


def test_bounds_of_ones_own_are_a_range() -> None:
    own = hyperparameter("lr", 1e-3, low=5e-4, high=2e-3)
    assert within_range([own], None, version=2) == [own]


@pytest.mark.parametrize(
    ("low", "high", "entry"),
    [(1e-5, 1e-1, -2.0), (1e-4, 2e-3, -1.0), (6e-4, 1.5e-3, 0.0), (1e-3, 1e-1, 0.0)],
)
def test_a_wide_range_is_entered_from_its_low_end(low: float, high: float, entry: float) -> None:
    carry = begin(_spec(low, high), 400)
    assert carry.offset == pytest.approx(entry, abs=1e-5)
    idle = np.array([3, 0])
    carry, _, _ = observe(_spec(low, high), carry, Metrics(val_loss=1.0), np)
    for _ in range(int(carry.front) + 1):  # the first decision holds, each short window rises
        carry, values, _ = apply(_spec(low, high), carry, idle, np)
        carry, _, _ = observe(_spec(low, high), carry, Metrics(val_loss=1.0), np)
    assert values.offset == pytest.approx(0.0, abs=1e-5)


def test_values_never_leave_the_range() -> None:
    spec = _spec(5e-4, 2e-3)
    carry = begin(spec, 400)
    for index in (6, 6, 6, 0, 0, 0):
        carry, _, _ = observe(spec, carry, Metrics(val_loss=1.0), np)
        carry, values, _ = apply(spec, carry, np.array([index, 0]), np)
        assert math.log10(0.5) - 1e-6 <= float(values.offset[0]) <= math.log10(2.0) + 1e-6


def test_version_2_shows_range_and_distance() -> None:
    spec = _spec(1e-4, 1e-2)
    carry, seen, _ = observe(spec, begin(spec, 400), Metrics(val_loss=1.0), np)
    names = [row["name"] for row in observation_table(spec)]
    assert len(names) == len(seen) == observation_size(spec) == observation_size(ControlSpec()) + 9
    told = dict(zip(names, seen.tolist(), strict=True))
    assert told["lr.range_width"] == pytest.approx(0.4)
    assert told["lr.range_below"] == pytest.approx(0.0)
    assert told["lr.distance_known"] == told["lr.distance"] == 0.0
    measured = Metrics(
        val_loss=0.9, alignment=0.1, alignment_mean=-0.2, distance_ratio=100.0, straightness=0.1
    )
    carry, _, _ = apply(spec, carry, np.array([3, 0]), np)
    _, seen, _ = observe(spec, carry, measured, np)
    told = dict(zip(names, seen.tolist(), strict=True))
    assert told["lr.alignment"] == pytest.approx(0.3)
    assert told["lr.alignment_sign"] == pytest.approx(math.tanh(-4.0))
    assert told["lr.distance"] == pytest.approx(2.0)
    assert told["lr.straightness"] == pytest.approx(0.0, abs=1e-6)
    assert told["lr.distance_known"] == 1.0


def test_a_version_of_tomorrow_is_refused() -> None:
    with pytest.raises(SpecError, match="version: 3 is none of 1, 2"):
        ControlSpec(version=3)
