"""The driver of one run: deterministic, guarded, charged, and closed whatever happens."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests import tiny_task
from tests.tiny_task import TinyTask
from trimtab.core.decision import Decision, Progress, Recorder, Summary
from trimtab.core.errors import MetricError, SpecError, TrimtabWarning, UnknownNameError
from trimtab.core.metrics import Metrics
from trimtab.core.protocols import Task, TrainingRun
from trimtab.core.references import reference_multipliers
from trimtab.defaults import controller_for
from trimtab.tasks.run import RunResult, RunSettings, run_task


class Kept(Recorder):
    """Remembers what a recorder is told."""

    def __init__(self) -> None:
        self.decisions: list[Decision] = []
        self.statuses: list[str] = []
        self.figures: dict[str, object] = {}

    def decision(self, decision: Decision) -> None:
        self.decisions.append(decision)

    def finish(self, summary: Summary, status: str) -> None:
        self.statuses.append(status)

    def add_figures(self, figures) -> None:
        self.figures |= figures

    def state(self) -> dict[str, int]:
        return {"run": 7}


def run(task: TinyTask, policy: str | None = "random", **settings) -> RunResult:
    extra = {name: settings.pop(name) for name in ("recorder", "progress") if name in settings}
    spec, controller = controller_for(policy, task.hyperparameters[:1], decisions=12)
    return run_task(task, controller, spec, RunSettings(**settings), **extra)


def test_the_tiny_task_is_a_task():
    assert isinstance(tiny_task.make(), Task)
    assert isinstance(tiny_task.make().start(seed=0), TrainingRun)


@pytest.mark.parametrize("policy", ["random", None])
def test_equal_arguments_give_equal_runs_and_another_seed_another(policy):
    first, again = run(tiny_task.make(), policy, seed=1), run(tiny_task.make(), policy, seed=1)
    other = run(tiny_task.make(), policy, seed=2)
    timeless = [{**item.to_dict(), "seconds": 0} for item in (first, again, other)]
    assert timeless[0] == timeless[1]
    assert timeless[0]["test"] != timeless[2]["test"]


def test_the_reference_trains_at_exactly_its_schedule():
    result = run(tiny_task.make(), None, reference="cosine")
    expected = 0.1 * reference_multipliers("cosine", 60)
    assert [row["lr"] for row in result.schedule] == expected.tolist()
    assert (result.spent_steps, result.rollbacks, result.diverged) == (60, 0, False)


def test_the_charge_of_a_reference_run_is_one_whole_run():
    assert run(tiny_task.make(), None).spent == pytest.approx(1.0)
    assert run(TinyTask(batch_size=math.nan), None).spent == 1.0


def test_test_metrics_are_those_of_the_best_weights():
    result = run(tiny_task.make(), "random", seed=3)
    assert result.test["loss"] == result.best["loss"]
    assert result.best["step"] <= 60


def test_a_nan_is_rolled_back_cut_and_the_run_finished():
    kept = Kept()
    result = run(tiny_task.nan_at_30(), "random", recorder=kept)
    assert result.rollbacks >= 1
    assert any("rolled back" in item.why() for item in kept.decisions)
    assert math.isfinite(result.test["loss"])
    assert result.spent_steps == 60
    assert kept.statuses == ["finished"]


class OnceNotMeasured(TinyTask):
    """One window's validation gives nan though the weights are sound."""

    def start(self, *, seed):
        run = super().start(seed=seed)
        advance, windows = run.advance, []

        def once(values, steps):
            windows.append(steps)
            metrics = advance(values, steps)
            return metrics._replace(val_loss=math.nan) if len(windows) == 4 else metrics

        run.advance = once
        return run


def test_a_validation_that_is_not_finite_once_is_done_again_and_nothing_else():
    result, usual = run(OnceNotMeasured(), "random"), run(TinyTask(), "random")
    assert result.rollbacks == 0
    assert result.schedule == usual.schedule


def test_a_nan_in_the_last_window_is_survived():
    result = run(TinyTask(nan_at=58), "random")
    assert result.rollbacks >= 1
    assert result.spent_steps == 60
    assert math.isfinite(result.test["loss"])


