"""The figures of a comparison, on rows made by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trimtab.search.comparison.compare import Comparison, Entry, TaskResult
from trimtab.search.comparison.figures import comparison_figures
from trimtab.search.comparison.table import result_rows, tidy_rows
from trimtab.search.methods.base import Outcome, SingleRun


def run(test: float, validation: float | None = None, **fields: object) -> SingleRun:
    usual = {"seed": 0, "start": {"lr": 1.0}, "start_scale": 1.0, "spent": 1.0}
    usual |= {"seconds": 2.0, "steps": 10, "best_step": 5}
    value = test if validation is None else validation
    return SingleRun(**{**usual, **fields}, validation=value, test=test)  # type: ignore[arg-type]


def entry(
    method: str,
    seed: int,
    test: float,
    *,
    task: str = "a",
    budget: int = 1,
    scale: float | None = None,
    spent: float = 1.0,
) -> Entry:
    return Entry(task, method, budget, seed, scale, Outcome((run(test, spent=spent),), 0))


def task(name: str = "a", mode: str = "min", shift: float = 0.0) -> TaskResult:
    """Loss .1 when tuned; a pool of 8 from .1 to .8, its median at .45."""
    pool = tuple(run(shift + round(0.1 * i, 1), seed=i) for i in range(1, 9))
    return TaskResult(name, "loss", mode, 1e-3, (run(shift + 0.1), run(shift + 0.1)), pool)


def figures(*entries: Entry, tasks: tuple[TaskResult, ...] = ()) -> dict[str, object]:
    given = tasks or (task(),)
    return comparison_figures(Comparison({one.name: one for one in given}, entries, ()))


def test_regret_is_zero_when_tuned_and_one_at_the_median():
    found = figures(entry("trimtab", 0, 0.1), entry("reference", 0, 0.45))
    assert found["regret"]["trimtab"]["value"] == pytest.approx(0.0)
    assert found["regret"]["reference"]["value"] == pytest.approx(1.0)


def test_n_star_is_divided_by_the_charge():
    worst = [0.1 * i for i in range(1, 9)]
    mean = float(np.mean(worst))
    found = figures(
        entry("reference", 0, mean),
        entry("trimtab", 0, 0.1),
        entry("race", 0, 0.1, spent=2.0),
        entry("cosine", 0, 0.9),
    )
    values = {name: value["value"] for name, value in found["n_star"].items()}
    assert values == pytest.approx({"reference": 1.0, "trimtab": 8.0, "race": 4.0, "cosine": 0.0})
    assert found["capped"] == {"reference": 0.0, "trimtab": 1.0, "race": 1.0, "cosine": 0.0}


def test_one_steered_run_keeps_its_name_beside_larger_budgets():
    found = figures(
        entry("trimtab", 0, 0.2),
        entry("trimtab", 0, 0.1, budget=4, spent=4.0),
        entry("random", 0, 0.3),
        entry("random", 0, 0.1, budget=8, spent=8.0),
    )
    assert found["methods"] == ["trimtab", "trimtab:4", "random:1", "random:8"]
    assert found["steered"]["random:8"]["spent"] == pytest.approx(1.0)
    assert found["probability_of_improvement"]["random:1"]["value"] == pytest.approx(1.0)


def test_improvement_is_paired_by_seed_and_ties_count_half():
    found = figures(
        *(entry("trimtab", seed, loss) for seed, loss in enumerate([0.1, 0.2, 0.3, 0.4])),
        *(entry("race", seed, loss) for seed, loss in enumerate([0.2, 0.2, 0.2, 0.5])),
        *(entry("random", seed, 0.25, budget=8) for seed in range(4)),
    )
    shares = found["probability_of_improvement"]
    assert shares["race"]["value"] == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert shares["random:8"]["value"] == pytest.approx(0.5)
    assert shares["race"]["low"] <= shares["race"]["value"] <= shares["race"]["high"]
    assert "trimtab" not in shares


def test_a_method_without_a_start_is_paired_with_every_start():
    found = figures(
        *(entry("trimtab", 0, loss, scale=scale) for scale, loss in ((0.01, 0.1), (100.0, 0.9))),
        entry("manual", 0, 0.5),
    )
    assert found["probability_of_improvement"]["manual"]["value"] == 0.5
    assert found["regret_by_start"]["trimtab"]["0.01"]["value"] == pytest.approx(0.0)
    assert found["regret_by_start"]["manual"] == {"0.01": None, "100": None}


def test_a_metric_to_be_maximised_gives_the_same_figures():
    pool = tuple(run(1 - round(0.1 * i, 1), seed=i) for i in range(1, 9))
    accuracy = TaskResult("a", "accuracy", "max", 1e-3, (run(0.9),), pool)
    found = figures(entry("trimtab", 0, 0.9), entry("race", 0, 0.55), tasks=(accuracy,))
    assert found["regret"]["race"]["value"] == pytest.approx(1.0)
    assert found["probability_of_improvement"]["race"]["value"] == 1.0
    assert found["test"]["a"] == {"trimtab": 0.9, "race": 0.55}


def test_the_interval_covers_what_seeds_and_tasks_leave_open():
    losses = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    one = figures(*(entry("trimtab", seed, loss) for seed, loss in enumerate(losses)))
    wide = one["regret"]["trimtab"]
    assert wide["low"] < wide["value"] < wide["high"]
    same = figures(*(entry("trimtab", seed, 0.3) for seed in range(6)))["regret"]["trimtab"]
    assert same["low"] == same["value"] == same["high"]


def test_what_is_not_finite_counts_as_the_worst():
    found = figures(entry("trimtab", 0, 0.1), entry("trimtab", 1, math.nan), entry("race", 1, 0.2))
    assert math.isfinite(found["regret"]["trimtab"]["value"])
    assert found["probability_of_improvement"]["race"]["value"] == 0.0


@pytest.mark.parametrize("steered", [0.1, math.nan])
def test_a_pool_without_a_finite_run_tells_neither_n_star_nor_regret(steered):
    pool = tuple(run(math.nan, seed=i) for i in range(8))
    ruined = TaskResult("b", "loss", "min", 1e-3, (run(0.1), run(0.1)), pool)
    alone = figures(entry("trimtab", 0, steered, task="b"), tasks=(ruined,))
    names = ("n_star", "regret", "capped")
    assert [alone[name]["trimtab"] for name in names] == [None, None, None]
    entries = (entry("trimtab", 0, 0.2), entry("trimtab", 0, steered, task="b"))
    beside, without = figures(*entries, tasks=(task(), ruined)), figures(entries[0])
    assert [beside[name] for name in names] == [without[name] for name in names]


def test_a_task_whose_median_is_within_the_noise_is_flagged():
    pool = tuple(run(value, seed=i) for i, value in enumerate([0.1, 0.9, 0.12, 0.13]))
    noisy = TaskResult("a", "loss", "min", 1e-3, (run(0.1), run(0.11)), pool)
    assert figures(entry("trimtab", 0, 0.1), tasks=(noisy,))["tasks"]["a"]["flagged"]
    clear = tuple(run(1.0 + 0.01 * i, seed=i) for i in range(8))
    plain = TaskResult("a", "loss", "min", 1e-3, (run(0.1), run(0.11)), clear)
    assert not figures(entry("trimtab", 0, 0.1), tasks=(plain,))["tasks"]["a"]["flagged"]


def test_the_profile_is_the_share_below_each_regret():
    found = figures(*(entry("trimtab", seed, loss) for seed, loss in enumerate([0.1, 0.45])))
    shares = dict(zip(found["profile_levels"], found["profile"]["trimtab"], strict=True))
    assert (shares[-0.5], shares[0.0], shares[0.95], shares[1.0]) == (0.0, 0.5, 0.5, 1.0)


def test_a_result_has_a_row_and_each_of_its_runs_another():
    runs = (run(0.3, seed=7, start={"lr": 0.5}, start_scale=5.0), run(0.2, seed=8))
    found = Comparison({"a": task()}, (Entry("a", "random", 2, 0, None, Outcome(runs, 1)),), ())
    rows = [row for row in tidy_rows(found) if row["method"] == "random"]
    assert [(row["row"], row["run"], row["run_seed"], row["chosen"]) for row in rows] == [
        ("result", 1, 8, True),
        ("run", 0, 7, False),
        ("run", 1, 8, True),
    ]
    assert (rows[0]["spent"], rows[1]["spent"]) == (2.0, 1.0)
    assert (rows[1]["start_lr"], rows[1]["start_scale"]) == (0.5, 5.0)
    assert result_rows(found)[0]["spent"] == 2.0
