"""Members of simulated families as tasks."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from trimtab.core.errors import SpecError, UnknownNameError
from trimtab.core.registry import make_task
from trimtab.envs.simulators.tasks import SimulatedTask, quadratic, run_key, task_key
from trimtab.testing import check_task


def test_the_quadratic_keeps_the_promises_of_a_task() -> None:
    check_task(make_task("simulated/quadratic@5", variant="tiny"))


def test_a_name_with_a_member_is_one_fixed_task() -> None:
    task = make_task("simulated/quadratic@17")
    assert isinstance(task, SimulatedTask)
    assert (task.name, task.index, task.total_steps) == ("simulated/quadratic@17", 17, 200)
    assert make_task("simulated/quadratic").name == "simulated/quadratic@0"


def test_the_seed_moves_the_run_and_the_member_the_task() -> None:
    def losses(member: int, seed: int) -> float:
        return quadratic(member).start(seed=seed).evaluate("test")["loss"]

    assert losses(1, 0) == losses(1, 0)
    assert len({losses(1, 0), losses(1, 1), losses(2, 0)}) == 3


def test_restoring_brings_back_the_weights_and_not_the_data() -> None:
    task = quadratic(3, "tiny")
    values = {"lr": np.full(5, task.hyperparameters[0].default)}
    run = task.start(seed=0)
    saved, before = run.snapshot(), run.evaluate("validation")
    run.advance(values, 5)
    run.restore(saved)
    assert run.evaluate("validation") == before
    again = run.advance(values, 5).train_loss_first
    assert again != task.start(seed=0).advance(values, 5).train_loss_first


def test_a_window_is_charged_with_its_validation() -> None:
    task = quadratic(0, "tiny")
    run = task.start(seed=0)
    metrics = run.advance({"lr": np.full(4, 1e-3)}, 4)
    examples = run.evaluate("validation")["examples"]
    assert metrics.charge == pytest.approx(4 * 32 + examples / 3)
    assert run.measured["loss"] == metrics.val_loss


def test_what_is_not_steered_stays_at_its_default() -> None:
    task = quadratic(2, "tiny")
    alone, named = task.start(seed=0), task.start(seed=0)
    lr = {"lr": np.full(8, 1e-2)}
    momentum = {"momentum": np.full(8, task.hyperparameters[1].default)}
    assert alone.advance(lr, 8) == pytest.approx(named.advance(lr | momentum, 8), nan_ok=True)


def test_keys_of_tasks_and_runs_never_meet() -> None:
    keys = [tuple(key(n)) for key in (task_key, run_key) for n in (0, 1, 2**31, 2**32, 2**32 + 1)]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("member", [-1, 1.5, True, "3"])
def test_a_member_that_is_no_number_is_refused(member: object) -> None:
    with pytest.raises(SpecError, match=f"member: {member!r} is not a whole number"):
        quadratic(member)  # type: ignore[arg-type]


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="unknown variant 'huge'"):
        quadratic(0, "huge")


def test_the_quadratic_runs_without_jax() -> None:
    script = """
import sys
for name in ("jax", "torch", "sklearn"):
    sys.modules[name] = None
import gymnasium, trimtab
env = gymnasium.make("Hyperparam-v0", variant="tiny", render_mode="rgb_array")
env.reset(seed=0)
while not any(env.step(0)[2:4]):
    pass
assert env.render().shape == (480, 640, 3)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