def test_an_unguarded_run_ends_at_its_first_nan():
    kept = Kept()
    result = run(tiny_task.nan_at_30(), None, recorder=kept)
    assert (result.diverged, result.rollbacks, kept.statuses) == (True, 0, ["diverged"])
    assert result.spent_steps == 30
    assert math.isfinite(result.test["loss"])


def test_watching_changes_nothing_and_proposes():
    kept = Kept()
    watched = run(tiny_task.make(), "random", watch_only=True, recorder=kept)
    plain = run(tiny_task.make(), None)
    assert watched.schedule == plain.schedule
    assert any(item.proposed != item.applied for item in kept.decisions)


def test_held_values_reach_the_training():
    assert (
        run(tiny_task.make(), None, held={"momentum": 0.9}).test != run(tiny_task.make(), None).test
    )


def test_progress_is_told_before_step_1_and_after_each_window():
    told: list[Progress] = []
    result = run(tiny_task.make(), "random", progress=told.append)
    assert len(told) == len(result.decisions) + 1
    assert (told[0].step, told[-1].step, told[-1].decision) == (0, 60, None)
    assert told[0].values["lr"] == pytest.approx(result.schedule[0]["lr"])
    assert told[-1].best == result.best
    steps = [item.step for item in told]
    assert steps == sorted(steps)


def test_the_record_gets_test_metrics_and_the_result_its_number():
    kept = Kept()
    result = run(tiny_task.make(), recorder=kept)
    assert kept.figures["test"] == result.test
    assert result.run == 7


def test_a_task_without_a_test_split_reports_none_of_it():
    with pytest.warns(TrimtabWarning, match="tiny/<i>task</i> has no test split"):
        result = run(TinyTask(has_test=False))
    assert result.test == {}


@pytest.mark.parametrize(
    ("task", "error", "message"),
    [
        (tiny_task.unknown_monitor(), MetricError, r"no 'f1'; it has accuracy, examples, loss"),
        (tiny_task.validates_to_text(), MetricError, r"\{'loss': 'low'\}"),
        (tiny_task.forgetful(), MetricError, "reports steps=1 after a window of 2"),
        (tiny_task.negative_steps(), SpecError, "-5"),
        (tiny_task.breaks_in_the_middle(), OSError, "validation images is gone"),
    ],
)
def test_what_a_task_does_wrong_is_said_and_the_record_closed(task, error, message):
    kept = Kept()
    with pytest.raises(error, match=message):
        run(task, recorder=kept)
    assert kept.statuses == ([] if task.total_steps < 0 else ["failed"])


def test_an_unknown_reference_is_refused_before_anything_runs():
    with pytest.raises(UnknownNameError, match="unknown reference 'cosin'; did you mean 'cosine'"):
        run(TinyTask(start=None), None, reference="cosin")


def test_ctrl_c_closes_the_record():
    kept = Kept()

    def interrupt(progress: Progress) -> None:
        if progress.step > 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tiny_task.make(), recorder=kept, progress=interrupt)
    assert kept.statuses == ["interrupted"]
    assert len(kept.decisions) > 2


def test_the_tiny_task_runs_on_numpy_floats():
    assert isinstance(run(tiny_task.make(), None).schedule[0]["lr"], float)
    assert np.isfinite(run(tiny_task.make(), None).spent)


def test_a_policy_that_is_left_blind_is_told_in_the_first_window():
    with pytest.warns(TrimtabWarning, match=r"no train_loss_change, train_loss_std; .*from_losses"):
        run(tiny_task.make(), "trimtab-1")


def test_losses_of_each_step_leave_no_policy_blind(recwarn):
    class Seeing(tiny_task.TinyRun):
        def advance(self, values, steps):
            found = super().advance(values, steps)
            whole = Metrics.from_losses([found.train_loss_first] * steps, val_loss=found.val_loss)
            return found if found.finite < 1 else whole

    class Task(TinyTask):
        def start(self, *, seed):
            return Seeing(self, seed)

    run(Task(**vars(tiny_task.make())), "trimtab-1")
    assert [one for one in recwarn if "from_losses" in str(one.message)] == []
