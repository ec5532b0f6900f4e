"""What validate() may return, and what is refused by its value."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.core.errors import MetricError
from trimtab.core.metrics import Metrics, loss_from_validation, missing_in_window


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


def test_losses_alone_make_a_window_that_lacks_nothing() -> None:
    found = Metrics.from_losses([4.0, 3.0, 2.0, 1.0], val_loss=1.5, examples=128)

    assert missing_in_window(found) == []
    assert (found.train_loss, found.train_loss_first, found.train_loss_change) == (2.5, 4.0, -2.0)
    assert (found.val_loss, found.steps, found.charge, found.finite) == (1.5, 4.0, 128.0, 1.0)


@pytest.mark.parametrize(("losses", "val_loss"), [([1.0, math.nan], 1.0), ([1.0, 1.0], math.inf)])
def test_a_loss_that_is_not_finite_ends_the_window(losses: list[float], val_loss: float) -> None:
    found = Metrics.from_losses(losses, val_loss=val_loss, examples=64)

    assert (found.finite, found.steps, found.charge) == (0.0, 2.0, 64.0)


def test_a_window_without_losses_is_refused() -> None:
    with pytest.raises(MetricError, match=r"losses: \[\] holds no loss"):
        Metrics.from_losses([])
    with pytest.raises(MetricError, match="'x'"):
        Metrics.from_losses(["x"])  # type: ignore[list-item]


def test_losses_that_a_window_lacks_are_named() -> None:
    seen = Metrics(train_loss=1.0, val_loss=1.0, steps=4.0)
    left_out = ["train_loss_first", "train_loss_change", "train_loss_std"]

    assert missing_in_window(seen) == left_out
