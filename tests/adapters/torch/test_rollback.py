"""Runs that go wrong: rolled back, cut, finished, reported; never a crash."""

from __future__ import annotations

import gc
import math
import weakref
from functools import partial

import pytest
import torch

from trimtab.controllers.fixed import RandomController, ReplayController
from trimtab.core.control import no_action
from trimtab.core.errors import AdapterError, TrimtabWarning
from trimtab.core.guard import Reason
from trimtab.core.spec import ControlSpec

SGD = partial(torch.optim.SGD, momentum=0.9)
PLAIN = ControlSpec(decisions=10, front_windows=0)


def idle(spec: ControlSpec = PLAIN) -> ReplayController:
    """A guarded controller that moves nothing, under windows of six steps."""
    controller = ReplayController(spec, [], name="idle")
    controller.spec = spec  # type: ignore[attr-defined]
    return controller


def finite(state: list[torch.Tensor]) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in state)


@pytest.mark.parametrize("place", ["memory", "cpu", "disk"])
@pytest.mark.parametrize("bad", [0, 17, 55, 59], ids="step {}".format)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_rolls_back_and_the_run_is_finished(loop, place, bad, value):
    it = loop(wrecked={bad: value})
    summary = it.run_steered(policy=idle(), decisions=10, snapshots=place, keep_best=False).summary

    assert summary.rollbacks == 1
    assert not summary.diverged
    assert summary.finished
    assert summary.spent_steps == 60
    assert len(summary.schedule) == 60
    assert finite(it.state())
    if bad < 59:
        back = next(d for d in summary.decisions if d.restored)
        assert back.step == bad + 1, "the window did not end at once"
        assert back.reason["lr"] & Reason.CUT
        assert back.applied["lr"] == pytest.approx(1e-2 * 10**-0.7, rel=1e-5)


@pytest.mark.parametrize("bad", [7, 17, 55, 59], ids="step {}".format)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_batch_that_alone_is_to_blame_is_skipped_and_costs_one_update(loop, equal, bad, value):
    it, other = loop(wrecked={bad: value}, spared=(bad,)), loop()
    states = []
    with pytest.warns(TrimtabWarning, match=f"step {bad}: loss not finite .* batch was skipped"):
        summary = it.run_steered(
            policy=idle(),
            decisions=10,
            keep_best=False,
            after=lambda step: states.append([w.detach().clone() for w in it.model.parameters()]),
        ).summary
    usual = other.run_steered(policy=idle(), decisions=10, keep_best=False).summary

    assert (summary.rollbacks, summary.restores, summary.diverged) == (0, 0, False)
    assert summary.schedule == usual.schedule
    assert [d.step for d in summary.decisions] == [d.step for d in usual.decisions]
    assert all(math.isfinite(d.metrics.train_loss) for d in summary.decisions[1:])
    assert equal(states[bad], states[bad - 1])
    assert finite(it.state())


def test_a_bad_row_that_comes_again_and_again_does_not_end_the_runs_improvement(loop):
    steps = tuple(range(5, 60, 7))
    it = loop(wrecked=dict.fromkeys(steps, math.nan), spared=steps)
    controller = it.run_steered(policy=idle(), decisions=10)
    assert [event.step for event in controller.events] == list(steps)
    assert not controller.summary.diverged
    plain = loop().run_steered(policy=idle(), decisions=10).summary
    assert controller.summary.best["loss"] < 1.2 * plain.best["loss"]  # 8 of 60 updates are lost
    assert controller.summary.best["step"] > 40


def test_running_statistics_that_a_bad_batch_poisoned_are_those_of_the_windows_begin(loop):
    it = loop()
    it.begin()
    bad = it.inputs.clone()
    bad[:, 0] = math.nan
    controller = it.controller(policy=idle(), decisions=10)
    with controller:
        for step in range(60):
            if step == 18:
                mean, variance = it.model[1].running_mean.clone(), it.model[1].running_var.clone()
            chosen = torch.randint(0, 200, (16,))
            rows = (bad if step == 20 else it.inputs)[chosen], it.labels[chosen]
            loss = controller.backward(lambda b: it.loss_fn(it.model(b[0]), b[1]), rows)
            controller.step(loss)
            assert finite(list(it.model.buffers()))
            if step == 20:
                assert torch.equal(it.model[1].running_mean, mean)
                assert torch.equal(it.model[1].running_var, variance)
    (event,) = controller.events
    assert event.where == "the batch itself"
    assert event.batch["rows"] == list(range(16))
    assert controller.summary.rollbacks == 0


def test_a_mask_of_minus_infinity_lets_a_bad_batch_be_skipped(loop):
    it = loop(wrecked={20: math.nan}, spared=(20,))
    it.model.register_buffer("mask", torch.full((3, 3), -math.inf).triu(1))
    assert it.run_steered(policy=idle(), decisions=10).summary.rollbacks == 0


