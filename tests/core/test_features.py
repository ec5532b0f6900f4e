"""Observations are finite, bounded, named, and the same in any unit."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.episodes import (
    ANY_METRICS,
    EIGHT,
    WIDTHS,
    Episode,
    drawn_episode,
    random_action,
    random_metrics,
    run_episode,
    spec_of,
)
from trimtab.core.features import (
    FEATURE_BOUND,
    GLOBAL_FEATURES,
    TOKEN_FEATURES,
    observation_size,
    observation_table,
)
from trimtab.core.hyperparameters import KINDS, hyperparameter
from trimtab.core.metrics import Metrics
from trimtab.core.spec import ACTION_KINDS, ControlSpec

seeds = st.integers(0, 2**32 - 1)
LOSSES = (
    "train_loss",
    "train_loss_first",
    "train_loss_change",
    "train_loss_std",
    "val_loss",
    "reward_loss",
    "reference_loss",
)
# log10 of a ratio of float32 numbers, times at most 4.
UNIT_TOLERANCE = 2e-5


def named(episode: Episode, name: str) -> list[float]:
    """Return one feature at each decision of a run."""
    index = [row["name"] for row in observation_table(episode.spec)].index(name)
    return [float(observation[index]) for observation in episode.observations]


@given(WIDTHS, st.sampled_from(ACTION_KINDS), seeds)
def test_observation_has_a_row_of_the_table_for_each_number(
    width: int, actions: str, seed: int
) -> None:
    spec = spec_of(width, actions=actions)
    episode = drawn_episode(spec, seed, decisions=1)
    table = observation_table(spec)

    assert len(table) == observation_size(spec)
    assert len(table) == len(GLOBAL_FEATURES) + width * (len(TOKEN_FEATURES) + len(KINDS))
    assert [row["index"] for row in table] == list(range(len(table)))
    assert len({row["name"] for row in table}) == len(table)
    for observation in episode.observations:
        assert observation.shape == (len(table),)
        assert observation.dtype == np.float32


@given(st.lists(ANY_METRICS, min_size=1, max_size=6), WIDTHS, seeds)
def test_observation_is_finite_and_bounded_whatever_is_measured(
    metrics: list[Metrics], width: int, seed: int
) -> None:
    spec = spec_of(width)
    generator = np.random.default_rng(seed)
    actions = [random_action(spec, generator) for _ in metrics[1:]]
    episode = run_episode(spec, actions, metrics)

    for observation in episode.observations:
        assert np.all(np.isfinite(observation))
        assert np.all(np.abs(observation) <= FEATURE_BOUND)


@given(seeds, st.floats(-6.0, 6.0), st.floats(-6.0, 6.0), st.floats(-3.0, 3.0), WIDTHS)
def test_units_of_losses_gradients_and_rates_leave_no_trace(
    seed: int, loss_decades: float, gradient_decades: float, rate_decades: float, width: int
) -> None:
    generator = np.random.default_rng(seed)
    spec = spec_of(width)
    actions = [random_action(spec, generator) for _ in range(20)]
    plain = [random_metrics(generator, k) for k in range(21)]
    loss, gradient = 10.0**loss_decades, 10.0**gradient_decades
    scaled = [
        seen._replace(
            grad_norm=seen.grad_norm * gradient,
            update_ratio=seen.update_ratio * gradient,
            **{name: getattr(seen, name) * loss for name in LOSSES},
        )
        for seen in plain
    ]
    rate = hyperparameter("lr", 1e-3 * 10.0**rate_decades)
    other = spec.with_hyperparameters((rate, *spec.hyperparameters[1:]))

    here, there = run_episode(spec, actions, plain), run_episode(other, actions, scaled)

    np.testing.assert_allclose(here.observations, there.observations, atol=UNIT_TOLERANCE)
    np.testing.assert_allclose(here.rewards, there.rewards, atol=UNIT_TOLERANCE)
    np.testing.assert_array_equal(here.reasons, there.reasons)


def test_name_of_a_hyperparameter_leaves_no_trace() -> None:
    here = ControlSpec(hyperparameters=(hyperparameter("lr"),))
    there = ControlSpec(hyperparameters=(hyperparameter("backbone", 1e-3, kind="lr"),))
    metrics = [Metrics(val_loss=2.0), Metrics(val_loss=1.0)]

    one, other = (run_episode(spec, [[4, 0]], metrics) for spec in (here, there))

    np.testing.assert_array_equal(one.observations, other.observations)


def test_each_hyperparameter_shows_its_kind() -> None:
    spec = spec_of(8)
    episode = run_episode(spec, [], [Metrics(val_loss=2.0)])

    shown = {
        row["name"]
        for row, value in zip(observation_table(spec), episode.observations[0], strict=True)
        if ".kind." in row["name"] and value == 1.0
    }
    assert shown == {f"{name}.kind.{name}" for name in EIGHT}


def test_what_was_not_measured_is_zero() -> None:
    episode = run_episode(spec_of(), [[3, 0]], [Metrics(val_loss=2.0), Metrics(val_loss=1.0)])

    for name in ("train", "grad", "grad_change", "grad_cosine", "update", "grad_known", "slope"):
        assert named(episode, name) == [0.0, 0.0]


def test_features_of_a_plain_run() -> None:
    spec = spec_of(front_windows=0)
    window = Metrics(
        train_loss=1.0,
        train_loss_first=2.0,
        train_loss_std=0.1,
        train_loss_change=-0.1,
        val_loss=1.0,
        grad_norm=10.0,
        grad_cosine=0.5,
        update_ratio=0.01,
    )
    later = window._replace(val_loss=1.5, grad_norm=1.0, update_ratio=0.1)
    episode = run_episode(spec, [[4, 0], [3, 0]], [Metrics(val_loss=2.0), window, later])

    half, more = math.log(0.52), math.log(0.77)
    expected = {
        "progress": [0.0, 0.05, 0.1],
        "inverse_decisions_left": [1 / 21, 1 / 20, 1 / 19],
        "first": [1.0, 0.0, 0.0],
        "val": [math.log(1.02), half, more],
        "best": [math.log(1.02), half, half],
        "val_over_best": [0.0, 0.0, 2 * (more - half)],
        "val_change": [0.0, 2 * (half - math.log(1.02)), 2 * (more - half)],
        "train": [0.0, half, half],
        "step_noise": [0.0, -0.5, -0.5],
        "slope": [0.0, math.tanh(-1.0), math.tanh(-1.0)],
        "train_drift": [0.0, 3 * math.log10(0.5), 3 * math.log10(0.5)],
        "grad": [0.0, 0.0, -1.0],
        "update": [0.0, 0.0, 1.0],
        "grad_cosine": [0.0, 0.5, 0.5],
        "since_best": [0.0, 0.0, math.log10(2.0)],
        "last_reward": [0.0, math.log(1.02) - half, half - more],
        "lr.offset": [0.0, 0.1, 0.1],
        "lr.move": [0.0, 0.2, 0.0],
        "lr.move_before": [0.0, 0.0, 0.2],
        "lr.credit": [0.0, 4 * (half - math.log(1.02)), 0.0],
        "lr.harm_seen": [0.0, 0.0, 1.0],
        "lr.to_high": [1.0, 1.0, 1.0],
    }
    found = {name: named(episode, name) for name in expected}
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, abs=1e-5), name


def test_decision_after_the_last_window_is_still_described() -> None:
    # A last window that is cut short brings one decision more than there are windows.
    spec = spec_of(decisions=3, front_windows=0)
    metrics = [Metrics(val_loss=2.0)] + [Metrics(val_loss=1.0)] * 5

    episode = run_episode(spec, [[3, 0]] * 5, metrics)

    assert named(episode, "progress")[3:] == [1.0, 1.0, 1.0]
    assert named(episode, "inverse_decisions_left")[3:] == [1.0, 1.0, 1.0]
