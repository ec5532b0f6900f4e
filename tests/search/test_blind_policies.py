"""Studies and comparisons tell of losses that a task leaves out, where a policy reads them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import trimtab
from tests.search.conftest import Assign
from tests.tiny_task import TinyRun, TinyTask
from trimtab.core.errors import BlindPolicyWarning
from trimtab.core.metrics import Metrics
from trimtab.search.methods.base import find_method
from trimtab.search.methods.schedules import steered_run

LEFT_OUT = r"no train_loss_change, train_loss_std; .*Metrics\.from_losses"
TIMEOUT = 120


class Telling(TinyRun):
    def advance(self, values, steps):
        found = super().advance(values, steps)
        losses = [found.train_loss_first] * steps
        told = Metrics.from_losses(losses, val_loss=found.val_loss, examples=4.0 * steps)
        return told if found.finite else found


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_study_tells_once_whichever_process_does_its_runs(folder: Path, jobs: int) -> None:
    with pytest.warns(BlindPolicyWarning, match=LEFT_OUT) as told:
        trimtab.tune("tiny:make", budget=3, jobs=jobs, policy="trimtab-0", sampler="random")
    assert len([one for one in told if one.category is BlindPolicyWarning]) == 1


def test_a_study_of_a_task_object_tells_as_well(folder: Path) -> None:
    with pytest.warns(BlindPolicyWarning, match=LEFT_OUT):
        trimtab.tune(TinyTask(), budget=1, policy="trimtab-0", sampler="random")


def test_a_study_of_a_task_that_reports_all_tells_nothing(
    folder: Path, recwarn: pytest.WarningsRecorder
) -> None:
    task = TinyTask()
    task.start = lambda *, seed: Telling(task, seed)
    trimtab.tune(task, budget=2, policy="trimtab-0", sampler="random")
    assert not [one for one in recwarn if one.category is BlindPolicyWarning]


@pytest.mark.parametrize(
    ("methods", "times"), [("trimtab,shuffled", 1), ("reference,zero,constant,random:2", 0)]
)
def test_a_comparison_tells_once_and_only_of_a_policy(
    folder: Path, methods: str, times: int
) -> None:
    pytest.importorskip("pyarrow")
    asked = ("--methods", methods, "--seeds", "2", "--pool", "2", "--jobs", "2", "--out", "o")
    command = [sys.executable, "-m", "trimtab", "compare", "tiny:make", *asked]
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT, cwd=folder, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("the policy is blind to them") == times


def test_only_the_policy_itself_is_told_of_what_it_reads(
    assign: Assign, recwarn: pytest.WarningsRecorder
) -> None:
    def told() -> int:
        return len([one for one in recwarn if one.category is BlindPolicyWarning])

    others = [steered_run(assign(1, scale=1.0), lambda inner: inner)]  # this task reports all
    for control in ("shuffled", "open-loop", "zero"):
        find_method(control).run(assign(0, scale=1.0, task=TinyTask(), others=others))
        assert told() == 0, control
    steered_run(assign(0, scale=1.0, task=TinyTask()), lambda inner: inner)
    assert told() == 1
