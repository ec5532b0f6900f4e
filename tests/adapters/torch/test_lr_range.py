"""Learning rates stay within the range that the user gives."""

from __future__ import annotations

import re

import pytest

from trimtab.core.errors import SpecError


@pytest.mark.parametrize("policy", ["trimtab-1", "random"])
@pytest.mark.parametrize("lr_range", [(2e-3, 5e-3), (1e-4, 1e-2)])
def test_no_rate_leaves_the_range(loop, policy, lr_range):
    summary = loop(learning_rate=3e-3).run_steered(policy=policy, lr_range=lr_range).summary
    rates = [decision.applied["lr"] for decision in summary.decisions]
    low, high = lr_range
    assert all(low * (1 - 1e-5) <= rate <= high * (1 + 1e-5) for rate in rates)
    assert len(set(rates)) > 1


def test_no_range_is_the_run_of_before(loop):
    one = loop(learning_rate=3e-3).run_steered(policy="trimtab-1").summary
    other = loop(learning_rate=3e-3).run_steered(policy="trimtab-1", lr_range=None).summary
    assert one.schedule == other.schedule


@pytest.mark.parametrize("policy", ["trimtab-1", None])
def test_an_optimiser_outside_the_range_is_told(loop, policy):
    told = re.escape("lr_range: 0.0001 to 0.001 leaves out the learning rate 0.1")
    with pytest.raises(SpecError, match=told):
        loop(learning_rate=0.1).run_steered(policy=policy, lr_range=(1e-4, 1e-3))


def test_what_is_no_range_is_refused_at_once(loop):
    with pytest.raises(SpecError, match=re.escape("lr_range: 'history-of-mine' is not two")):
        loop().run_steered(lr_range="history-of-mine")