def test_batches_that_are_all_bad_end_in_rollbacks(loop):
    steps = tuple(range(10, 60))
    it = loop(wrecked=dict.fromkeys(steps, math.nan), spared=steps)
    controller = it.run_steered(policy=idle(), decisions=10)
    assert [e.fault for e in controller.events][-1] == "every batch fails"
    assert controller.summary.rollbacks >= 1
    assert controller.summary.diverged
    assert finite(it.state())


def best_after_each_step(it, controller):
    """Train, and yield after each step its number and the best weights and optimiser state."""
    it.begin()
    best = it.state()
    with controller:
        for step, loss in enumerate(it.losses()):
            loss.backward()
            controller.step(loss)
            if controller.summary.best["step"] == step + 1:
                best = it.state()
            yield step, best


def test_the_weights_and_the_optimiser_go_back_to_the_best(loop, equal):
    it = loop(wrecked={32: math.nan})
    controller = it.controller(policy=idle(), decisions=10)
    for step, best in best_after_each_step(it, controller):
        if step == 32:
            assert controller.summary.decisions[-1].restored
            assert equal(it.state(), best)
            break
    else:
        pytest.fail("the run ended before its loss was wrecked")


@pytest.mark.parametrize("keep_best", [True, False])
def test_a_short_window_that_ended_worse_is_undone(loop, equal, keep_best):
    short = {"decisions": 10, "front_windows": 3, "front_share": 0.1, "entry": 0.0}
    spec = ControlSpec(**short, undo=1e-6, ruin=math.inf, explosion=1e9)
    it = loop(learning_rate=3.0)
    controller = it.controller(policy=idle(spec), decisions=10, keep_best=keep_best)
    undone = 0
    for step, best in best_after_each_step(it, controller):
        decision = controller.summary.decisions[-1]
        if decision.step == step + 1 and decision.reason["lr"] & Reason.UNDONE:
            undone += 1
            assert decision.restored
            assert decision.step <= 18
            assert decision.applied["lr"] == pytest.approx(3.0, rel=1e-5)
            assert equal(it.state(), best)
    assert undone > 0, "no window ended worse; the test proves nothing"
    assert (controller.summary.restores, controller.summary.rollbacks) == (undone, 0)


def test_an_update_that_would_not_be_finite_is_never_made(loop):
    it = loop(wrecked={10: math.nan})
    seen = []
    it.optimizer.register_step_pre_hook(
        lambda *_: seen.append(all(torch.isfinite(w.grad).all() for w in it.model.parameters()))
    )
    it.run_steered(policy=idle(), decisions=10)

    assert len(seen) == 59
    assert all(seen)


def test_an_exploding_rate_is_rolled_back_and_cut_until_training_works(loop):
    it = loop(make_optimizer=SGD, learning_rate=300.0, steps=120)
    spec = ControlSpec(decisions=20, front_windows=0)
    controller = it.run_steered(policy=idle(spec), decisions=20)
    summary = controller.summary

    assert summary.rollbacks >= 1
    assert summary.decisions[-1].applied["lr"] < 300.0
    assert summary.best["loss"] < summary.decisions[0].measured["loss"]
    assert finite(it.state())


def test_the_fourth_divergence_gives_up_and_the_loop_goes_on(loop, equal, listener):
    it = loop(wrecked=dict.fromkeys((7, 14, 21, 28, 40), math.nan), spared=(40,))
    states: list[list[torch.Tensor]] = []

    def note(step: int) -> None:
        states.append([weight.detach().clone() for weight in it.model.parameters()])

    with pytest.warns(TrimtabWarning, match="diverged 4 times|rolled back") as said:
        summary = it.run_steered(policy=idle(), decisions=10, after=note).summary

    assert summary.diverged
    assert summary.rollbacks == 4
    assert summary.spent_steps == 60
    assert summary.finished
    assert listener.status == "diverged"
    assert not equal(states[35], states[30]), "the loop did not go on"
    assert equal(states[40], states[39]), "a loss that was not finite moved the weights"
    held = {row["lr"] / (1 - row["step"] / 60) for row in summary.schedule[29:]}
    assert max(held) == pytest.approx(min(held), rel=1e-9)
    lines = [str(one.message) for one in said]
    told = [line for line in lines if "a loss is not finite; rolled back to the best" in line]
    assert [line.partition(":")[0] for line in told] == ["step 8", "step 15", "step 22"]
    assert [line for line in lines if "diverged 4 times" in line] == lines[len(told) :]
    assert len(lines) == 4
    assert finite(it.state())
    assert it.validate()["loss"] == summary.best["loss"]


@pytest.mark.parametrize("place", ["memory", "cpu", "disk"])
@pytest.mark.parametrize("policy", [None, "random"])
def test_the_best_weights_are_back_at_the_end(loop, place, policy):
    it = loop(learning_rate=0.3)
    summary = it.run_steered(policy=policy, snapshots=place).summary

    assert it.validate()["loss"] == summary.best["loss"]


