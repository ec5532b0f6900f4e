"""A steered run: its rhythm, its values, its weights, its record."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.episodes import spec_of
from tests.core.sessions import TOTAL, Log, Windows, plain, seeds, session_of, train
from trimtab.controllers.fixed import RandomController, ReferenceController, ReplayController
from trimtab.core.control import no_action
from trimtab.core.errors import SpecError
from trimtab.core.hyperparameters import hyperparameter
from trimtab.core.metrics import Metrics
from trimtab.core.session import Session
from trimtab.core.spec import ACTION_KINDS, ControlSpec

# The rhythm.


@given(st.integers(1, 300), st.integers(1, 30), seeds)
def test_schedule_has_one_row_a_step_and_the_run_ends_there(
    total: int, decisions: int, seed: int
) -> None:
    spec = spec_of(2, decisions=decisions)
    session = session_of(RandomController(spec), spec, total, seed=seed)
    made = train(session, Windows(seed))

    assert [row["step"] for row in session.summary.schedule] == list(range(total))
    assert len(made) == min(decisions, total)
    assert [decision.step for decision in made] == [0, *session.ends[:-1]]
    assert session.summary.finished
    assert session.summary.spent_steps == total
    assert session.window() == 0


def test_used_is_the_schedules_row_at_the_decisions_step_and_peak_what_it_multiplies() -> None:
    spec = spec_of(2, decisions=5)
    session = session_of(RandomController(spec), spec, 40, seed=3)
    train(session, Windows(3))

    rows = session.summary.schedule
    names = [item.name for item in spec.hyperparameters]
    for decision in session.summary.decisions:
        assert isinstance(decision.step, int)
        assert decision.used == {name: rows[decision.step][name] for name in names}
        assert decision.peak == decision.applied
    assert isinstance(session.summary.best["step"], int)
    assert isinstance(session.summary.last["step"], int)


def test_used_follows_a_schedule_that_is_learned_as_the_loop_goes() -> None:
    session = session_of(None)
    decision = session.step(Metrics(val_loss=2.0))
    assert decision is not None
    session.reference[0] *= 0.25
    session.observe(Metrics(val_loss=1.0, steps=session.window()))

    assert session.summary.decisions[0].used == {
        name: session.summary.schedule[0][name] for name in decision.used
    }


def test_no_window_is_due_before_the_first_decision() -> None:
    session = session_of(None)

    assert session.window() == 0
    session.step(Metrics(val_loss=2.0))
    assert session.window() == 2


@given(st.lists(st.integers(1, 30), min_size=1, max_size=60))
def test_windows_that_end_early_shift_none_of_the_later_ones(done: list[int]) -> None:
    session = session_of(None)
    session.step(Metrics(val_loss=2.0))
    for steps in done:
        if session.finished:
            break
        due = session.window()
        assert due >= 1
        k = min(session.decisions_made, len(session.ends)) - 1
        assert session.steps_done + due == session.ends[k]
        session.step(Metrics(val_loss=1.0, steps=min(steps, due)))

    assert len(session.summary.schedule) == session.steps_done <= TOTAL


def test_last_window_that_was_cut_short_is_finished_by_one_more() -> None:
    spec = spec_of(decisions=4, front_windows=0)
    session = session_of(None, spec, total=8)
    session.step(Metrics(val_loss=2.0))
    for steps in (2, 2, 2, 1):
        session.step(Metrics(val_loss=1.0, steps=steps))

    assert not session.finished
    assert session.window() == 1
    assert session.step(Metrics(val_loss=1.0, steps=1)) is None
    assert session.finished


def test_steps_that_no_decision_follows_are_in_the_schedule() -> None:
    session = session_of(None)
    session.step(Metrics(val_loss=2.0))
    session.count_steps(3)

    assert [row["step"] for row in session.summary.schedule] == [0, 1, 2]
    assert session.summary.spent_steps == 3


# The values.


@given(st.sampled_from(ACTION_KINDS), seeds)
def test_reference_controller_follows_the_reference_bit_for_bit(actions: str, seed: int) -> None:
    spec = spec_of(2, actions=actions)
    session = session_of(ReferenceController(spec), spec)
    train(session, Windows(seed, faults=0.1))

    lr, decay = spec.hyperparameters
    expected = [lr.default * float(share) for share in session.reference]
    assert [row["lr"] for row in session.summary.schedule] == expected
    assert {row["weight_decay"] for row in session.summary.schedule} == {decay.default}
    assert session.multiplier(0) == 1.0


@given(seeds)
def test_applied_values_stay_within_bounds_to_the_last_bit(seed: int) -> None:
    items = (
        hyperparameter("lr", 0.3, low=0.07, high=0.7),
        hyperparameter("weight_decay", 0.1, low=0.03, high=0.7),
        hyperparameter("momentum", 0.9, low=0.3, high=0.93),
        hyperparameter("dropout", 0.1, low=0.07, high=0.3),
    )
    spec = ControlSpec(hyperparameters=items)
    session = session_of(RandomController(spec), spec, seed=seed)

    for decision in train(session, Windows(seed)):
        for item in items:
            assert item.low <= decision.applied[item.name] <= item.high


def test_multiplier_is_the_value_over_its_start_on_every_scale() -> None:
    items = (hyperparameter("lr", 1e-3), hyperparameter("dropout"), hyperparameter("frozen_depth"))
    spec = ControlSpec(hyperparameters=items, entry=0.0)
    session = session_of(ReplayController(spec, [[5, 5, 5, 0]]), spec)
    decision = session.step(Metrics(val_loss=2.0))

    assert decision is not None
    assert session.multiplier(0) == float(np.float32(10.0) ** np.float32(0.5))
    assert session.multiplier(1) == pytest.approx(decision.applied["dropout"] / 0.1)
    assert session.multiplier(2) == 1.0
    assert decision.applied["frozen_depth"] == pytest.approx(0.1)


def test_values_are_those_that_the_schedule_then_tells() -> None:
    session = session_of(RandomController(spec_of()), seed=3)
    windows = Windows(3)
    session.step(windows.start())
    told: list[float] = []
    while not session.finished:
        told += session.values(session.steps_done, session.window())["lr"].tolist()
        session.step(windows.after(session))

    assert [row["lr"] for row in session.summary.schedule] == told


# Weights.


def test_best_weights_are_kept_and_given_back() -> None:
    weights, best = [0], [0]
    events: list[str] = []

    def keep() -> None:
        best[0] = weights[0]
        events.append(f"keep {weights[0]}")

    def restore() -> None:
        weights[0] = best[0]
        events.append(f"restore {best[0]}")

    session = session_of(None, keep=keep, restore=restore)
    for loss in (2.0, 1.0, 1.9, math.nan, 0.5):
        session.step(Metrics(val_loss=loss, steps=session.window()))
        weights[0] += 1

    assert events == ["keep 0", "keep 1", "restore 1", "restore 1", "keep 2"]
    assert session.summary.best == {"step": 8.0, "loss": 0.5}
    assert (session.summary.rollbacks, session.summary.restores) == (2, 2)


def test_first_weights_are_kept_even_if_their_loss_is_unknown() -> None:
    kept: list[int] = []
    session = session_of(None, keep=lambda: kept.append(1))
    session.step(Metrics(val_loss=math.nan))

    assert kept == [1]


def test_fourth_divergence_ends_the_run_at_its_best_weights() -> None:
    log, restored = Log(), []
    session = session_of(None, restore=lambda: restored.append(1), recorder=log)
    session.step(Metrics(val_loss=2.0))
    decisions = [session.step(Metrics(finite=0.0, steps=1)) for _ in range(4)]

    assert [decision is None for decision in decisions] == [False, False, False, True]
    assert session.terminated
    assert session.finished
    assert session.summary.diverged
    assert len(restored) == 4
    assert log.ends == ["diverged"]


def test_unguarded_run_that_diverged_says_so_and_goes_on() -> None:
    spec = spec_of()
    session = session_of(ReferenceController(spec), spec)
    session.step(Metrics(val_loss=2.0))
    session.step(Metrics(finite=0.0, steps=2))

    assert session.summary.diverged
    assert not session.finished


# The record.


def test_each_decision_is_recorded_when_it_is_made() -> None:
    log = Log()
    session = session_of(RandomController(spec_of()), recorder=log)
    windows = Windows(0)
    session.step(windows.start())
    while not session.finished:
        assert log.decisions == session.summary.decisions
        session.step(windows.after(session))

    assert [decision.index for decision in log.decisions] == list(range(20))
    assert log.ends == ["finished"]
    session.close()
    assert log.ends == ["finished"]


@pytest.mark.parametrize(("status", "expected"), [(None, "stopped"), ("failed", "failed")])
def test_run_that_is_left_early_is_closed_with_its_status(status: Any, expected: str) -> None:
    log = Log()
    session = session_of(None, recorder=log)
    session.step(Metrics(val_loss=2.0))
    session.close(status)

    assert log.ends == [expected]
    assert not session.summary.finished


def test_spent_is_the_charge_in_whole_runs_or_the_share_of_steps() -> None:
    charged, counted = session_of(None, budget=100.0), session_of(None)
    for session in (charged, counted):
        session.step(Metrics(val_loss=2.0, charge=10.0))
        session.step(Metrics(val_loss=1.0, steps=2, charge=15.0))

    assert charged.summary.spent == 0.25
    assert counted.summary.spent == 2 / TOTAL


def test_step_and_observe_with_decide_are_the_same_run() -> None:
    spec = spec_of(2)
    live = session_of(RandomController(spec), spec, seed=5)
    made = train(live, Windows(5, faults=0.05))
    driven, windows = session_of(None, spec), Windows(5, faults=0.05)
    driven.observe(windows.start())
    for decision in made:
        driven.decide(decision.action)
        driven.observe(windows.after(driven))

    assert [plain(one) for one in made] == [plain(one) for one in driven.summary.decisions]
    assert live.summary.schedule == driven.summary.schedule


# Settings.


@pytest.mark.parametrize("total", [0, -3, 2.5, True])
def test_unusable_number_of_steps_is_refused(total: Any) -> None:
    with pytest.raises(SpecError, match=f"total_steps: {total!r} is not a count"):
        Session(spec_of(), total_steps=total, reference=[1.0])


def test_reference_of_another_length_is_refused() -> None:
    with pytest.raises(SpecError, match=r"\(3,\) multipliers for 5 steps"):
        Session(spec_of(), total_steps=5, reference=[1.0, 1.0, 1.0])


def test_controller_says_whether_the_guard_may_act() -> None:
    spec = spec_of()

    assert session_of(None).carry.guarded
    assert session_of(RandomController(spec)).carry.guarded
    assert not session_of(ReferenceController(spec)).carry.guarded
    assert session_of(ReferenceController(spec), guarded=True).carry.guarded
    assert not session_of(RandomController(spec), watch_only=True).carry.guarded


def test_controller_is_reset_with_the_seed() -> None:
    spec = spec_of()
    runs = [
        [
            plain(decision)
            for decision in train(session_of(RandomController(spec), seed=seed), Windows(0))
        ]
        for seed in (1, 1, 2)
    ]

    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("actions", ACTION_KINDS)
def test_idle_action_has_the_shape_of_the_spec(actions: str) -> None:
    spec = spec_of(3, actions=actions)

    assert no_action(spec).shape == (() if actions == "discrete" else (4,))


def test_a_budget_known_late_is_what_a_cost_aware_reward_charges() -> None:
    rewards = []
    for budget in (math.nan, 100.0):
        spec = ControlSpec(reward="cost-aware", front_windows=0, decisions=2)
        session = Session(spec, None, total_steps=10, reference=np.ones(10))
        session.budget = budget
        session.observe(Metrics(val_loss=1.0))
        session.decide(None)
        rewards.append(session.observe(Metrics(val_loss=0.9, steps=5, charge=50.0))[1])
    assert rewards[0] - rewards[1] == pytest.approx(0.05, abs=1e-6)
