"""What validate() may return, and what is refused by its value."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.core.errors import MetricError
from trimtab.core.metrics import Metrics, loss_from_validation


@given(st.floats(allow_nan=False))
def test_number_is_the_loss_itself(value: float) -> None:
    assert loss_from_validation(value) == (value, {"loss": value})


def test_monitored_value_is_picked_and_all_are_kept() -> None:
    measured = {"loss": 0.5, "accuracy": 0.75}

    assert loss_from_validation(measured) == (0.5, measured)
    assert loss_from_validation(measured, monitor="accuracy", mode="max") == (0.25, measured)


@given(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3))
def test_better_of_two_values_to_be_maximised_has_the_lower_loss(one: float, other: float) -> None:
    # Also where they lie on both sides of 0 or 1, as R2 and per cent do.
    low, high = sorted((one, other))

    assert loss_from_validation(high, mode="max")[0] <= loss_from_validation(low, mode="max")[0]


@pytest.mark.parametrize(
    ("measured", "message"),
    [
        ("low", "'low'"),
        (None, "None"),
        ({"loss": "low"}, "'loss': 'low'"),
        ({"accuracy": 0.5}, "no 'loss'; it has accuracy"),
        ({}, "it has nothing"),
    ],
)
def test_what_is_no_number_is_refused(measured: Any, message: str) -> None:
    with pytest.raises(MetricError, match=message):
        loss_from_validation(measured)


def test_nothing_is_measured_unless_said() -> None:
    metrics = Metrics(val_loss=1.0)

    assert (metrics.steps, metrics.charge, metrics.finite) == (0.0, 0.0, 1.0)
    assert metrics.grad_norm != metrics.grad_norm
