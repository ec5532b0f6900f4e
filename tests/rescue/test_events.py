"""Events: read back as written, and told in one sentence."""

from __future__ import annotations

import json

import pytest

from trimtab.rescue.events import Event, Fault, Treatment

RESTORED = Event(
    150,
    Fault.WEIGHTS_NOT_FINITE,
    Treatment.RESTORE_AND_CUT,
    "loss nan, gradient norm nan",
    where="l2.weight[0]",
    batch=[7, 8, 9, 10, 11],
    restored=140,
    updates_lost=10,
    rate_factor=0.5,
    losses=[1.0, 2.0],
)


def test_an_event_is_read_back_from_json_as_it_was_written():
    again = Event.from_dict(json.loads(json.dumps(RESTORED.to_dict())))
    assert again == RESTORED
    assert again.fault is Fault.WEIGHTS_NOT_FINITE


def test_one_sentence_tells_what_happened_where_and_what_was_done():
    assert RESTORED.sentence() == (
        "step 150: weights not finite (loss nan, gradient norm nan; l2.weight[0], batch 7, 8, 9, "
        "10, ... (5 rows)); the state of step 140 was put back, 10 updates were lost, and the "
        "learning rate is multiplied by 0.5"
    )


def test_a_dry_run_says_that_nothing_was_done():
    event = Event(3, Fault.LOSS_SPIKE, Treatment.SKIP, "loss 9", acted=False)
    assert "nothing was done (dry run), where otherwise this batch was skipped" in event.sentence()


@pytest.mark.parametrize("key", ["fault", "treatment"])
def test_an_unknown_kind_is_refused_by_its_name(key):
    with pytest.raises(ValueError, match="hiccup"):
        Event.from_dict(RESTORED.to_dict() | {key: "hiccup"})


@pytest.mark.parametrize("treatment", Treatment)
def test_every_treatment_is_told(treatment):
    sentence = Event(1, Fault.DIVERGED, treatment, "seen").sentence()
    assert sentence.startswith("step 1: training diverges (seen); ")
