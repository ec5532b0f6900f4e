"""A guard's own errors: told once, and the user's loop goes on as without it."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

import trimtab
from tests.adapters.torch.test_rescue import STEPS, Loop, at, equal, steered, weight
from trimtab.adapters.options import RunOptions
from trimtab.adapters.torch.assembly import _guard_of
from trimtab.adapters.torch.guarded_training import GuardedTorchTraining
from trimtab.adapters.torch.step_guard import StepGuard
from trimtab.adapters.torch.stepper import Stepper
from trimtab.core.errors import AdapterError, RescueError, TrimtabWarning
from trimtab.rescue.engine import RescueEngine
from trimtab.rescue.signals import StepHistory

pytestmark = pytest.mark.filterwarnings("ignore::trimtab.core.errors.TrimtabWarning")

PLACES = [
    (owner, name)
    for owner, names in {
        GuardedTorchTraining: (
            "not_finite first_not_finite undo_forward jumps probe take restore remember close _look"
        ),
        RescueEngine: "begin before_update after_update factor look note_batch tell _record",
        StepHistory: "judge add mean settle",
        StepGuard: "_read _note_batch _cut_rates _mend_scale _tell _give_up",
    }.items()
    for name in names.split()
]


def break_it(monkeypatch, owner, name, after=0):
    """Let a method raise from some call on."""
    whole, calls = getattr(owner, name), []

    def broken(self, *args, **kwargs):
        calls.append(name)
        if len(calls) > after:
            raise ZeroDivisionError("of the guard's own")
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(owner, name, broken)
    return calls


def poisoned(step, batch):
    """Rows that are not finite at two steps, and a spike."""
    x, y = batch
    if step in (60, 70):
        x = x.clone()
        x[3, 0] = math.nan
    return (x * 1e6, y) if step == 65 else (x, y)


def wreck(loop):
    weight(loop).data[0, 0] = math.nan


def told(run):
    """Return the warnings of a run that say that the guard failed."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        made = run()
    return made, [str(one.message) for one in seen if "the guard failed" in str(one.message)]


@pytest.mark.parametrize("after", [0, 1, 40])
@pytest.mark.parametrize(
    ("owner", "name"), PLACES, ids=lambda value: getattr(value, "__name__", value)
)
def test_a_guard_that_fails_in_a_healthy_run_leaves_the_plain_loops_bits(
    monkeypatch, owner, name, after
):
    calls = break_it(monkeypatch, owner, name, after)
    mine, said = told(lambda: Loop().rescued())
    assert len(said) == (len(calls) > after)
    assert equal(mine, Loop().plain())
    mine, said = told(lambda: steered(Loop()))
    assert len(said) <= 1
    assert equal(mine, Loop().plain())


@pytest.mark.parametrize("steers", [False, True], ids=["Rescue", "policy"])
@pytest.mark.parametrize("after", [0, 2])
@pytest.mark.parametrize(
    ("owner", "name"), PLACES, ids=lambda value: getattr(value, "__name__", value)
)
def test_a_guard_that_fails_in_a_faulty_run_does_not_end_it(
    monkeypatch, owner, name, after, steers
):
    break_it(monkeypatch, owner, name, after)
    run = steered if steers else lambda loop, fault: loop.rescued(fault, batch=poisoned)
    mine, said = told(lambda: run(Loop(), at(80, wreck)))
    assert len(said) <= 1
    assert mine.scheduler.last_epoch == STEPS  # all steps were done


def test_a_failure_is_told_with_its_error_and_what_follows(monkeypatch):
    break_it(monkeypatch, RescueEngine, "before_update", after=10)
    with pytest.warns(
        TrimtabWarning,
        match=r"the guard failed \(ZeroDivisionError: of the guard's own\) and is off",
    ):
        mine = Loop().rescued()
    assert equal(mine, Loop().plain())


def test_a_rate_that_was_cut_is_put_back_when_the_guard_fails(monkeypatch):
    loop = Loop()
    guard = StepGuard(
        trimtab.Rescue(loop.optimizer, model=loop.model)._stepper,
        loop.model,
        act=True,
        on_giving_up="stop",
        snapshots="memory",
    )
    guard.begin()
    loop.loss_of(next(iter(loop.batches()))).backward()
    guard.engine.cap = 1e-4
    assert guard.before(torch.tensor(1.0))
    assert loop.optimizer.param_groups[0]["lr"] == pytest.approx(1e-4)
    monkeypatch.setattr(guard.engine, "after_update", None)
    with pytest.warns(TrimtabWarning, match="the guard failed"):
        guard.after(True)
    assert loop.optimizer.param_groups[0]["lr"] == 3e-3


def every(step, batch):
    return (batch[0] * math.nan, batch[1]) if step >= 60 else batch


def test_after_giving_up_a_loop_may_go_on_unguarded():
    with pytest.warns(TrimtabWarning, match="gave up: step 79: every batch fails"):
        mine = Loop().rescued(batch=every, on_giving_up="go-on")
    assert mine.rescue.gave_up.step == 79
    assert mine.scheduler.last_epoch == STEPS
    assert not torch.isfinite(weight(mine)).all()  # nobody keeps the updates out any more


@pytest.mark.parametrize("how", ["stop", "go-on"])
def test_the_guard_policy_gives_up_as_it_was_told(how):
    def break_every(step, loop):
        if step >= 60:
            loop.x[step] = math.nan

    mine = steered(Loop(), break_every, on_giving_up=how)
    sound = all(torch.isfinite(one).all() for one in mine.model.state_dict().values())
    assert sound == (how == "stop")
    assert mine.controller.summary.finished
    with pytest.raises(RescueError, match="every batch fails"):
        steered(Loop(), break_every, on_giving_up="raise")


def test_several_processes_are_refused(monkeypatch):
    class Two:
        count, is_main_process = 2, True

    loop = Loop()
    monkeypatch.setattr("trimtab.adapters.torch.rescue.Processes", Two)
    with pytest.raises(AdapterError, match="one process with whole weights"):
        trimtab.Rescue(loop.optimizer, model=loop.model)
    options = RunOptions(hyperparameters=("lr",), reference="constant", policy="guard")
    stepper = Stepper(loop.optimizer, loop.model)
    with pytest.raises(AdapterError, match="policy='guard': it guards one process"):
        _guard_of(options, stepper, loop.model, Two())


def test_warnings_as_errors_do_not_end_a_rescued_run():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mine = Loop().rescued(at(60, wreck))
    assert mine.rescue.events
