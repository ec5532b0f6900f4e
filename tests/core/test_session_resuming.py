"""A run that was interrupted goes on as if it had not been."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.episodes import spec_of
from tests.core.sessions import Windows, plain, seeds, session_of, train
from trimtab.controllers.fixed import RandomController
from trimtab.core.errors import SpecError
from trimtab.core.hyperparameters import hyperparameter
from trimtab.core.metrics import Metrics
from trimtab.core.session import Session
from trimtab.core.spec import ACTION_KINDS, ControlSpec

# Resuming.


@settings(max_examples=20)
@given(seeds, st.integers(0, 19), st.booleans(), st.sampled_from(ACTION_KINDS))
def test_resumed_run_continues_bit_for_bit_from_any_decision(
    seed: int, stop: int, is_between: bool, actions: str
) -> None:
    spec = spec_of(2, actions=actions)
    whole = session_of(RandomController(spec), spec, seed=seed, budget=6400.0)
    expected = train(whole, Windows(seed, faults=0.05))

    first = session_of(RandomController(spec), spec, seed=seed, budget=6400.0)
    windows = Windows(seed, faults=0.05)
    first.step(windows.start())
    for _ in range(stop):
        if not first.finished:
            first.step(windows.after(first))
    if first.finished:
        return
    if is_between:  # the state is taken after observing and before deciding
        seen, _ = first.observe(windows.after(first))
    state = json.loads(json.dumps(first.state_dict()))

    second = session_of(RandomController(spec), spec, seed=seed + 1, budget=6400.0)
    second.load_state_dict(state)
    if is_between and not second.finished:
        action, note, extra = second._choose(seen)
        second.decide(action, note=note, extra=extra)
    while not second.finished:
        second.step(windows.after(second))

    found = first.summary.decisions + second.summary.decisions
    assert [plain(one) for one in found] == [plain(one) for one in expected]
    for name in ("schedule", "best", "last", "spent", "spent_steps", "rollbacks", "restores"):
        found, expected = getattr(second.summary, name), getattr(whole.summary, name)
        assert repr(found) == repr(expected), name  # a NaN is not equal to itself


def test_a_run_of_before_windows_were_judged_by_their_noise_goes_on_as_it_began() -> None:
    """The default policy's spec changed; a run that was under way keeps the rule it has."""
    before = spec_of(2, undo=0.005)
    now = replace(before, undo_noise=2.0, entry_resumes=True)
    first = session_of(RandomController(before), before)
    first.step(Windows(0).start())
    state = first.state_dict()
    del state["carry"]["spread"]

    second = session_of(RandomController(now), now)
    second.load_state_dict(state)
    assert second.spec == before
    expected = [plain(one) for one in train(first, Windows(0))[1:]]
    assert [plain(one) for one in train(second, Windows(0))] == expected


def test_state_survives_a_second_saving() -> None:
    session = session_of(RandomController(spec_of()))
    session.step(Metrics(val_loss=2.0))
    text = json.dumps(session.state_dict())
    other = session_of(RandomController(spec_of()))
    other.load_state_dict(json.loads(text))

    assert json.dumps(other.state_dict()) == text


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: session_of(None, spec_of(entry=-1.0)), "spec"),
        (lambda: session_of(None, total=100), "total_steps 200, this run 100"),
        (lambda: session_of(None, spec_of(decisions=10)), "decisions 20, this run 10"),
        (lambda: session_of(None, spec_of(2)), "hyperparameters"),
        (
            lambda: session_of(None, ControlSpec(hyperparameters=(hyperparameter("lr", 0.5),))),
            "'default': 0.5",
        ),
    ],
)
def test_state_of_another_run_is_refused(other: Callable[[], Session], message: str) -> None:
    session = session_of(None)
    session.step(Metrics(val_loss=2.0))

    with pytest.raises(SpecError, match=message):
        other().load_state_dict(session.state_dict())
