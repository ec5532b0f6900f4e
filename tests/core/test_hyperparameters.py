"""Coordinates are the inverse of values, bounds hold at any offset, bad settings are named."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.core.errors import SpecError, UnknownNameError
from trimtab.core.hyperparameters import (
    KINDS,
    Hyperparameter,
    hyperparameter,
    moved_value,
    resolve_hyperparameters,
    value_at_offset,
    value_in_force,
    value_over_start,
)

kinds = st.sampled_from(KINDS)
shares = st.floats(0.0, 1.0)


def value_at(item: Hyperparameter, share: float) -> float:
    """Return the value that lies at a share of the way between the bounds."""
    if item.scale == "log":
        value = item.low * (item.high / item.low) ** share
    else:
        value = item.low + share * (item.high - item.low)
    return min(max(value, item.low), item.high)


@given(kinds, shares)
def test_value_survives_its_coordinate(kind: str, share: float) -> None:
    item = hyperparameter(kind)
    value = value_at(item, share)

    assert item.from_coordinate(item.to_coordinate(value)) == pytest.approx(
        value, rel=1e-9, abs=1e-12
    )


@given(kinds, st.floats(allow_nan=False))
def test_any_coordinate_gives_a_value_within_bounds(kind: str, coordinate: float) -> None:
    item = hyperparameter(kind)

    assert item.low <= item.from_coordinate(coordinate) <= item.high


@given(kinds, shares, shares)
def test_coordinates_rise_with_values(kind: str, one: float, other: float) -> None:
    item = hyperparameter(kind)
    low, high = sorted((value_at(item, one), value_at(item, other)))

    assert item.to_coordinate(low) <= item.to_coordinate(high)


@pytest.mark.parametrize(
    ("item", "value", "coordinate"),
    [
        (hyperparameter("lr", 1e-3), 1e-2, -2.0),
        (hyperparameter("momentum"), 0.99, 2.0),
        (hyperparameter("dropout"), 0.35, 0.5),
    ],
)
def test_coordinates_are_decades_or_shares(
    item: Hyperparameter, value: float, coordinate: float
) -> None:
    assert item.to_coordinate(value) == pytest.approx(coordinate)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_start_within_its_bounds(kind: str) -> None:
    item = hyperparameter(kind)

    assert (item.name, item.kind) == (kind, kind)
    assert item.low <= item.default <= item.high


@given(st.floats(1e-9, 1e3))
def test_bounds_of_a_learning_rate_are_five_decades_around_its_start(start: float) -> None:
    for item in (hyperparameter("lr", start), hyperparameter("lr").starting_at(start)):
        assert item.default == start
        assert item.low == pytest.approx(start * 1e-5)
        assert item.high == pytest.approx(start * 1e5)


def test_other_kinds_keep_their_bounds_at_another_start() -> None:
    item = hyperparameter("weight_decay").starting_at(0.5)

    assert (item.default, item.low, item.high) == (0.5, 1e-6, 1.0)


def test_numbers_of_numpy_are_taken_as_floats() -> None:
    item = hyperparameter("lr", np.float32(0.5))

    assert type(item.default) is float
    assert item.default == 0.5


def test_unknown_name_is_of_kind_other_unless_told() -> None:
    assert hyperparameter("temperature").kind == "other"
    assert hyperparameter("backbone_lr", 1e-4, kind="lr").high == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"low": 2.0, "high": 1.0}, "low=2 is not below high=1"),
        ({"low": 0.0}, "low=0 cannot stand on a log scale"),
        ({"scale": "complement", "low": 0.0, "high": 1.0}, "high=1 cannot stand"),
        ({"default": math.nan}, "default=nan"),
        ({"high": math.inf}, "high=inf"),
        ({"default": True}, "default=True"),
        ({"default": "0.1"}, "default='0.1'"),
        ({"default": 1e-9}, "1e-09 is below low=0.001"),
        ({"default": 3000.0}, "3000 is above high=1000"),
        ({"kind": "lrr"}, "did you mean 'lr'"),
        ({"scale": "logg"}, "did you mean 'log'"),
    ],
)
def test_bad_settings_are_named(arguments: dict[str, Any], message: str) -> None:
    fields = {"name": "x", "kind": "other", "default": 1.0, "low": 1e-3, "high": 1e3}

    with pytest.raises(SpecError, match=message):
        Hyperparameter(**(fields | arguments))


def test_unknown_kind_is_refused_by_the_short_form() -> None:
    with pytest.raises(SpecError, match="momentun"):
        hyperparameter("mine", kind="momentun")


def test_names_are_resolved_from_what_is_offered() -> None:
    offered = hyperparameter("lr", 0.5)

    assert resolve_hyperparameters(("lr",), [offered]) == (offered,)
    assert resolve_hyperparameters(("lr",), {"lr": offered}) == (offered,)
    assert resolve_hyperparameters((hyperparameter("lr", 0.1),), [offered])[0].default == 0.1
    assert resolve_hyperparameters(("dropout",)) == (hyperparameter("dropout"),)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [((), "is empty"), (("lr", "lr"), "lr is named twice"), ("lr", r"write \('lr',\)")],
)
def test_unusable_lists_are_refused(wanted: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        resolve_hyperparameters(wanted)


def test_name_that_is_not_offered_is_refused() -> None:
    with pytest.raises(UnknownNameError, match=r"'momentum'.*have: lr"):
        resolve_hyperparameters(("momentum",), [hyperparameter("lr")])


# Values at offsets from their start.

ITEMS = (
    hyperparameter("lr", 3e-4),
    hyperparameter("weight_decay", 0.01),
    hyperparameter("momentum", 0.9),
    hyperparameter("dropout", 0.1),
)
OFFSETS = st.floats(-8, 8, width=32).map(np.float32)


@given(st.sampled_from(ITEMS), OFFSETS)
def test_a_value_in_force_is_within_bounds_and_a_multiple_of_its_start(item, offset):
    value = value_in_force(item, offset)
    assert item.low <= value <= item.high
    assert value_over_start(item, offset) * item.default == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: item.name)
def test_no_offset_is_the_start_to_the_last_bit(item):
    assert value_at_offset(item, np.float32(0)) == item.default
    assert value_over_start(item, np.float32(0)) == 1.0


def test_a_start_of_zero_has_no_multiplier():
    assert value_over_start(hyperparameter("dropout", 0.0), np.float32(0.5)) == 1.0


def test_a_bound_may_be_passed_before_it_is_in_force():
    rate = ITEMS[0]
    assert value_at_offset(rate, np.float32(8)) > rate.high == value_in_force(rate, np.float32(8))


# Places in an optimiser that hold it.


@pytest.mark.parametrize("kind", ["weight_decay", "momentum", "dropout"])
def test_a_place_that_is_not_moved_keeps_its_start_to_the_last_bit(kind: str) -> None:
    for start in (0.1, 0.07, 1 / 3):
        assert moved_value(hyperparameter(kind, start), start, 0.0) == start


def test_ratios_between_places_are_kept_on_the_log_scale() -> None:
    item = hyperparameter("weight_decay", 0.01)
    assert moved_value(item, 0.03, 0.5) / moved_value(item, 0.01, 0.5) == pytest.approx(3)


def test_the_place_of_the_start_stays_within_bounds() -> None:
    item = hyperparameter("clip", 1.0)
    assert moved_value(item, 1.0, 3.0) == item.high
    assert moved_value(item, 1.0, -9.0) == item.low
