"""Our figures are rliable's, by numbers that the published package gave (tests/golden)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trimtab.records.measures import interquartile_mean, probability_of_improvement
from trimtab.search.comparison import figures

GOLDEN = Path(__file__).parents[2] / "golden" / "rliable_figures.json"
# Ends of intervals are quantiles of 20,000 samples there and 1,000 here: 3 standard errors of ours.
LOOSE = 0.06


@pytest.fixture(scope="module")
def theirs() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(GOLDEN.read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def losses(theirs: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(theirs["first"]), np.array(theirs["second"])


def task_of(label: str, losses: np.ndarray) -> figures._Task:
    """Return a task whose regrets are its losses."""
    by_seed = {(None, seed): float(loss) for seed, loss in enumerate(losses)}
    return figures._Task(np.empty(0), tuned=0.0, median=1.0, flagged=False, losses={label: by_seed})


def test_the_interquartile_mean_is_the_trimmed_mean(
    theirs: dict[str, Any], losses: tuple[np.ndarray, np.ndarray]
) -> None:
    first, _ = losses
    assert interquartile_mean(first.ravel()) == pytest.approx(theirs["iqm"], rel=1e-12)
    ours = [interquartile_mean(column) for column in first.T]
    assert ours == pytest.approx(theirs["iqm_of_one_task"], rel=1e-12)


def test_the_unpaired_probability_of_improvement_is_theirs(
    theirs: dict[str, Any], losses: tuple[np.ndarray, np.ndarray]
) -> None:
    first, second = losses
    shares = [
        probability_of_improvement(mine[:, None], yours[None, :])
        for mine, yours in zip(first.T, second.T, strict=True)
    ]
    assert np.mean(shares) == pytest.approx(theirs["improvement"], rel=1e-12)


def test_pairing_changes_the_question_not_the_ties(
    losses: tuple[np.ndarray, np.ndarray],
) -> None:
    first, second = losses
    paired = probability_of_improvement(first[: len(second), 0], second[:, 0])
    unpaired = probability_of_improvement(first[:, 0][:, None], second[:, 0][None, :])
    assert paired != unpaired
    assert probability_of_improvement(first, first) == 0.5


def test_the_performance_profile_counts_runs_over_all_tasks(
    theirs: dict[str, Any],
    losses: tuple[np.ndarray, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(figures, "PROFILE_LEVELS", tuple(theirs["levels"]))
    tasks = [task_of("one", column) for column in losses[0].T]
    assert figures._profile(tasks, "one") == pytest.approx(theirs["profile_below"], rel=1e-12)


def test_the_bootstrap_draws_tasks_and_within_them_seeds(
    theirs: dict[str, Any], losses: tuple[np.ndarray, np.ndarray]
) -> None:
    tasks = [task_of("one", column) for column in losses[0].T]
    ours = figures._interval(tasks, "one", figures._regrets("one"), figures._regret)
    assert ours is not None
    assert ours["value"] == pytest.approx(theirs["iqm"], rel=1e-12)
    low, high = theirs["iqm_interval_over_tasks_and_runs"]
    assert (ours["low"], ours["high"]) == pytest.approx((low, high), rel=LOOSE)
    narrow = theirs["iqm_interval_over_runs"]
    assert high - low > 1.2 * (narrow[1] - narrow[0]), "the two bootstraps are told apart"
