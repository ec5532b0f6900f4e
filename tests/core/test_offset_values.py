"""Values at offsets from their start: the start itself, bounds, and ratios."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.core.hyperparameters import (
    hyperparameter,
    value_at_offset,
    value_in_force,
    value_over_start,
)

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
