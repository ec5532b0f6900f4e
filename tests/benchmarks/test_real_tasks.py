"""Figures of a finished comparison of real tasks."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import real_tasks


def _rows() -> list[dict[str, object]]:
    rows = []
    for task, worse in (("a", 1.2), ("b", 1.0)):
        for factor in (0.01, 1.0):
            for seed in (0, 1):
                tests = {"reference": 1.0 + seed, "open-loop": 9.0}
                tests["trimtab"] = (1.0 + seed) * (worse if factor == 1 else 0.5)
                rows += [
                    {"row": "run", "task": task, "factor": factor, "method": m, "run_seed": seed}
                    | {"test": test}
                    for m, test in tests.items()
                ]
    rows.append(rows[0] | {"row": "result", "test": 77.0})
    return rows


def test_losses_are_by_task_and_start_and_paired_by_seed() -> None:
    losses = real_tasks.losses_of(_rows())
    assert set(losses) == {("a", 0.01), ("a", 1.0), ("b", 0.01), ("b", 1.0)}
    assert losses["a", 0.01].tolist() == [[1.0, 2.0], [0.5, 1.0], [9.0, 9.0]]


def test_harm_is_the_mean_at_the_tuned_start_and_its_interval_covers_the_tasks() -> None:
    mean, low, high = real_tasks.harm_at_tuned(real_tasks.losses_of(_rows()))
    assert mean == pytest.approx(0.1)
    assert (low, high) == (pytest.approx(0.0), pytest.approx(0.2))
    assert np.isfinite([mean, low, high]).all()
