"""Batches of steered runs: what is steered, what stays, and within which bounds."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax")

import jax
import jax.numpy as jnp

from trimtab.agents.rollout import bounded, columns_of, initial_carry, rollout
from trimtab.core.hyperparameters import hyperparameter
from trimtab.core.metrics import Metrics
from trimtab.core.spec import ControlSpec, window_ends
from trimtab.envs.simulators.batch import Programs

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
        aside=moves,
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
