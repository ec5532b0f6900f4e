"""The engine's judgement, with a training that is played by a script."""

from __future__ import annotations

import itertools
import math

import pytest

from trimtab.rescue.engine import CHECK_EVERY, Jump, Probe, RescueEngine
from trimtab.rescue.events import Fault, Treatment


class Script:
    """A training whose state is what the test says; notes what is done to it."""

    def __init__(self):
        self.damage = self.answer = None
        self.jumped, self.done = [], []

    def not_finite(self, *, forward=False):
        return self.damage

    def first_not_finite(self):
        return None, "gradient of head", [3]

    def undo_forward(self):
        self.done.append("undo")

    def jumps(self):
        return self.jumped

    def probe(self, *, sound=False, lowest=False):
        return self.answer

    def restore_statistics(self):
        return False

    def find_sound(self):
        self.sound = True

    def take(self, step, loss):
        self.done.append(f"take {step}")

    def restore(self, older, lowest=False):
        self.damage, self.jumped = None, []
        self.done.append("lowest" if lowest else "older" if older else "newest")
        return 5


@pytest.fixture
def script():
    return Script()


@pytest.fixture
def engine(script):
    made = RescueEngine(script, told=lambda event: None)
    made.begin()
    steps(made, [1.0, 1.1] * 15)
    return made


def steps(engine, losses, norm=1.0, rate=1e-3):
    done = []
    for loss in losses:
        done.append(engine.before_update(loss, norm))
        if done[-1]:
            engine.factor(rate)
        engine.after_update(done[-1])
    return done


def kinds(engine):
    return [(event.fault, event.treatment) for event in engine.events]


def test_a_healthy_run_has_no_event_and_snapshots_at_the_announced_pace(engine, script):
    assert engine.events == []
    assert script.done == ["take 0", *(f"take {n * CHECK_EVERY}" for n in (1, 2, 3))]
    assert engine.rate_factor == 1.0


@pytest.mark.parametrize(
    ("loss", "norm", "fault"),
    [
        (math.nan, math.nan, Fault.LOSS_NOT_FINITE),
        (math.inf, 1.0, Fault.LOSS_NOT_FINITE),
        (1.0, math.inf, Fault.GRADIENT_NOT_FINITE),
    ],
)
def test_a_batch_that_is_not_finite_is_skipped_where_the_state_is_sound(
    engine, script, loss, norm, fault
):
    assert steps(engine, [loss], norm) == [False]
    assert kinds(engine) == [(fault, Treatment.SKIP)]
    assert script.done[-1] == "undo"
    assert engine.events[0].where == "gradient of head"
    assert engine.events[0].batch == [3]
    assert len(engine.events[0].losses) == 30


def test_a_state_that_is_not_finite_is_put_back_without_a_cut(engine, script):
    script.damage = (Fault.WEIGHTS_NOT_FINITE, "head.weight[0]")
    assert steps(engine, [math.nan]) == [False]
    event = engine.events[0]
    assert (event.fault, event.treatment) == (Fault.WEIGHTS_NOT_FINITE, Treatment.RESTORE)
    assert (event.restored, event.updates_lost, event.rate_factor) == (5, 25, 1.0)
    assert script.done[-1] == "newest"


def test_a_second_restore_soon_after_goes_further_back_and_halves_the_rate(engine, script):
    for _ in range(2):
        script.damage = (Fault.WEIGHTS_NOT_FINITE, "head.weight")
        steps(engine, [math.nan])
    assert [event.treatment for event in engine.events] == [
        Treatment.RESTORE,
        Treatment.RESTORE_AND_CUT,
    ]
    assert script.done[-1] == "older"
    assert engine.factor(1e-3) == 0.5
    assert engine.factor(1e-4) == 1.0, "a rate below the cap is left alone"


def test_a_cut_is_taken_back_after_healthy_steps(engine, script):
    for _ in range(2):
        script.damage = (Fault.WEIGHTS_NOT_FINITE, "head.weight")
        steps(engine, [math.nan])
    steps(engine, [1.0, 1.1] * 30)
    assert engine.events[-1].treatment is Treatment.RAISE_RATE
    assert engine.factor(1e-3) == 1.0


def test_it_gives_up_where_restores_do_not_help(engine, script):
    for _ in range(7):
        script.damage = (Fault.WEIGHTS_NOT_FINITE, "head.weight")
        steps(engine, [math.nan])
    assert engine.gave_up is engine.events[-1]
    assert engine.gave_up.treatment is Treatment.STOP
    assert "again after 6 restores" in engine.gave_up.sentence()


