"""A controller that fails is held, and one that only watches changes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.episodes import spec_of
from tests.core.sessions import Windows, seeds, session_of, train
from trimtab.controllers.fixed import RandomController, ReferenceController
from trimtab.core.errors import SpecError
from trimtab.core.guard import Reason
from trimtab.core.metrics import Metrics
from trimtab.core.spec import ACTION_KINDS

# Controllers that fail.


class Acting(ReferenceController):
    """Moves up until ``act`` is replaced."""

    guarded = True

    def __init__(self, act: Callable[[np.ndarray], Any], novel: Any = None) -> None:
        super().__init__(spec_of(), name="acting")
        self.act = act  # type: ignore[method-assign]
        if novel is not None:
            self.is_novel = novel


def raising(observation: np.ndarray) -> np.ndarray:
    raise ZeroDivisionError("three sheep short")


FAILURES: Iterable[tuple[Callable[[np.ndarray], Any], str]] = [
    (raising, "ZeroDivisionError: three sheep short"),
    (lambda observation: np.array([6]), "action of shape (1,)"),
    (lambda observation: None, "action of shape ()"),
    (lambda observation: np.array(["up", "no"]), "['up', 'no']"),
    (lambda observation: np.array([7, 0]), "[7, 0] is outside"),
]


@pytest.mark.parametrize(("act", "note"), FAILURES)
def test_failing_controller_is_held_at_its_last_multiplier(
    act: Callable[[np.ndarray], Any], note: str
) -> None:
    spec = spec_of(entry=0.0)
    controller = Acting(lambda observation: np.array([5, 0]))
    session = session_of(controller, spec)
    session.step(Metrics(val_loss=2.0))
    before = session.multiplier(0)
    controller.act = act  # type: ignore[method-assign]
    decision = session.step(Metrics(val_loss=1.0, steps=2))

    assert decision is not None
    assert session.multiplier(0) == before > 1.0
    assert decision.action is None
    assert decision.reason["lr"] == Reason.CONTROLLER_FAILED
    assert note in decision.note
    assert decision.note in decision.why()
    assert decision.applied == decision.proposed


def test_action_that_is_not_finite_is_no_move() -> None:
    spec = spec_of(entry=0.0)
    session = session_of(Acting(lambda observation: np.array([math.nan, 0.0])), spec)
    decision = session.step(Metrics(val_loss=2.0))

    assert decision is not None
    assert decision.reason["lr"] == Reason.INVALID
    assert decision.applied == {"lr": 1e-3}


def test_novelty_holds_the_last_multiplier_and_is_counted() -> None:
    controller = Acting(lambda observation: np.array([5, 0]), novel=lambda seen: bool(seen[0] > 0))
    session = session_of(controller, spec_of(entry=0.0))
    session.step(Metrics(val_loss=2.0))
    while not session.finished:
        loss = 2.0 - 0.05 * session.decisions_made
        session.step(Metrics(val_loss=loss, steps=session.window()))

    assert session.multiplier(0) == float(np.float32(10.0) ** np.float32(0.5))
    assert session.summary.frozen == 19
    assert all(d.reason["lr"] & Reason.FROZEN for d in session.summary.decisions[1:])


def test_rollback_still_cuts_while_the_controller_is_held() -> None:
    session = session_of(Acting(raising), spec_of(entry=0.0))
    session.step(Metrics(val_loss=2.0))
    decision = session.step(Metrics(finite=0.0, steps=1))

    assert decision is not None
    assert decision.reason["lr"] == Reason.CONTROLLER_FAILED | Reason.ROLLBACK | Reason.CUT
    assert session.multiplier(0) == pytest.approx(10**-0.7)


def test_controller_cannot_write_into_the_record() -> None:
    def scribble(observation: np.ndarray) -> np.ndarray:
        observation[:] = 7.0
        return np.array([3, 0])

    decision = session_of(Acting(scribble)).step(Metrics(val_loss=2.0))

    assert decision is not None
    assert not np.any(decision.observation == 7.0)


def test_interruption_is_not_taken_for_a_failure() -> None:
    def interrupt(observation: np.ndarray) -> np.ndarray:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session_of(Acting(interrupt)).step(Metrics(val_loss=2.0))


def test_action_from_outside_is_checked() -> None:
    session = session_of(None)
    session.observe(Metrics(val_loss=2.0))

    with pytest.raises(SpecError, match=r"\[9, 0\] is outside"):
        session.decide(np.array([9, 0]))


# Watching only.


@given(st.sampled_from(ACTION_KINDS), seeds)
def test_watching_changes_nothing_and_records_every_proposal(actions: str, seed: int) -> None:
    spec = spec_of(2, actions=actions)
    changed: list[str] = []
    session = session_of(
        RandomController(spec), spec, watch_only=True, restore=lambda: changed.append("restore")
    )
    decisions = train(session, Windows(seed, faults=0.1))
    reference = session_of(ReferenceController(spec), spec)
    train(reference, Windows(seed, faults=0.1))

    assert not changed
    assert session.summary.schedule == reference.summary.schedule
    assert len({decision.proposed["lr"] for decision in decisions}) > 1
    for decision in decisions:
        assert decision.action is not None
        assert decision.reason["lr"] & Reason.WATCH_ONLY
        assert not decision.offset.any()
