"""How far a simulated run has come, and what a restore leaves of that."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from trimtab.envs.simulators.family import put_back
from trimtab.envs.simulators.tasks import SimulatedTask

pytestmark = pytest.mark.usefixtures("quick_compiling")


@pytest.fixture(scope="module")
def task() -> SimulatedTask:
    return SimulatedTask("simulated/mlp", member=11, variant="tiny")


def _advanced(task: SimulatedTask, factor: float, windows: int = 6):
    run = task.start(seed=0)
    rate = task.hyperparameters[0].default * factor
    return run, [run.advance({"lr": np.full(2, rate)}, 2) for _ in range(windows)]


def test_a_rate_too_high_turns_the_gradient_back(task):
    _, low = _advanced(task, 0.01)
    _, high = _advanced(task, 1000.0)
    assert low[-1].alignment_mean > 0.1
    assert high[-1].alignment_mean < 0.05
    assert low[-1].straightness > high[-1].straightness


def test_before_the_first_step_nothing_is_known(task):
    run = task.start(seed=0)
    metrics = run.advance({"lr": np.full(1, 1e-3)}, 1)
    assert np.isnan([metrics.alignment, metrics.distance_ratio, metrics.straightness]).all()


def test_a_restore_puts_weights_back_and_leaves_the_way_that_was_gone(task):
    run, _ = _advanced(task, 1.0, 2)
    kept = run.snapshot()
    run.advance({"lr": np.full(2, 1e-3)}, 2)
    gone = run.snapshot().travel
    run.restore(kept)
    now = run.snapshot()
    assert np.array_equal(now.params, kept.params)
    assert float(now.travel.path) == float(gone.path) > float(kept.travel.path)
    assert all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(put_back(kept, now)), jax.tree.leaves(now), strict=True)
    )


def test_a_run_that_goes_on_elsewhere_knows_the_way_so_far(task):
    run, _ = _advanced(task, 1.0, 3)
    plain, position = run.to_plain(run.snapshot()), run.position()
    later = task.start(seed=0)
    later.set_position(position)
    later.restore(later.from_plain(plain))
    values = {"lr": np.full(2, 1e-3)}
    np.testing.assert_array_equal(later.advance(values, 2), run.advance(values, 2))