def test_batches_that_all_fail_end_the_run_with_its_sound_weights(engine, script):
    steps(engine, [math.nan] * 20)
    assert kinds(engine)[-1] == (Fault.EVERY_BATCH, Treatment.STOP)
    assert "20 in a row; the weights are sound" in engine.gave_up.evidence
    assert "newest" not in script.done


@pytest.mark.parametrize(
    ("answer", "treatment"),
    [(Probe(1.0, 1.0), Treatment.SKIP), (Probe(9.0, 1.0), Treatment.RESTORE)],
    ids=["the batch is bad", "the model is damaged"],
)
def test_good_batches_say_whether_a_spike_is_the_models_or_the_datas(
    engine, script, answer, treatment
):
    script.answer = answer
    assert steps(engine, [50.0]) == [False]
    assert engine.events[0].treatment is treatment
    assert engine.events[0].probe_ratio == answer.ratio


def test_without_good_batches_the_third_spike_in_a_row_is_the_models(engine):
    steps(engine, [50.0] * 3)
    assert [event.treatment for event in engine.events] == [
        Treatment.SKIP,
        Treatment.SKIP,
        Treatment.RESTORE,
    ]


def test_spikes_that_stay_with_a_sound_model_are_told_and_accepted(engine, script):
    script.answer = Probe(1.0, 1.0)
    done = steps(engine, [50.0] * 12)
    assert done == [False] * 9 + [True] * 3
    assert kinds(engine)[-1] == (Fault.DATA_CHANGED, Treatment.TELL)


def test_a_jump_that_no_update_makes_is_put_back_at_the_next_look(engine, script):
    script.jumped = [Jump(Fault.OPTIMIZER_JUMPED, "exp_avg of head", 1.0, 1e9, certain=True)]
    steps(engine, [1.0, 1.1] * 5)
    assert kinds(engine) == [(Fault.OPTIMIZER_JUMPED, Treatment.RESTORE)]
    assert "norm 1 became 1e+09; exp_avg of head" in engine.events[0].sentence()


@pytest.mark.parametrize(("now", "count"), [(1.0, 0), (9.0, 1)])
def test_a_jump_that_may_be_training_is_asked_about(engine, script, now, count):
    script.jumped = [Jump(Fault.BUFFERS_JUMPED, "bn.running_mean", 1e-3, 9.0, certain=False)]
    script.answer = Probe(now, 1.0)
    steps(engine, [1.0, 1.1] * 5)
    assert len(engine.events) == count


def test_a_loss_that_rises_with_the_rate_goes_back_and_keeps_the_rate_that_was_good(engine, script):
    for step in range(120):
        steps(engine, [1.0 + 0.01 * step + 0.05 * (step % 2)], rate=1e-3 * 1.05**step)
    drifted = [event for event in engine.events if event.fault is Fault.DIVERGED]
    assert drifted
    assert drifted[0].treatment is Treatment.RESTORE_AND_CUT
    assert "lowest" in script.done
    assert engine.cap < 2e-3


def test_a_loss_that_rises_while_the_rate_falls_is_not_the_rates(engine):
    for step in range(120):
        steps(engine, [1.0 + 0.01 * step + 0.05 * (step % 2)], rate=1e-3 * 0.99**step)
    assert Fault.DIVERGED not in {event.fault for event in engine.events}


def test_gradients_of_zero_a_stuck_loader_and_a_dead_scaler_are_told_once(engine):
    for _ in range(15):
        steps(engine, [1.0], norm=0.0)
        engine.note_batch(equal=True)
    for _ in range(25):
        engine.after_update(engine.before_update(1.0, math.inf, scaled=True))
    assert kinds(engine) == [
        (Fault.STUCK_LOADER, Treatment.TELL),
        (Fault.ZERO_GRADIENTS, Treatment.TELL),
        (Fault.DEAD_SCALER, Treatment.TELL),
    ]


def test_a_dry_run_gives_the_evidence_and_does_nothing():
    script = Script()
    engine = RescueEngine(script, act=False, told=lambda event: None)
    engine.begin()
    steps(engine, [1.0, 1.1] * 15)
    script.damage = (Fault.WEIGHTS_NOT_FINITE, "head.weight")
    assert steps(engine, [math.nan, 50.0]) == [True, True]
    assert [event.acted for event in engine.events] == [False, False]
    assert not {"newest", "older", "undo"} & set(script.done)
    assert engine.factor(1e-3) == 1.0


