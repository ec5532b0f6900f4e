"""NumPy and JAX make the same decisions, and the short ways of scalars give what NumPy gives."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.episodes import (
    REFERENCE,
    TOTAL_STEPS,
    Episode,
    random_action,
    random_metrics,
    run_episode,
    spec_of,
)
from trimtab.core.array_namespace import SCALAR_NUMPY, namespace_of
from trimtab.core.carry import begin
from trimtab.core.control import apply, observe
from trimtab.core.guard import Reason
from trimtab.core.metrics import Metrics
from trimtab.core.rewards import potential
from trimtab.core.spec import ACTION_KINDS, ControlSpec

jax = pytest.importorskip("jax")
jnp = jax.numpy

TOLERANCE = 1e-5
N_RUNS = 8


# Width -> reward; with "final" in batches, every formula is met.
REWARD_OF = {1: "log-loss", 2: "cost-aware", 8: "relative"}


def drawn_spec(width: int, **fields: Any) -> ControlSpec:
    """Return a spec of that width; with two it undoes short windows, with eight it is version 2."""
    undoing = {"undo": 0.1, "undo_noise": 0.5, "entry_resumes": True} if width == 2 else {}
    return spec_of(width, **undoing, version=2 if width == 8 else 1, **fields)


@contextlib.contextmanager
def strict() -> Iterator[None]:
    """Let JAX refuse what it would convert or broadcast by itself."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@functools.cache
def compiled_observe(width: int, reward: str, batched: bool = False) -> Any:
    spec = drawn_spec(width, reward=reward)  # the kind of actions plays no part in observing
    function = functools.partial(observe, spec, xp=jnp)
    return jax.jit(jax.vmap(function) if batched else function)


@functools.cache
def compiled_apply(width: int, actions: str, batched: bool = False) -> Any:
    function = functools.partial(apply, drawn_spec(width, actions=actions), xp=jnp)
    return jax.jit(jax.vmap(function) if batched else function)


def drawn(spec: ControlSpec, seed: int) -> tuple[list[Any], list[Metrics]]:
    generator = np.random.default_rng(seed)
    actions = [random_action(spec, generator) for _ in range(20)]
    metrics = [random_metrics(generator, k, faults=0.05) for k in range(21)]
    metrics[0] = metrics[0]._replace(val_loss=2.3, finite=1.0)
    return actions, metrics


def assert_close(found: Any, expected: Any, what: str) -> None:
    np.testing.assert_allclose(
        np.asarray(found), np.asarray(expected), rtol=TOLERANCE, atol=TOLERANCE, err_msg=what
    )


def assert_same_run(one: Episode, other: Episode) -> None:
    assert_close(other.observations, one.observations, "observations")
    assert_close(other.rewards, one.rewards, "rewards")
    np.testing.assert_array_equal(np.asarray(one.reasons), np.asarray(other.reasons))
    for expected, found in zip(one.values, other.values, strict=True):
        for name in expected._fields:
            assert_close(getattr(found, name), getattr(expected, name), name)
    for name in one.carries[-1]._fields:
        found, expected = getattr(other.carries[-1], name), getattr(one.carries[-1], name)
        assert found.dtype == np.float32, name
        assert_close(found, expected, name)


def compiled_episode(spec: ControlSpec, actions: list[Any], *rest: Any, **options: Any) -> Episode:
    width = len(spec.hyperparameters)
    with strict():
        return run_episode(
            spec,
            actions,
            *rest,
            observed=compiled_observe(width, spec.reward),
            applied=compiled_apply(width, spec.actions),
            **options,
        )


@pytest.mark.parametrize("actions", ACTION_KINDS)
@pytest.mark.parametrize("width", list(REWARD_OF))
def test_compiled_decisions_equal_those_of_numpy(actions: str, width: int) -> None:
    spec = drawn_spec(width, actions=actions, reward=REWARD_OF[width])

    for seed in range(4):
        chosen, metrics = drawn(spec, seed)
        for guarded in (True, False):
            plain = run_episode(spec, chosen, metrics, guarded=guarded)
            compiled = compiled_episode(spec, chosen, metrics, guarded=guarded)
            assert_same_run(plain, compiled)


