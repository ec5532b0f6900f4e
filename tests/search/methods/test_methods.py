"""Each method: what it spends, what it keeps, what it refuses."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from tests.tiny_task import TinyTask
from trimtab.core.errors import SpecError, UnknownNameError
from trimtab.core.registry import names
from trimtab.search.methods.base import (
    DecisionSchedule,
    SingleRun,
    find_method,
    loss_of,
    parse_methods,
    select,
)
from trimtab.search.methods.pool import grid_levels, nearest_runs
from trimtab.search.methods.probing import steepest_descent
from trimtab.search.methods.schedules import reference_run
from trimtab.search.methods.starts import generator_for

NAMES = [
    "trimtab",
    "reference",
    "constant",
    "cosine",
    "one-cycle",
    "manual",
    "lr-finder",
    "race",
    "grid",
    "random",
    "hyperopt",
    "optuna",
    "asha",
    "pbt",
    "pb2",
    "greedy",
    "prodigy",
    "schedule-free",
    "dog",
    "default",
    "prodigy-linear",
    "prodigy-plus-schedule-free",
    "d-adaptation",
    "adamg",
    "mechanic",
    "gen-optim",
    "efficient-polling-lr-scheduler",
    "open-loop",
    "shuffled",
    "zero",
]


def run_of(validation, test=0.0, **fields):
    usual = {"seed": 0, "start": {"lr": 1.0}, "start_scale": 1.0, "spent": 1.0}
    usual |= {"seconds": 0.0, "steps": 1, "best_step": 1}
    return SingleRun(**usual | fields, validation=validation, test=test)


@pytest.fixture(scope="module")
def pool(quadratic):
    from trimtab.search.methods.base import DecisionSchedule
    from trimtab.search.methods.starts import StartDistribution

    item = quadratic.hyperparameters[0]
    starts = StartDistribution((item,), item.default)
    return [
        reference_run(
            quadratic,
            starts,
            DecisionSchedule(),
            starts.draw(generator_for("pool", i)),
            seed=500 + i,
        )
        for i in range(16)
    ]


# Names and budgets.


def test_the_names_are_those_that_were_promised():
    assert sorted(NAMES) == list(names("method"))
    for name in NAMES:
        assert find_method(name).name == name


def test_a_list_of_methods_is_read_with_its_budgets():
    found = [(method.name, budget) for method, budget in parse_methods("trimtab, random:3,pbt")]
    assert found == [("trimtab", 1), ("random", 3), ("pbt", 8)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("randon:8", "unknown method 'randon'; did you mean 'random'"),
        ("random:x", "'x' is no whole number"),
        ("pbt:3", "a budget of 3 whole runs is not in 4..more"),
        ("asha:1", "a budget of 1 whole runs is not in 2..more"),
        ("race:2", "a budget of 2 whole runs is not in 1..1"),
        ("race,race", "'race' is named twice"),
        (" , ", "none is named"),
    ],
)
def test_a_wrong_list_is_refused_with_what_was_seen(text, words):
    with pytest.raises((SpecError, UnknownNameError), match=words.replace(".", r"\.")):
        parse_methods(text)


def test_the_best_on_validation_is_kept_and_what_is_not_finite_never(quadratic):
    runs = [run_of(math.nan, 1.0), run_of(0.5, 9.0), run_of(0.7, 0.1)]
    assert select(quadratic, runs).result.test == 9.0
    better_is_more = TinyTask(mode="max")
    assert select(better_is_more, runs).result.test == 0.1
    assert loss_of(better_is_more, 0.75) == 0.25


# One run.


@pytest.mark.parametrize(
    "name",
    ["trimtab", "reference", "constant", "cosine", "one-cycle", "zero", "race", "lr-finder"],
)
def test_a_method_of_one_run_spends_one_whole_run_at_most(assign, name):
    # In 20 windows; the bound is that of a run of usual length.
    assignment = replace(assign(0, scale=0.1), windows=DecisionSchedule(least_steps=1))
    outcome = find_method(name).run(assignment)
    assert len(outcome.runs) == 1
    assert 0.8 < outcome.spent <= 1.01  # the race validates five times more than it saves
    assert outcome.result.start_scale == pytest.approx(0.1)
    assert np.isfinite(outcome.result.test)


def test_zero_is_the_reference_bit_for_bit(assign):
    zero, reference = (find_method(name).run(assign(5)).result for name in ("zero", "reference"))
    assert (zero.validation, zero.test) == (reference.validation, reference.test)


def test_the_race_and_the_finder_mend_a_start_that_is_far_too_low(assign):
    reference = find_method("reference").run(assign(1, scale=1e-4)).result
    for name in ("race", "lr-finder"):
        mended = find_method(name).run(assign(1, scale=1e-4)).result
        assert mended.validation < reference.validation
        assert mended.trace["chosen_lr"] > 3 * mended.start["lr"]


def test_the_steepest_descent_lies_before_the_loss_explodes():
    decades = np.linspace(-3, 3, 7)
    assert steepest_descent([4.0, 4.0, 3.9, 2.0, 1.9, math.inf], decades) == 0.0
    assert steepest_descent([4.0, math.inf], decades) == -3.0


def test_the_recipe_is_refused_where_there_is_none(quadratic):
    assert "documents no recipe" in find_method("manual").reason_against(TinyTask())


def test_the_recipe_runs_its_own_values(assign):
    recipe = {"values": {"lr": 0.2, "momentum": 0.3}, "reference": "cosine"}
    task = TinyTask(manual=recipe)
    row = find_method("manual").run(assign(0, task=task, scale=0.01)).result
    assert row.start == {"lr": 0.2}
    assert row.start_scale == pytest.approx(2.0)


@pytest.mark.parametrize("name", ["prodigy", "schedule-free", "dog"])
def test_an_optimiser_is_refused_by_a_task_that_keeps_its_own(quadratic, name):
    assert "takes no optimizer=" in find_method(name).refuses(quadratic)


# Controls.


def test_open_loop_of_a_policy_that_moves_nothing_is_the_reference(assign):
    still = run_of(0.0, trace={"steps": [0, 10], "offsets": [[0.0], [0.0]]})
    replayed = find_method("open-loop").run(assign(2, scale=1.0, others=[still])).result
    reference = find_method("reference").run(assign(2, scale=1.0)).result
    assert replayed.validation == pytest.approx(reference.validation, rel=1e-5)


def test_open_loop_replays_the_mean_of_the_others_in_decades(assign):
    down = run_of(0.0, trace={"steps": [0], "offsets": [[-2.0]]})
    up = run_of(0.0, trace={"steps": [0], "offsets": [[1.0]]})
    replayed = find_method("open-loop").run(assign(2, scale=1.0, others=[down, up])).result
    lower = find_method("reference").run(assign(2, scale=10**-0.5)).result
    assert replayed.validation == pytest.approx(lower.validation, rel=1e-5)


def test_shuffled_follows_the_other_runs_observations(assign):
    steered = find_method("trimtab").run(assign(0, scale=1.0)).result
    told_its_own = find_method("shuffled").run(assign(0, scale=1.0, others=[steered])).result
    assert told_its_own.validation == steered.validation
    other = find_method("trimtab").run(assign(1, scale=100.0)).result
    exchanged = find_method("shuffled").run(assign(0, scale=1.0, others=[other])).result
    assert exchanged.trace["offsets"] != steered.trace["offsets"]


# The pool.


def test_random_draws_by_its_seed_and_keeps_the_best(assign, pool):
    eight = find_method("random").run(assign(4, budget=8, pool=pool))
    again = find_method("random").run(assign(4, budget=8, pool=pool))
    other = find_method("random").run(assign(5, budget=8, pool=pool))
    assert eight == again
    assert eight.runs != other.runs
    assert len({run.seed for run in eight.runs}) == 8
    assert eight.result.validation == min(run.validation for run in eight.runs)
    assert eight.spent == pytest.approx(sum(run.spent for run in eight.runs))


def test_the_grid_takes_the_runs_nearest_to_its_points(assign, pool):
    outcome = find_method("grid").run(assign(0, budget=2, pool=pool))
    ranges = assign(0).starts.ranges()
    shares = sorted(ranges["lr"].share_of(run.start["lr"]) for run in outcome.runs)
    have = np.array([ranges["lr"].share_of(run.start["lr"]) for run in pool])
    nearest = sorted(have[np.argmin(np.abs(have - point))] for point in (0.25, 0.75))
    assert shares == nearest


def test_a_grid_never_takes_a_run_twice(assign, pool):
    ranges = assign(0).starts.ranges()
    assert sorted(nearest_runs(pool, ranges, [16])) == list(range(16))
    assert math.prod(grid_levels(16, 3)) <= 16
    assert grid_levels(16, 2) == [4, 4]


# Searches.


@pytest.mark.parametrize("name", ["hyperopt", "optuna"])
def test_sixteen_runs_find_at_least_as_good_a_run_as_one(assign, name):
    """Over 3 seeds; margin: sixteen came to .24, one to .32 and .45."""
    pytest.importorskip(name)
    method = find_method(name)
    mean = {
        budget: np.mean(
            [method.run(assign(seed, budget=budget)).result.validation for seed in range(3)]
        )
        for budget in (1, 16)
    }
    assert mean[16] <= mean[1]


@pytest.mark.parametrize("name", ["hyperopt", "optuna"])
def test_a_search_stays_within_its_budget_and_its_ranges(assign, name):
    pytest.importorskip(name)
    outcome = find_method(name).run(assign(1, budget=6))
    where = assign(1).starts.ranges()["lr"]
    assert outcome.spent <= 6 + 1e-6
    assert all(where.low <= run.start["lr"] <= where.high for run in outcome.runs)
    assert len({run.seed for run in outcome.runs}) == len(outcome.runs)


def test_optuna_prunes_what_hyperopt_runs_to_the_end(assign):
    pytest.importorskip("optuna")
    outcome = find_method("optuna").run(assign(0, budget=12))
    pruned = [run for run in outcome.runs if run.steps < 40 and not run.diverged]
    assert pruned
    assert len(outcome.runs) > 12


@pytest.mark.parametrize("name", ["hyperopt", "optuna"])
def test_equal_seeds_search_alike(assign, name):
    pytest.importorskip(name)
    method = find_method(name)
    first, again, other = (method.run(assign(seed, budget=4)) for seed in (2, 2, 3))
    assert [run.start for run in first.runs] == [run.start for run in again.runs]
    assert [run.start for run in first.runs] != [run.start for run in other.runs]


@pytest.mark.framework
def test_greedy_never_holds_a_low_start_up_at_its_default_minimum(assign):
    """Its default minimum of 1e-3 would be 10,000 times this start."""
    pytest.importorskip("transformers")
    low = find_method("greedy").run(assign(0, scale=1e-4)).result
    flat = find_method("constant").run(assign(0, scale=1e-4)).result
    assert low.spent == pytest.approx(1.0)
    assert low.validation == pytest.approx(flat.validation, rel=0.05)


@pytest.mark.parametrize("name", ["asha", "pbt", "pb2"])
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own: unclosed files, deprecations
def test_ray_spends_what_it_was_given(assign, name):
    pytest.importorskip("ray")
    outcome = find_method(name).run(assign(0, budget=4))
    assert 2.5 < outcome.spent <= 4 + 1e-6
    assert np.isfinite(outcome.result.test)
    if name != "asha":
        assert len(outcome.runs) == 4
        assert all(run.steps == 40 for run in outcome.runs)


def test_a_larger_budget_of_the_policy_is_spent_on_restarts_and_forks(assign) -> None:
    method = find_method("trimtab")
    assert method.budget == 1
    one, three = (method.run(assign(3, budget=budget)) for budget in (1, 3))
    assert three.runs[0].validation == one.result.validation
    assert three.runs[0].test == one.result.test
    assert three.result.validation <= one.result.validation
    assert 2 < three.spent <= 3 + 1e-6
    assert method.run(assign(3, budget=3)).result.start == three.result.start
