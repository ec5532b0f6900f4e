"""Reference schedules are the ones that their names promise, at every step."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.core import references
from trimtab.core.errors import SpecError, UnknownNameError
from trimtab.core.references import REFERENCES, reference_multipliers

names = st.sampled_from(sorted(REFERENCES))
totals = st.integers(1, 2000)


@given(names, totals)
def test_multipliers_lie_in_the_unit_interval_one_a_step(name: str, total: int) -> None:
    multipliers = reference_multipliers(name, total)

    assert multipliers.shape == (total,)
    assert multipliers.dtype == np.float64
    assert np.all((multipliers >= 0) & (multipliers <= 1 + 1e-12))


@given(totals)
def test_warm_up_and_linear_decay_follow_their_formula(total: int) -> None:
    expected = [min(1, (s + 1) / (0.05 * total)) * (1 - s / total) for s in range(total)]

    assert reference_multipliers("warmup-linear", total).tolist() == expected


@given(totals)
def test_constant_is_one(total: int) -> None:
    assert reference_multipliers("constant", total).tolist() == [1.0] * total


@given(st.integers(20, 2000))
def test_schedules_rise_once_and_then_fall(total: int) -> None:
    for name in ("warmup-linear", "cosine", "one-cycle"):
        multipliers = reference_multipliers(name, total)
        peak = int(np.argmax(multipliers))
        assert np.all(np.diff(multipliers[: peak + 1]) >= 0), name
        assert np.all(np.diff(multipliers[peak:]) <= 0), name


def test_one_cycle_goes_from_a_25th_to_one_to_nearly_nothing() -> None:
    multipliers = reference_multipliers("one-cycle", 100)

    assert multipliers[0] == pytest.approx(1 / 25)
    assert multipliers[29] == pytest.approx(1.0)
    assert multipliers[99] == pytest.approx(4e-6)


@given(totals)
def test_function_of_progress_is_asked_at_each_step(total: int) -> None:
    multipliers = reference_multipliers(lambda progress: 2 * progress, total)

    assert multipliers.tolist() == [2 * (s / total) for s in range(total)]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda progress: math.nan, "nan at step 0 of 4"),
        (lambda progress: math.inf, "inf at step 0 of 4"),
        (lambda progress: 0.5 - progress, "-0.25 at step 3 of 4"),
    ],
)
def test_function_that_gives_no_multiplier_is_refused(
    function: Callable[[float], float], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        reference_multipliers(function, 4)


def test_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="'cosin'; did you mean 'cosine'"):
        reference_multipliers("cosin", 10)


def test_each_schedule_is_known_by_its_own_name() -> None:
    for name, schedule in REFERENCES.items():
        assert schedule is getattr(references, name.replace("-", "_"))


# Against PyTorch's own.


def rates_of_torch(make: Callable[[Any], Any], total: int) -> list[float]:
    """Return the learning rate at each step, from a start of 1, under a scheduler of PyTorch."""
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = make(optimizer)
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of steps of the scheduler without the optimiser's
        for _ in range(total):
            rates.append(optimizer.param_groups[0]["lr"])
            if len(rates) < total:
                scheduler.step()
    return rates


@pytest.mark.framework
@pytest.mark.parametrize("total", [10, 37, 100, 1000])
def test_one_cycle_is_that_of_torch(total: int) -> None:
    torch = pytest.importorskip("torch")

    def make(optimizer: Any) -> Any:
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=1.0, total_steps=total, cycle_momentum=False
        )

    expected = rates_of_torch(make, total)
    np.testing.assert_allclose(
        reference_multipliers("one-cycle", total), expected, rtol=1e-9, atol=1e-12
    )


@pytest.mark.framework
@pytest.mark.parametrize("total", [1, 10, 37, 1000])
def test_cosine_is_that_of_torch(total: int) -> None:
    torch = pytest.importorskip("torch")

    def make(optimizer: Any) -> Any:
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=total)

    expected = rates_of_torch(make, total)
    np.testing.assert_allclose(
        reference_multipliers("cosine", total), expected, rtol=1e-9, atol=1e-9
    )