@pytest.mark.parametrize("actions", ACTION_KINDS)
def test_batched_decisions_equal_those_of_single_runs(actions: str) -> None:
    spec = drawn_spec(2, actions=actions, reward="final")
    runs = [drawn(spec, seed) for seed in range(N_RUNS)]
    singles = [run_episode(spec, chosen, metrics) for chosen, metrics in runs]
    observed = compiled_observe(2, "final", batched=True)
    applied = compiled_apply(2, actions, batched=True)

    begun = begin(spec, TOTAL_STEPS, reference=REFERENCE, budget=6400.0)
    carry = jax.tree.map(lambda value: jnp.stack([value] * N_RUNS), begun)
    for k in range(21):
        seen = [Metrics(*np.float32(metrics[k])) for _, metrics in runs]
        with strict():
            carry, observations, rewards = observed(carry, Metrics(*np.stack(seen).T))
        assert_close(observations, [single.observations[k] for single in singles], "observation")
        assert_close(rewards, [single.rewards[k] for single in singles], "reward")
        if k < 20:
            with strict():
                carry, values, reasons = applied(carry, np.stack([chosen[k] for chosen, _ in runs]))
            assert_close(values.offset, [single.values[k].offset for single in singles], "offset")
            np.testing.assert_array_equal(reasons, [single.reasons[k] for single in singles])


def test_action_that_is_not_finite_is_reported_by_both() -> None:
    spec = drawn_spec(2, actions="continuous", reward=REWARD_OF[2])
    action = np.float32([math.nan, 1.0, 1.0])
    plain = run_episode(spec, [action], [Metrics(val_loss=2.0)] * 2)
    compiled = compiled_episode(spec, [action], [Metrics(val_loss=2.0)] * 2)

    assert np.all(plain.reasons[0] == Reason.INVALID)
    assert_same_run(plain, compiled)


# The namespace for single numbers.

numbers = st.floats(width=32).map(np.float32)
FUNCTIONS_OF_ONE = ("isfinite", "isnan", "abs", "sign", "tanh", "exp")


def same(found: Any, expected: Any) -> bool:
    return bool(
        np.array_equal(found, expected, equal_nan=True)
        and np.asarray(found).dtype == np.asarray(expected).dtype
    )


@pytest.mark.parametrize("name", FUNCTIONS_OF_ONE)
@given(numbers)
def test_functions_of_one_number_give_what_numpy_gives(name: str, value: np.float32) -> None:
    with np.errstate(all="ignore"):
        assert same(getattr(SCALAR_NUMPY, name)(value), getattr(np, name)(value))


@pytest.mark.parametrize("name", ["minimum", "maximum"])
@given(numbers, numbers)
def test_smaller_and_larger_are_those_of_numpy(
    name: str, one: np.float32, other: np.float32
) -> None:
    assert same(getattr(SCALAR_NUMPY, name)(one, other), getattr(np, name)(one, other))


@given(numbers, numbers, numbers)
def test_clip_is_that_of_numpy(value: np.float32, one: np.float32, other: np.float32) -> None:
    low, high = sorted((one, other))
    if not np.isnan(low + high):
        assert same(SCALAR_NUMPY.clip(value, low, high), np.clip(value, low, high))


ROW, ONE, TWO = np.float32([1.0, 2.0, 3.0]), np.float32(1.0), np.float32(2.0)


@pytest.mark.parametrize("condition", [np.True_, np.False_, np.array([True, False, True])])
@pytest.mark.parametrize(("yes", "no"), [(ONE, TWO), (ROW, TWO), (ONE, ROW), (ROW, 2 * ROW)])
def test_where_chooses_and_broadcasts_like_numpy(condition: Any, yes: Any, no: Any) -> None:
    assert same(SCALAR_NUMPY.where(condition, yes, no), np.where(condition, yes, no))


@pytest.mark.parametrize(
    "call",
    [
        lambda xp: xp.take(ROW, np.int32(1)),
        lambda xp: xp.take(ROW, np.array([2, 0])),
        lambda xp: xp.take(ROW.reshape(3, 1), np.int32(1), axis=0),
        lambda xp: xp.take(ROW.reshape(1, 3), np.int32(1), axis=1),
        lambda xp: xp.stack([ONE, TWO]),
        lambda xp: xp.stack([ROW, ROW], axis=-1),
        lambda xp: xp.asarray(3, np.float32),
        lambda xp: xp.asarray([3, 4], np.float32),
        lambda xp: xp.all(xp.isfinite(ROW)),
        lambda xp: ~xp.isfinite(ONE),
        lambda xp: ~xp.isnan(ONE),
        lambda xp: xp.clip(ROW, ONE, TWO),
        lambda xp: xp.minimum(ROW, TWO),
        lambda xp: xp.mean(ROW.reshape(1, 3), axis=0),
        lambda xp: xp.mean(ROW.reshape(3, 1), axis=0),
        lambda xp: xp.mean(ROW.reshape(1, 3), axis=1),
    ],
)
def test_arrays_get_what_numpy_gives(call: Callable[[Any], Any]) -> None:
    assert same(call(SCALAR_NUMPY), call(np))


def test_only_numpy_is_replaced() -> None:
    assert namespace_of(np) is SCALAR_NUMPY
    assert namespace_of(jnp) is jnp
    assert float(potential(ONE, TWO, np)) == float(potential(ONE, TWO, SCALAR_NUMPY))