def test_without_keep_best_the_last_weights_stay(loop, equal):
    it, other = loop(learning_rate=0.3), loop(learning_rate=0.3)
    kept = it.run_steered(keep_best=True).summary
    last = other.run_steered(keep_best=False).summary

    assert kept.best == last.best
    assert kept.best["step"] < 60, "the last weights are the best; the test proves nothing"
    assert not equal(it.state(), other.state())
    assert other.validate()["loss"] == last.last["loss"]


def test_the_initial_weights_are_a_candidate_for_the_best(loop, equal):
    it = loop(learning_rate=100.0, make_optimizer=SGD)
    before = [tensor.clone() for tensor in it.model.state_dict().values()]
    it.run_steered(reference="constant")

    assert equal(list(it.model.state_dict().values()), before)
    assert not it.optimizer.state, "the best optimiser had no state yet"


def test_more_steps_than_announced_stay_at_the_last_values(loop):
    it = loop()
    rates = []
    it.optimizer.register_step_pre_hook(lambda *_: rates.append(it.rates()[0]))
    with pytest.warns(TrimtabWarning, match="total_steps=60") as said:
        summary = it.run_steered(train_for=70).summary

    assert len(said) == 1
    assert rates[60:] == [rates[59]] * 10
    assert summary.spent_steps == 70
    assert summary.finished


def test_more_steps_than_a_scheduler_was_made_for_stay_at_its_last_values(loop):
    it = loop()
    rates = []
    it.optimizer.register_step_pre_hook(lambda *_: rates.append(it.rates()[0]))
    one_cycle = torch.optim.lr_scheduler.OneCycleLR(it.optimizer, max_lr=0.1, total_steps=60)
    with pytest.warns(TrimtabWarning, match="total_steps=60"):
        it.run_steered(train_for=63, reference=one_cycle)

    assert rates[60:] == [rates[59]] * 3


def test_leaving_the_block_early_finishes_the_record(loop, listener):
    it = loop()
    it.run_steered(train_for=33, policy=idle(), decisions=10)

    assert listener.status == "stopped"
    assert len(listener.decisions) == 6
    assert listener.summary.spent_steps == 33
    assert len(listener.summary.schedule) == 33
    assert not listener.summary.finished
    assert it.validate()["loss"] == listener.summary.best["loss"]


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError("no data"), "failed"), (KeyboardInterrupt(), "stopped")]
)
def test_an_error_in_the_block_finishes_the_record_and_goes_on(
    loop, equal, listener, error, status
):
    it = loop(learning_rate=0.5)
    state = []

    def break_off(step: int) -> None:
        if step == 19:
            state.extend(it.state())
            raise error

    with pytest.raises(type(error)):
        it.run_steered(policy=idle(), decisions=10, after=break_off)

    assert listener.status == status
    assert listener.summary.spent_steps == 20
    assert equal(it.state(), state), "the weights were changed although an error left the block"


def test_a_closed_run_takes_no_step(loop):
    it = loop()
    controller = it.run_steered(train_for=3)

    with pytest.raises(AdapterError, match="closed"):
        controller.step(1.0)


def test_a_run_without_a_block_is_closed_by_hand(loop, listener):
    it = loop()
    it.begin()
    controller = it.controller()
    for loss in it.losses():
        loss.backward()
        controller.step(loss)
    summary = controller.close()

    assert summary.finished
    assert controller.close() is summary
    assert listener.status == "finished"
    assert it.validate()["loss"] == summary.best["loss"]


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_a_run_that_is_deleted_lets_go_of_its_model_at_once(loop, place):
    it = loop()
    controller = it.run_steered(policy="random", snapshots=place, train_for=20)
    model = weakref.ref(it.model)
    gc.disable()  # memory of a device is needed sooner than garbage is looked for
    try:
        del it, controller
        assert model() is None
    finally:
        gc.enable()


def test_a_failing_controller_never_stops_the_run(loop):
    class Failing(RandomController):
        def act(self, observation):
            raise ZeroDivisionError("no idea")

    it = loop()
    summary = it.run_steered(policy=Failing(ControlSpec())).summary

    assert summary.finished
    assert all("ZeroDivisionError: no idea" in d.why() for d in summary.decisions)


def test_the_scaler_survives_a_loss_that_is_not_finite(loop):
    it = loop(wrecked={20: math.nan, 33: math.inf})
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    it.begin()
    with it.controller(policy=idle(), decisions=10, scaler=scaler, clip=1.0) as controller:
        for loss in it.losses():
            scaler.scale(loss).backward()
            controller.step(loss)

    assert controller.summary.rollbacks == 2
    assert controller.summary.finished
    assert scaler.get_scale() == 8.0, "the scaler was not restored with the weights"


def test_no_action_is_what_the_idle_controller_answers():
    assert (idle().act(None) == no_action(PLAIN)).all()
