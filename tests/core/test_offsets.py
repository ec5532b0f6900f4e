"""Where a value stands after its coordinate was moved."""

from __future__ import annotations

import pytest

from trimtab.core.hyperparameters import hyperparameter, moved_value


@pytest.mark.parametrize("kind", ["weight_decay", "momentum", "dropout"])
def test_an_offset_of_zero_is_the_start_to_the_last_bit(kind: str) -> None:
    for start in (0.1, 0.07, 1 / 3):
        assert moved_value(hyperparameter(kind, start), start, 0.0) == start


def test_ratios_between_places_are_kept_on_the_log_scale() -> None:
    item = hyperparameter("weight_decay", 0.01)
    assert moved_value(item, 0.03, 0.5) / moved_value(item, 0.01, 0.5) == pytest.approx(3)


def test_the_place_of_the_start_stays_within_bounds() -> None:
    item = hyperparameter("clip", 1.0)
    assert moved_value(item, 1.0, 3.0) == item.high
    assert moved_value(item, 1.0, -9.0) == item.low
