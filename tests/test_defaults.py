from __future__ import annotations

import pytest

from trimtab.core.errors import UnknownNameError
from trimtab.core.hyperparameters import hyperparameter
from trimtab.core.spec import window_ends
from trimtab.defaults import LEAST_STEPS, controller_for, policy_path

LR = (hyperparameter("lr"),)


@pytest.mark.parametrize("policy", [None, "random", "trimtab-1"])
def test_a_short_run_has_a_decision_for_every_four_steps_at_most(policy):
    spec, _ = controller_for(policy, LR)
    assert LEAST_STEPS == 4
    assert len(window_ends(spec, 28)) == 7
    assert len(window_ends(spec, 80)) == 20
    assert len(window_ends(spec, 1000)) == 20


@pytest.mark.parametrize("policy", [None, "random", "trimtab-1"])
def test_who_asks_for_more_decisions_than_usual_gets_them(policy):
    spec, _ = controller_for(policy, LR, decisions=40)
    assert len(window_ends(spec, 80)) == 40
    assert len(window_ends(spec, 30)) == 30  # one for each step at most


def test_who_asks_for_fewer_decisions_gets_them():
    spec, _ = controller_for("trimtab-1", LR, decisions=5)
    assert len(window_ends(spec, 1000)) == 5


@pytest.mark.parametrize("name", ["zero", "random", ""])
def test_a_policy_that_is_no_file_is_not_offered_where_a_file_is_needed(name):
    with pytest.raises(UnknownNameError, match=rf"^unknown policy '{name}'; \(have: trimtab-0, "):
        policy_path(name)
    with pytest.raises(UnknownNameError, match="did you mean 'reference'"):
        controller_for("refrence", LR)
