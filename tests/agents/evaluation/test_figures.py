"""The figures of a ring, against brute force and hand-made cases."""

from itertools import combinations

import numpy as np
import pytest

from trimtab.agents.evaluation.figures import FACTORS, figures
from trimtab.records.measures import (
    best_of_n,
    bootstrap,
    interquartile_mean,
    probability_of_improvement,
    runs_worth,
)


def test_best_of_n_equals_the_mean_over_all_subsets() -> None:
    generator = np.random.default_rng(3)
    validation, test = generator.random(7), generator.random(7)
    curve = best_of_n(validation, test)
    for n in range(1, 8):
        chosen = [
            test[min(subset, key=lambda i: validation[i])] for subset in combinations(range(7), n)
        ]
        assert curve[n - 1] == pytest.approx(np.mean(chosen))


def test_runs_worth_is_zero_below_one_run_and_capped_at_the_pool() -> None:
    curve = np.array([1.0, 0.8, 0.7, 0.65])
    assert runs_worth(curve, 1.1) == 0.0
    assert runs_worth(curve, 0.1) == 4.0
    assert runs_worth(curve, 1.0) == pytest.approx(1.0)
    assert runs_worth(curve, 0.8) == pytest.approx(2.0)
    assert runs_worth(curve, 0.75) == pytest.approx(np.sqrt(6.0))
    assert runs_worth(curve, 0.8, charge=2.0) == pytest.approx(1.0)


def test_runs_worth_cannot_be_told_where_no_run_of_the_pool_is_finite() -> None:
    for ruined in (np.nan, np.inf):
        for loss in (0.1, np.nan):
            assert np.isnan(runs_worth(np.full(4, ruined), loss))
    curve = np.array([1.0, 0.8, 0.7, 0.65])
    assert (runs_worth(curve, np.nan), runs_worth(curve, np.inf)) == (0.0, 0.0)


def test_interquartile_mean_ignores_a_quarter_at_each_end() -> None:
    assert interquartile_mean(np.array([-1e9, 1.0, 2.0, 3.0, 4.0, 1e9, 2.5, 2.5])) == 2.5


def test_probability_of_improvement_counts_ties_as_half_and_ruin_as_loss() -> None:
    mine, theirs = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 3.0, 2.0, np.nan])
    assert probability_of_improvement(mine, theirs) == pytest.approx((0.5 + 1 + 0 + 1) / 4)


def test_bootstrap_interval_holds_the_value_and_repeats() -> None:
    values = list(np.random.default_rng(0).normal(size=60))
    first = bootstrap(values, lambda some: float(np.mean(some)))
    assert first["low"] < first["value"] < first["high"]
    assert first == bootstrap(values, lambda some: float(np.mean(some)))


def _rows(steered: float) -> list[dict[str, float | str]]:
    rows: list[dict[str, float | str]] = []

    def add(task: int, method: str, factor: float, seed: int, test: float) -> None:
        rows.append(
            {
                "task": task,
                "method": method,
                "factor": factor,
                "seed": seed,
                "validation": test,
                "test": test,
                "spent": 1.0,
                "rollbacks": 0.0,
                "diverged": 0.0,
                "frozen": 0.0,
                "residual_use": 1.0,
            }
        )

    for task in range(4):
        for seed in range(64):
            add(task, "pool", 1.0, seed, 0.5 + seed / 64)
        for seed in range(3):
            add(task, "tuned", 1.0, seed, 0.5)
        for factor in FACTORS:
            for seed in range(2):
                add(task, "trimtab", factor, seed, steered)
                for rival in ("zero", "race", "lr-finder", "open-loop", "shuffled"):
                    add(task, rival, factor, seed, 0.6)
        for seed in range(2):
            add(task, "floor", 1.0, seed, 0.6)
    return rows


def test_figures_of_a_perfect_and_a_harmful_controller() -> None:
    perfect, harmful = figures(_rows(0.5)), figures(_rows(1.4))
    assert perfect["n_star"]["value"] == 64.0
    assert perfect["regret_by_start"]["100"]["value"] == pytest.approx(0.0)
    assert perfect["p_over_race"]["value"] == 1.0
    assert perfect["harm"]["value"] == 0.0
    assert harmful["harm"]["value"] == 1.0
    assert harmful["harm_floor"]["value"] == 0.0
    assert harmful["n_star_by_start"]["1"]["value"] == 0.0
    assert harmful["p_over_reference"]["value"] == 0.0


def _with_ruined_pools(*tasks: int) -> list[dict[str, float | str]]:
    return [
        row | {"validation": np.nan, "test": np.nan}
        if row["method"] == "pool" and row["task"] in tasks
        else row
        for row in _rows(0.55)
    ]


def test_a_task_whose_pool_is_ruined_is_left_out_of_what_the_pool_measures() -> None:
    whole, found = figures(_rows(0.55)), figures(_with_ruined_pools(1))
    assert "untold" not in whole
    assert found["untold"]["value"] == 0.25
    for name in ("n_star", "regret", "harm", "harm_floor", "capped", "p_over_race", "residual_use"):
        assert found[name]["value"] == pytest.approx(whole[name]["value"])


def test_what_no_pool_measures_cannot_be_told() -> None:
    found = figures(_with_ruined_pools(0, 1, 2, 3))
    by_start = [found[f"{name}_by_start"]["100"] for name in ("n_star", "regret")]
    for figure in (found["n_star"], found["regret"], found["harm"], found["capped"], *by_start):
        assert all(np.isnan(list(figure.values())))
    assert found["untold"]["value"] == found["p_over_race"]["value"] == 1.0
