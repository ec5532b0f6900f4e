"""The example of a user's own task is short, is found by name, and learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trimtab.core.protocols import Task
from trimtab.core.registry import make_task

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_task.py"


def test_the_example_is_under_40_lines() -> None:
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) < 40


def test_the_example_is_a_task_that_learns() -> None:
    task = make_task("examples.own_task:make")
    run = task.start(seed=0)
    before = run.evaluate("test")["loss"]
    metrics = run.advance({"lr": np.full(40, 1e-2)}, 40)

    assert isinstance(task, Task)
    assert metrics.finite == 1.0
    assert run.evaluate("test")["loss"] < 0.5 * before