def test_snapshots_move_apart_as_the_run_goes_on(engine, script):
    steps(engine, [1.0, 1.1] * 500)
    taken = [int(done.split()[1]) for done in script.done]
    gaps = [later - earlier for earlier, later in itertools.pairwise(taken)]
    assert gaps[:19] == [10] * 19
    assert gaps[-1] == max(gaps) == 50


def test_a_snapshot_is_called_good_at_the_next_look_that_finds_nothing(engine, script):
    steps(engine, [1.0, 1.1] * 5)
    script.sound = False
    script.damage = (Fault.BUFFERS_NOT_FINITE, "bn.running_mean")
    steps(engine, [1.0, 1.1] * 5)
    assert not script.sound
    steps(engine, [1.0, 1.1] * 5)
    assert script.sound


def fresh(script):
    engine = RescueEngine(script, told=lambda event: None)
    engine.begin()
    return engine


@pytest.mark.parametrize(
    ("answer", "treatments"),
    [
        (Probe(1.1, 1.0), []),
        (Probe(2.5, 1.0), [Treatment.RESTORE]),
        (None, []),
    ],
    ids=["the model is sound", "it is twice as bad", "nobody can say"],
)
def test_in_the_first_steps_good_batches_judge_a_loss_that_is_twice_as_high(
    script, answer, treatments
):
    engine, script.answer = fresh(script), answer
    steps(engine, [1.0, 1.1, 0.9, 1.0, 2.4])
    assert [event.treatment for event in engine.events] == treatments


@pytest.mark.parametrize(("loss", "norm"), [(1e3, 1.0), (1.0, 1e5)])
def test_in_the_first_steps_what_is_beyond_doubt_is_skipped(script, loss, norm):
    engine = fresh(script)
    steps(engine, [1.0, 1.1, 0.9, 1.0])
    assert steps(engine, [loss], norm) == [False]


def test_a_rate_that_jumps_above_all_before_is_capped_where_the_model_suffers(engine, script):
    script.answer = Probe(9.0, 1.0)
    steps(engine, [50.0], rate=1e-3)
    assert engine.factor(1e-3) == 1.0, "one damage without a jump costs no rate"
    again = fresh(script)
    steps(again, [1.0, 1.1] * 15)
    again.factor(0.1)
    steps(again, [50.0])
    assert again.events[-1].treatment is Treatment.RESTORE_AND_CUT
    assert "after the learning rate rose from 0.001" in again.events[-1].sentence()
    assert again.factor(0.1) == pytest.approx(0.01)


@pytest.mark.parametrize("rates", [[1e-3] * 40 + [1e-5] * 40 + [1e-3] * 40])
def test_a_restart_of_the_schedule_is_no_jump_and_no_drift(script, rates):
    engine, script.answer = fresh(script), Probe(1.5, 1.0)
    for number, rate in enumerate(rates):
        high = 0.15 * (number >= 80)
        steps(engine, [1.0 + high + 0.05 * (number % 2)], rate=rate)
    assert engine.events == []


def test_running_statistics_alone_are_put_back_alone(engine, script):
    script.damage = (Fault.BUFFERS_JUMPED, "bn.running_var")
    script.restore_statistics = lambda: True
    steps(engine, [1.0, 1.1] * 5)
    assert kinds(engine)[0] == (Fault.BUFFERS_JUMPED, Treatment.RESTORE_STATISTICS)
    assert engine.events[0].updates_lost == 0


def test_spikes_in_every_second_batch_are_told_as_data_that_changed(engine, script):
    script.answer = Probe(1.0, 1.0)
    steps(engine, [50.0, 1.0] * 10)
    assert kinds(engine).count((Fault.DATA_CHANGED, Treatment.TELL)) == 1


def test_a_cap_on_a_schedule_that_never_falls_is_lowered_where_the_loss_stands_still(
    engine, script
):
    for step in range(120):
        steps(engine, [1.0 + 0.01 * step + 0.05 * (step % 2)], rate=1e-3 * 1.05**step)
    cap = engine.cap
    steps(engine, [1.0, 1.1] * 60, rate=1.0)
    assert engine.cap < 0.5 * cap
