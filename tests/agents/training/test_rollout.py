"""Batches of steered runs: what is steered, what stays, and within which bounds."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax")

import jax
import jax.numpy as jnp

from trimtab.agents.training.rollout import bounded, columns_of, initial_carry, rollout
from trimtab.core.hyperparameters import hyperparameter
from trimtab.core.metrics import Metrics
from trimtab.core.spec import ControlSpec, window_ends
from trimtab.envs.simulators.batch import Programs

pytestmark = pytest.mark.usefixtures("quick_compiling")

OFFERED = (
    hyperparameter("lr", 1e-3),
    hyperparameter("weight_decay", 1e-2),
    hyperparameter("dropout", 0.1),
)
STEPS = 40


def _programs(seen: list[np.ndarray], size: int) -> Programs:
    """Return programs that train nothing and note the values that they are given."""
    runs: Any = SimpleNamespace(draw=SimpleNamespace())
    loss = jnp.ones(size)

    def window(
        runs: Any, keep: Any, restore: Any, values: Any, reference: Any, done: Any, steps: Any
    ) -> Any:
        seen.append(np.asarray(values))
        unknown = jnp.full(size, jnp.nan)
        metrics = Metrics(*[unknown] * len(Metrics._fields))._replace(
            val_loss=loss,
            train_loss=loss,
            steps=jnp.asarray(steps, jnp.float32),
            charge=loss,
            finite=loss,
        )
        return runs, metrics

    return Programs(
        prepare=lambda task_keys, run_keys: (runs, loss),
        window=window,
        score=lambda runs, keep: (loss, loss, loss),
        properties=lambda runs: jnp.zeros((size, 1)),
        default_lr=lambda runs: jnp.full(size, 1e-3),
    )


def test_what_is_not_steered_stays_at_its_start() -> None:
    spec = ControlSpec(hyperparameters=(OFFERED[0], OFFERED[2]), decisions=4, front_windows=0)
    seen: list[np.ndarray] = []
    starts = np.array([[1e-3, 0.5, 0.3], [1e-2, 1e-4, 0.0]], np.float32)
    moves = np.full((4, 2, 2), 0.1, np.float32)
    rollout(
        _programs(seen, 2),
        spec,
        {},
        jax.random.split(jax.random.key(0), 2),
        jax.random.split(jax.random.key(1), 2),
        lambda fair: starts,
        STEPS,
        mode="fixed",
        mode_input=moves,
        columns=columns_of(spec, OFFERED),
    )
    assert len(seen) == len(window_ends(spec, STEPS))
    for values in seen:
        np.testing.assert_array_equal(values[:, 1], starts[:, 1])
        np.testing.assert_allclose(values[:, 0], starts[:, 0] * 10**0.1, rtol=1e-6)
        np.testing.assert_allclose(values[:, 2], starts[:, 2] + 0.1 * 0.7, rtol=1e-5)


def test_bounds_are_those_that_the_start_leaves() -> None:
    spec = ControlSpec(hyperparameters=OFFERED, decisions=4)
    starts = np.array([[1e-3, 1.0, 0.7], [10.0, 1e-6, 0.0]], np.float32)
    carry = bounded(initial_carry(spec, STEPS, 2, True), OFFERED, starts)
    low, high = np.asarray(carry.low_offset), np.asarray(carry.high_offset)
    np.testing.assert_allclose(low[:, 0], -5, atol=1e-5)  # moves along with the start
    np.testing.assert_allclose(low[:, 1:], [[-6, -1], [0, 0]], atol=1e-5)
    np.testing.assert_allclose(high[:, 1:], [[0, 0], [6, 1]], atol=1e-5)


def test_a_name_that_is_not_offered_is_an_error() -> None:
    spec = ControlSpec(hyperparameters=(hyperparameter("lr"), hyperparameter("clip")), decisions=4)
    with pytest.raises(ValueError, match="clip"):
        columns_of(spec, OFFERED)


def _rated(size: int) -> Programs:
    """Return programs whose loss is one of the learning rate alone, 32 examples a step."""
    idle = _programs([], size)

    def window(
        runs: Any, keep: Any, restore: Any, values: Any, reference: Any, done: Any, steps: Any
    ) -> Any:
        runs, metrics = idle.window(runs, keep, restore, values, reference, done, steps)
        loss = jnp.asarray(0.5 + 100 * np.asarray(values)[:, 0] * np.sqrt(done + 1), jnp.float32)
        return runs, metrics._replace(val_loss=loss, charge=metrics.steps * 32)

    return idle._replace(window=window)


def _rewards(name: str, **how: Any) -> np.ndarray:
    spec = ControlSpec(hyperparameters=OFFERED[:1], decisions=4, front_windows=0, reward=name)
    starts = np.array([[1e-3], [2e-3]], np.float32)
    how = {"mode": "fixed", "mode_input": np.full((4, 2, 1), -0.2, np.float32), **how}
    keys = jax.random.split(jax.random.key(0), 2)
    return rollout(_rated(2), spec, {}, keys, keys, lambda fair: starts, STEPS, **how).reward


def test_the_relative_reward_is_counted_from_a_reference_that_nobody_steers() -> None:
    reference = _rewards("log-loss", mode="zero", mode_input=None, guarded=False)
    assert np.abs(reference).min() > 0
    np.testing.assert_allclose(
        _rewards("relative"), _rewards("log-loss") - reference, rtol=1e-4, atol=1e-6
    )


def test_the_cost_aware_reward_is_charged_for_the_whole_run() -> None:
    paid = _rewards("best-so-far") - _rewards("cost-aware")
    np.testing.assert_allclose(paid.sum(0), 0.1, rtol=1e-4)
