"""The examples of a user's own task are short, are found by name, learn, and are steered well."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trimtab.core.errors import BlindPolicyWarning
from trimtab.core.protocols import Task
from trimtab.core.registry import make_task
from trimtab.defaults import controller_for
from trimtab.tasks.run import run_task
from trimtab.testing import check_task

EXAMPLES = Path(__file__).parents[2] / "examples"
CHANCE = 2.30  # nats, of ten digits
KINDS = [
    pytest.param("own_task", "torch", id="torch"),
    pytest.param("own_task_jax", "jax", id="jax"),
    pytest.param("own_task_sklearn", "sklearn", id="sklearn"),
    pytest.param("own_task_tensorflow", "tensorflow", id="tensorflow", marks=pytest.mark.framework),
]


def test_the_example_is_under_40_lines() -> None:
    assert len((EXAMPLES / "own_task.py").read_text(encoding="utf-8").splitlines()) < 40


@pytest.mark.parametrize(("name", "needs"), KINDS)
def test_an_example_is_a_task_that_learns(name: str, needs: str) -> None:
    pytest.importorskip(needs)
    task = make_task(f"examples.{name}:make")
    run = task.start(seed=0)
    before = run.evaluate("test")["loss"]
    metrics = run.advance({"lr": np.full(40, 1e-2)}, 40)

    assert isinstance(task, Task)
    assert metrics.finite == 1.0
    assert run.evaluate("test")["loss"] < 0.7 * before


@pytest.mark.parametrize(("name", "needs"), KINDS)
def test_an_example_keeps_what_is_promised_of_a_task(name: str, needs: str) -> None:
    pytest.importorskip(needs)
    check_task(make_task(f"examples.{name}:make"))


@pytest.mark.parametrize(("name", "needs"), KINDS)
def test_an_example_is_steered_well_from_a_hundredth_of_its_rate(
    name: str, needs: str, recwarn: pytest.WarningsRecorder
) -> None:
    pytest.importorskip(needs)
    task = make_task(f"examples.{name}:make")
    low = task.hyperparameters[0].starting_at(0.01 * task.hyperparameters[0].default)

    def tested(policy: str | None) -> float:
        spec, controller = controller_for(policy, [low])
        return run_task(task, controller, spec).test["loss"]

    assert tested("trimtab-1") < CHANCE / 4  # .31 to .43 were measured
    assert tested(None) > CHANCE / 2  # the rate is too low indeed
    assert not [one for one in recwarn if one.category is BlindPolicyWarning]
