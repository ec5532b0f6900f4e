from __future__ import annotations

import numpy as np
import pytest

from trimtab.cli.options import start_values
from trimtab.controllers.fixed import ReferenceController
from trimtab.core.spec import ControlSpec
from trimtab.envs.simulators import tasks, tuning
from trimtab.search.comparison.jobs import has_known_rate, tuning_seeds
from trimtab.tasks.run import RunSettings, run_task

FACTORS = (0.01, 1.0, 30.0, 3000.0)
SEEDS = (970_001, 970_002)


def _single(task: tasks.SimulatedTask, rate: float, seed: int) -> float:
    spec = ControlSpec(hyperparameters=(task.hyperparameters[0].starting_at(rate),))
    result = run_task(task, ReferenceController(spec), spec, RunSettings(seed=seed))
    return result.best["loss"]


@pytest.mark.parametrize("name", ["simulated/quadratic", "simulated/mlp"])
def test_a_grid_at_once_is_the_single_runs(name: str) -> None:
    task = tasks.SimulatedTask(name, 0, "tiny")
    family = tasks._family(name, ("lr",))
    usual = task.hyperparameters[0].default
    rates = [usual * factor for factor in FACTORS]

    losses = tuning.grid_losses(
        family,
        task.bucket,
        tasks.task_key(0),
        np.stack([tasks.run_key(seed) for seed in SEEDS]),
        rates,
        task.total_steps,
    )

    alone = np.array([[_single(task, rate, seed) for seed in SEEDS] for rate in rates])
    np.testing.assert_allclose(losses, alone, rtol=1e-3)
    assert tuning.best_rate(rates, losses) == rates[int(alone.mean(axis=1).argmin())]


def test_a_rate_that_diverges_with_one_seed_is_not_chosen() -> None:
    losses = np.array([[1.0, 1.0], [0.1, np.nan], [0.9, 0.8]])
    assert tuning.best_rate([1.0, 2.0, 3.0], losses) == 3.0


def test_a_task_tells_its_tuned_rate_when_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def grid(family, bucket, task_key, run_keys, rates, total_steps):
        asked.append((len(rates), len(run_keys), total_steps))
        return np.abs(np.log(np.array(rates) / rates[20]))[:, None]

    monkeypatch.setattr(tuning, "grid_losses", grid)
    task = tasks.quadratic(999_983, "tiny")
    assert has_known_rate(task)
    assert tuning_seeds(task) == 3
    assert not asked

    usual = task.hyperparameters[0].default
    assert task.tuned_lr == pytest.approx(usual * 10.0 ** tuning.DECADES[20])
    assert task.tuned_lr == task.tuned_lr
    assert asked == [(32, 3, 40)]


def test_a_tuned_quadratic_does_well() -> None:
    task = tasks.quadratic(17, "tiny")
    best, *others = (_single(task, task.tuned_lr * factor, 0) for factor in (1.0, 0.01, 100.0))
    assert best < min(others)


def test_a_start_scale_counts_from_the_tuned_rate() -> None:
    task = tasks.quadratic(17, "tiny")
    (lr,), _ = start_values(task, ("lr",), {}, 0.01)
    assert lr.default == 0.01 * task.tuned_lr
