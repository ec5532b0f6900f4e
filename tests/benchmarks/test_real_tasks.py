"""Figures of a finished comparison of real tasks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import real_tasks
from trimtab.search.comparison.figures import comparison_figures
from trimtab.search.comparison.table import read_parquet


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


def test_what_a_run_is_worth_is_told_of_some_tasks() -> None:
    folder = Path(real_tasks.__file__).parent / "evaluation"
    comparison, _ = read_parquet(folder / "trimtab-1-ring-d-other-six.parquet")
    names = set(comparison.tasks)
    assert real_tasks.worth(comparison, {"keras/credit"})["value"] == 16.0  # the pool's size
    assert 2.0 < real_tasks.worth(comparison, {"vision/tree-density"})["value"] < 3.0
    everything = comparison_figures(comparison)["n_star"]["trimtab"]
    assert real_tasks.worth(comparison, names) == everything
    assert real_tasks.worth(comparison, names - {"keras/credit"})["value"] < everything["value"]
