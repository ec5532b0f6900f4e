"""The closed form against plain gradient descent, and NumPy against JAX."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from trimtab.core.errors import UnknownNameError
from trimtab.core.metrics import Metrics
from trimtab.core.references import reference_multipliers
from trimtab.envs.simulators.families.quadratic import Quadratics, State
from trimtab.envs.simulators.random_numbers import normal, uniform
from trimtab.envs.simulators.tasks import run_key, task_key

STEPS = 60
REFERENCE = reference_multipliers("warmup-linear", STEPS).astype(np.float32)
USUAL = {"lr": 1e-2, "momentum": 0.9, "weight_decay": 1e-2, "batch_size": 32.0}


def begin(member: int, seed: int = 0, array: str = "numpy") -> tuple[Quadratics, Any, State]:
    family = Quadratics(array)
    draw = family.draw(0, task_key(member))
    return family, draw, family.start(0, (), draw, run_key(seed))


def advance(
    family: Quadratics, draw: Any, state: State, first: int, steps: int, **changed: float
) -> tuple[State, Metrics]:
    values = np.array(list((USUAL | changed).values()), np.float32)
    with np.errstate(all="ignore"):
        return family.advance(
            0, (), draw, state, values, REFERENCE, np.int32(first), np.int32(steps), np.int32(steps)
        )


def loss(family: Quadratics, draw: Any, state: State, split: str = "validation") -> float:
    with np.errstate(all="ignore"):
        return float(family.evaluate(0, (), draw, state, split)[0])


def slow_moments(draw: Any, state: State, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean (P, 2) and covariance (P, 2, 2) of (theta, v) after some steps, in float64.

    One dimension and one step at a time: x <- A x + b, S <- A S A' + Q.
    """
    means, covariances = [], []
    for i, rate in enumerate(np.asarray(draw.rate, np.float64)):
        mean = np.array([state.moments.mean[i], 0.0])
        covariance = np.zeros((2, 2))
        for step in range(steps):
            alpha = USUAL["lr"] * float(draw.lr_factor) * float(REFERENCE[step])
            decay, momentum = alpha * USUAL["weight_decay"], USUAL["momentum"]
            change = np.array([[1.0 - decay - alpha * rate, -alpha * momentum], [rate, momentum]])
            push = np.array([decay * float(draw.origin[i]), 0.0])
            shape = np.array([-alpha, 1.0])
            noise = float(draw.noise_pre[i]) / USUAL["batch_size"] * np.outer(shape, shape)
            mean = change @ mean + push
            covariance = change @ covariance @ change.T + noise
        means.append(mean)
        covariances.append(covariance)
    return np.array(means), np.array(covariances)


