"""Each reward adds up to what its table row promises."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.episodes import run_episode, spec_of
from trimtab.core import rewards
from trimtab.core.metrics import Metrics
from trimtab.core.rewards import COST_PRICE, DIVERGENCE_PENALTY, LOSS_FLOOR, normalised, potential
from trimtab.core.spec import REWARDS

# Validation losses that the guard leaves alone: below, and never far above the best.
calm = st.lists(st.floats(0.8, 1.2), min_size=2, max_size=20)


def phi(loss: float, initial: float) -> float:
    return math.log(loss / initial + LOSS_FLOOR)


def total(
    name: str, losses: list[float], *, budget: float = math.nan, **columns: list[float]
) -> float:
    """Return the sum of rewards of a run with these validation losses and nothing done."""
    spec = spec_of(reward=name, decisions=len(losses) - 1, front_windows=0)
    metrics = [
        Metrics(val_loss=loss, **{column: values[k] for column, values in columns.items()})
        for k, loss in enumerate(losses)
    ]
    episode = run_episode(spec, [[3, 0]] * (len(losses) - 1), metrics, budget=budget)
    assert episode.rewards[0] == 0.0
    return sum(episode.rewards)


@given(calm)
def test_log_loss_sums_to_the_last_loss(losses: list[float]) -> None:
    expected = phi(losses[0], losses[0]) - phi(losses[-1], losses[0])

    assert total("log-loss", losses) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", ["best-so-far", "final"])
@given(calm)
def test_best_so_far_and_final_sum_to_the_best_loss(name: str, losses: list[float]) -> None:
    expected = phi(losses[0], losses[0]) - phi(min(losses), losses[0])

    assert total(name, losses) == pytest.approx(expected, abs=1e-4)


@given(calm, st.data())
def test_relative_sums_to_the_lead_over_the_reference(
    losses: list[float], data: st.DataObject
) -> None:
    floats = st.floats(0.5, 1.5)
    reference = data.draw(st.lists(floats, min_size=len(losses), max_size=len(losses)))
    expected = phi(reference[-1], losses[0]) - phi(losses[-1], losses[0])

    assert total("relative", losses, reference_loss=reference) == pytest.approx(expected, abs=1e-4)


@given(calm, st.floats(1.0, 1e4))
def test_cost_aware_pays_for_the_share_of_a_run(losses: list[float], budget: float) -> None:
    charges = [0.0] + [budget / 4] * (len(losses) - 1)
    expected = phi(losses[0], losses[0]) - phi(min(losses), losses[0])
    price = COST_PRICE * sum(charges) / budget

    assert total("cost-aware", losses, budget=budget, charge=charges) == pytest.approx(
        expected - price, abs=1e-4
    )


def test_cost_is_free_where_the_budget_is_unknown() -> None:
    assert total("cost-aware", [1.0, 1.0], charge=[0.0, 50.0]) == 0.0


def test_final_is_paid_once_at_the_end() -> None:
    spec = spec_of(reward="final", decisions=3)
    metrics = [Metrics(val_loss=loss) for loss in (2.0, 1.5, 1.0, 1.2)]
    episode = run_episode(spec, [[3, 0]] * 3, metrics)

    assert episode.rewards == pytest.approx(
        [0.0, 0.0, 0.0, phi(2.0, 2.0) - phi(1.0, 2.0)], abs=1e-5
    )


def test_function_is_left_to_the_user() -> None:
    assert total("function", [2.0, 1.0, 0.5]) == 0.0


def test_reward_is_computed_on_its_own_split_where_there_is_one() -> None:
    losses, scored = [2.0, 1.0, 1.5], [4.0, 3.0, 1.0]

    assert total("log-loss", losses, reward_loss=scored) == pytest.approx(
        phi(4.0, 4.0) - phi(1.0, 4.0), abs=1e-5
    )
    # Best is best on validation, whatever the other split says.
    assert total("best-so-far", losses, reward_loss=scored) == pytest.approx(
        phi(4.0, 4.0) - phi(3.0, 4.0), abs=1e-5
    )


@pytest.mark.parametrize("name", [name for name in REWARDS if name != "function"])
def test_divergence_costs_its_penalty(name: str) -> None:
    spec = spec_of(reward=name)
    # The loss that is scored is known and unchanged; only the validation loss is lost.
    seen = [Metrics(val_loss=2.0, reward_loss=2.0), Metrics(val_loss=math.nan, reward_loss=2.0)]
    episode = run_episode(spec, [[3, 0]], seen)

    assert episode.rewards[1] == pytest.approx(-DIVERGENCE_PENALTY)


def test_no_decision_is_paid_for_a_restore() -> None:
    spec = spec_of()
    metrics = [Metrics(val_loss=loss) for loss in (2.0, 1.0, 1.9, 1.0)]
    episode = run_episode(spec, [[3, 0]] * 3, metrics)

    assert bool(episode.values[2].restore)
    lost = phi(1.9, 2.0) - phi(1.0, 2.0)
    assert sum(episode.rewards) == pytest.approx(phi(2.0, 2.0) - phi(1.0, 2.0) - lost, abs=1e-5)


@given(st.floats(width=32), st.floats(width=32))
def test_normalised_loss_stays_within_its_bounds(loss: float, initial: float) -> None:
    with np.errstate(all="ignore"):
        value = normalised(np.float32(loss), np.float32(initial), np)

    assert 0.0 <= value <= 1000.0


@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_potential_rises_with_the_loss(initial: float, one: float, other: float) -> None:
    low, high = sorted((np.float32(one), np.float32(other)))

    assert potential(low, np.float32(initial), np) <= potential(high, np.float32(initial), np)


def test_loss_that_may_be_negative_is_measured_from_its_start() -> None:
    # Accuracy as -value: from -0.5 to -0.75 is half of the start's size down.
    assert normalised(np.float32(-0.75), np.float32(-0.5), np) == pytest.approx(0.5)


def test_documented_rewards_are_those_of_the_code() -> None:
    documented = re.findall(r"^\| ``([a-z-]+)`` \|", rewards.__doc__ or "", re.MULTILINE)

    assert documented == list(REWARDS)
    assert f"minus {COST_PRICE:g} a whole run" in (rewards.__doc__ or "")
    assert f"log(n + {LOSS_FLOOR:g})" in (rewards.__doc__ or "")
