"""What is called unusual: never noise, always what is far outside it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.rescue.signals import Signal, StepHistory


def filled(losses, norm=1.0):
    history = StepHistory()
    for loss in losses:
        history.add(loss, norm)
    return history


@given(seed=st.integers(0, 2**32 - 1), shape=st.floats(1.0, 4.0), offset=st.floats(-5.0, 5.0))
def test_noise_with_a_usual_tail_makes_no_spike(seed, shape, offset):
    draws = np.random.default_rng(seed).gamma(shape, size=300) + offset
    history, spikes = StepHistory(), 0
    for loss in draws.tolist():
        spikes += history.judge(loss, 1.0) is Signal.LOSS_SPIKE
        history.add(loss, 1.0)
    assert spikes == 0


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_judgement_does_not_hang_on_the_unit(scale):
    usual = np.random.default_rng(0).normal(2.0, 0.1, 50)
    history = filled((usual * scale).tolist(), norm=scale)
    assert history.judge(2.1 * scale, scale) is Signal.USUAL
    assert history.judge(20.0 * scale, scale) is Signal.LOSS_SPIKE
    assert history.judge(2.0 * scale, 1e5 * scale) is Signal.GRADIENT_SPIKE


def test_negative_losses_are_judged_too():
    history = filled(np.random.default_rng(0).normal(-3.0, 0.1, 50).tolist())
    assert history.judge(-2.9, 1.0) is Signal.USUAL
    assert history.judge(9.0, 1.0) is Signal.LOSS_SPIKE


def test_little_is_called_unusual_while_little_is_known():
    assert filled([1.0] * 2).judge(1e9, 1e9) is Signal.USUAL
    assert filled([1.0] * 9).judge(1.4, 50.0) is Signal.USUAL


@pytest.mark.parametrize("known", range(3, 10))
def test_in_the_first_steps_the_gross_is_a_spike_and_the_high_is_early(known):
    history = filled(np.linspace(1.0, 1.2, known).tolist())
    assert history.judge(1e3, 1.0) is Signal.LOSS_SPIKE
    assert history.judge(1.0, 1e6) is Signal.GRADIENT_SPIKE
    assert history.judge(2.4, 1.0) is Signal.EARLY
    assert history.judge(1.3, 5.0) is Signal.USUAL


def test_a_collapse_below_a_spike_is_a_rise():
    history = filled(np.random.default_rng(0).normal(1.4, 0.15, 50).tolist())
    seen = []
    for _ in range(6):
        seen.append(history.judge(2.3, 1.0))
        history.add(2.3, 1.0)
    assert Signal.RISE in seen
    assert Signal.LOSS_SPIKE not in seen
    for _ in range(5):
        history.add(2.3, 1.0)
    assert history.rises_for_long(2.3)


def test_after_a_restore_the_last_steps_are_not_compared_with():
    history = filled([1.0] * 20 + [5.0] * 5)
    history.settle()
    assert list(history.losses) == [1.0] * 20
    history.forget()
    assert not history.losses