@pytest.mark.parametrize("member", [0, 3])
def test_the_moments_are_those_of_the_slow_recursion(member: int) -> None:
    family, draw, state = begin(member)
    after, _ = advance(family, draw, state, 0, 25)
    means, covariances = slow_moments(draw, state, 25)
    for found, expected in (
        (after.moments.mean, means[:, 0]),
        (after.moments.velocity, means[:, 1]),
        (after.moments.var, covariances[:, 0, 0]),
        (after.moments.cov, covariances[:, 0, 1]),
        (after.moments.velocity_var, covariances[:, 1, 1]),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def sampled_descent(draw: Any, state: State, steps: int, runs: int) -> dict[str, np.ndarray]:
    """Return what ``runs`` sampled runs of plain gradient descent measure at the last step."""
    generator = np.random.default_rng(0)
    h, c = (np.asarray(value, np.float64) for value in (draw.curvature, draw.noise))
    pre = np.divide(draw.rate, h, out=np.zeros_like(h), where=h > 0)
    theta = np.tile(np.asarray(state.moments.mean, np.float64), (runs, 1))
    velocity, before = np.zeros_like(theta), np.zeros_like(theta)
    for step in range(steps):
        alpha = USUAL["lr"] * float(draw.lr_factor) * float(REFERENCE[step])
        gradient = h * theta + np.sqrt(c / 32) * generator.standard_normal(theta.shape)
        if step == steps - 1:
            product = (before * gradient).sum(1).mean()
            scale = np.sqrt((before**2).sum(1).mean() * (gradient**2).sum(1).mean())
            weights = np.sqrt(((theta - draw.origin) ** 2).sum(1).mean())
        velocity = USUAL["momentum"] * velocity + pre * gradient
        update = alpha * velocity + alpha * USUAL["weight_decay"] * (theta - draw.origin)
        theta, before = theta - update, gradient
    return {
        "grad_norm": np.sqrt((gradient**2).sum(1).mean()) * draw.loss_scale,
        "grad_cosine": product / scale,
        "update_ratio": np.sqrt((update**2).sum(1).mean()) / weights * draw.ratio,
        "train": 0.5 * (h * theta**2).sum(1).mean(),
    }


@pytest.mark.parametrize("member", [1, 2])
def test_the_statistics_are_those_of_sampled_runs(member: int) -> None:
    family, draw, state = begin(member)
    after, metrics = advance(family, draw, state, 0, 12)
    sampled = sampled_descent(draw, state, 12, runs=4000)
    assert float(metrics.grad_norm) == pytest.approx(sampled["grad_norm"], rel=0.05)
    assert float(metrics.grad_cosine) == pytest.approx(sampled["grad_cosine"], abs=0.03)
    assert float(metrics.update_ratio) == pytest.approx(sampled["update_ratio"], rel=0.05)
    moments = after.moments
    train = 0.5 * np.sum(draw.curvature * (moments.mean**2 + moments.var))
    assert float(train) == pytest.approx(sampled["train"], rel=0.05)


@pytest.mark.parametrize("member", range(3))
def test_jax_gives_the_numbers_of_numpy(member: int) -> None:
    results = []
    for array in ("numpy", "jax"):
        family, draw, state = begin(member, array=array)
        row = []
        for first in range(0, 40, 8):
            state, metrics = advance(family, draw, state, first, 8)
            row += [float(value) for value in metrics]
            row += [loss(family, draw, state, split) for split in ("train", "validation", "test")]
        results.append(row)
    np.testing.assert_allclose(results[1], results[0], rtol=1e-4, equal_nan=True)


def test_a_run_in_a_batch_may_have_fewer_steps() -> None:
    family, draw, state = begin(0, array="jax")
    alone, _ = advance(family, draw, state, 0, 5)
    values = np.array(list(USUAL.values()), np.float32)
    masked, metrics = family.advance(
        0, (), draw, state, values, REFERENCE, np.int32(0), np.int32(5), np.int32(9)
    )
    np.testing.assert_array_equal(masked.moments.mean, alone.moments.mean)
    assert float(metrics.steps) == 5


def test_the_same_keys_give_the_same_run_and_others_another() -> None:
    def run(member: int, seed: int) -> float:
        family, draw, state = begin(member, seed)
        state, _ = advance(family, draw, state, 0, 10)
        return loss(family, draw, state)

    assert run(4, 0) == run(4, 0)
    assert len({run(4, 0), run(4, 1), run(5, 0)}) == 3


def test_no_two_properties_of_tasks_are_drawn_together() -> None:
    family = Quadratics()
    draws = [family.draw(0, task_key(member)) for member in range(400)]
    columns = [
        np.array([d.hidden for d in draws]).T,
        np.log([[d.floor, d.loss_scale, d.step_noise, d.ratio] for d in draws]).T,
    ]
    correlation = np.corrcoef(np.concatenate(columns))
    off_diagonal = correlation[~np.eye(len(correlation), dtype=bool)]
    assert np.abs(off_diagonal).max() < 0.2  # 4 standard errors of 400 independent draws


def test_random_numbers_are_uniform_and_normal() -> None:
    seed, places = np.array([7], np.uint32), np.arange(20_000, dtype=np.uint32)
    shares = uniform(seed, 3, places)
    assert 0 < shares.min() < shares.max() < 1
    counts, _ = np.histogram(shares, 20, (0, 1))
    assert np.abs(counts - 1000).max() < 160  # 5 standard deviations
    draws = normal(seed, 3, places, np)
    assert abs(draws.mean()) < 0.04
    assert draws.std() == pytest.approx(1, abs=0.03)
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.04


def test_a_good_rate_learns_and_a_huge_one_ruins() -> None:
    family, draw, state = begin(0)
    good, metrics = advance(family, draw, state, 0, 40, lr=0.1 / float(draw.lr_factor))
    assert float(metrics.finite) == 1
    assert loss(family, draw, good) < 0.8 * loss(family, draw, state)
    _, metrics = advance(family, draw, state, 0, 40, lr=1000 / float(draw.lr_factor))
    assert float(metrics.finite) == 0
    assert 1 <= float(metrics.steps) < 40


def test_every_hyperparameter_acts() -> None:
    family, draw, state = begin(2)
    usual, _ = advance(family, draw, state, 0, 30)
    for name, value in (("lr", 2e-2), ("momentum", 0.5), ("weight_decay", 0.5)):
        other, _ = advance(family, draw, state, 0, 30, **{name: value})
        assert loss(family, draw, other) != loss(family, draw, usual), name
    noisier, _ = advance(family, draw, state, 0, 30, batch_size=8.0)
    assert noisier.moments.var.sum() > 3 * usual.moments.var.sum()


def test_some_runs_overfit() -> None:
    overfitted = 0
    for member in range(20):
        family, draw, state = begin(member)
        curve = []
        for first in range(0, STEPS, 12):
            state, _ = advance(family, draw, state, first, 12, lr=0.1 / float(draw.lr_factor))
            splits = ("train", "validation")
            curve.append([loss(family, draw, state, split) for split in splits])
        overfitted += any(
            later[0] < 0.99 * now[0] and later[1] > 1.01 * now[1]
            for now, later in itertools.pairwise(curve)
        )
    assert overfitted >= 2


def test_the_splits_have_optima_of_their_own() -> None:
    family, draw, state = begin(6)
    losses = [loss(family, draw, state, split) for split in ("train", "validation", "selection")]
    assert len(set(losses)) == 3
    with pytest.raises(UnknownNameError, match="unknown split 'exam'"):
        family.evaluate(0, (), draw, state, "exam")


def test_forgetting_clears_the_momentum_only() -> None:
    family, draw, state = begin(0)
    state, _ = advance(family, draw, state, 0, 10)
    cleared = family.forget(state)
    assert not cleared.moments.velocity.any()
    assert loss(family, draw, cleared) == loss(family, draw, state)
