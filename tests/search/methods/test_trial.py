"""A trial driven window by window is the run that `run_task` makes."""

from __future__ import annotations

import numpy as np
import pytest

from tests.tiny_task import TinyTask
from trimtab.search.methods.base import DecisionSchedule
from trimtab.search.methods.schedules import reference_run
from trimtab.search.methods.trial import Trial


def outcome(row):
    return {name: value for name, value in vars(row).items() if name not in ("seconds", "trace")}


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0, 1000.0])
def test_a_trial_along_the_reference_equals_the_driven_run(assign, scale):
    asked = assign(3, scale=scale)
    trial = Trial(asked.task, seed=3, windows=asked.windows)
    while not trial.finished:
        trial.follow(asked.start.values)
    whole = reference_run(asked.task, asked.starts, asked.windows, asked.start, seed=3)
    assert outcome(trial.result(asked.start)) == outcome(whole)


def test_a_lost_trial_keeps_its_best_weights_and_is_charged_its_steps(assign):
    task = TinyTask(nan_at=30)
    asked = assign(1, scale=1.0, task=task)
    trial = Trial(task, seed=1, windows=DecisionSchedule())
    while not trial.finished:
        trial.follow(asked.start.values)
    row = trial.result(asked.start)
    assert row.diverged
    assert row.steps == 31  # the window goes on to the step whose loss is not finite
    assert 0 < row.spent < 1
    whole = reference_run(task, asked.starts, DecisionSchedule(), asked.start, seed=1)
    assert outcome(row) == outcome(whole)
    assert np.isfinite(row.test)


def test_a_copied_checkpoint_brings_weights_and_best_but_not_charge(assign):
    asked = assign(0, scale=1.0)
    good = Trial(asked.task, seed=0, windows=asked.windows)
    poor = Trial(asked.task, seed=1, windows=asked.windows)
    for _ in range(4):
        good.follow(asked.start.values)
        poor.follow({"lr": asked.start.values["lr"] * 1e-4})
    spent = poor.spent
    poor.take(good.keep())
    assert poor.best_loss == good.best_loss
    assert poor.test() == good.test()
    assert poor.spent == spent


def test_a_probe_that_is_not_charged_for_its_validation_costs_its_steps_only(assign):
    task = TinyTask()
    trial = Trial(task, seed=0, windows=DecisionSchedule())
    before = trial.spent
    trial.train({"lr": np.full(3, 0.1)}, 3, charge_validation=False)
    whole = 60 * 4 + 16 * 8 / 3  # 60 steps have 15 windows
    assert trial.spent - before == pytest.approx(12 / whole)


def test_a_task_without_a_test_split_gives_nan(assign):
    task = TinyTask(has_test=False)
    asked = assign(0, task=task)
    trial = Trial(task, seed=0, windows=DecisionSchedule())
    trial.follow(asked.start.values)
    assert np.isnan(trial.result(asked.start).test)
