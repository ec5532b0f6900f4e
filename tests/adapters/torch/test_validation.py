"""What the user's validate() may do to a run: nothing."""

from __future__ import annotations

import math
import random
import sqlite3

import numpy as np
import pytest
import torch

from trimtab.core.errors import MetricError, SpecError, TrimtabWarning
from trimtab.core.guard import Reason

OFF = {"policy": None, "keep_best": False}


def test_random_state_batchnorm_and_modes_are_left_alone(loop, equal):
    plain, steered = loop(), loop()
    plain.run_plainly()
    ends = []

    def careless():
        random.random()
        np.random.rand()  # noqa: NPY002 - what users do
        steered.model.train()
        steered.model[0].eval()
        with torch.no_grad():
            steered.model(torch.randn(50, 8) * 9.0)
        ends.append(1)
        return 1.0

    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    steered.run_steered(validate=careless, reference="constant", **OFF)
    drawn = random.random(), np.random.rand()  # noqa: NPY002
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002

    assert equal(steered.state(), plain.state())
    assert drawn == (random.random(), np.random.rand())  # noqa: NPY002
    assert all(module.training for module in steered.model.modules())
    assert len(ends) == 16  # 60 steps have 15 windows


def test_modes_are_put_back_one_by_one(loop):
    it = loop()
    it.model.train()
    it.model[1].eval()
    with it.controller():
        assert [module.training for module in it.model] == [True, False, True, True, True]


@pytest.mark.parametrize(
    ("validate", "message"),
    [
        (lambda: 1 / 0, "ZeroDivisionError: division by zero, before the first step"),
        (lambda: math.nan, "returned nan for 'loss' before the first step"),
        (lambda: {"loss": math.inf}, "returned inf for 'loss'"),
        (lambda: {"accuracy": 0.5}, "no 'loss'; it has accuracy"),
        (lambda: {}, "no 'loss'; it has nothing"),
        (lambda: None, "returned None"),
        (lambda: "good", "returned 'good'"),
        (lambda: {"loss": "good"}, "not a number"),
        (lambda: torch.zeros(2), r"returned tensor\(\[0., 0.\]\)"),
    ],
)
def test_before_the_first_step_a_bad_validation_is_an_error(loop, listener, validate, message):
    it = loop()
    before = it.state()
    with pytest.raises(MetricError, match=message), it.controller(validate=validate):
        pytest.fail("the block was entered")

    assert all(torch.equal(a, b) for a, b in zip(it.state(), before, strict=True))
    assert listener.status == "failed"


def test_an_uncallable_validate_is_refused(loop):
    with pytest.raises(MetricError, match=r"validate: 0\.5 cannot be called"):
        loop().controller(validate=0.5)


@pytest.mark.parametrize(
    ("answer", "note"),
    [
        (lambda: 1 / 0, "ZeroDivisionError"),
        (lambda: {"accuracy": 0.5}, "no 'loss'"),
        (lambda: None, "returned None"),
        (lambda: torch.zeros(2), "returned tensor"),
    ],
)
def test_in_mid_run_a_failing_validation_holds_the_values(loop, listener, answer, note):
    it = loop()
    good = it.validate

    def sometimes():
        return answer() if it.validations in (8, 9, 10) and _next(it) else good()

    def _next(it):
        it.validations += 1
        return True

    with pytest.warns(TrimtabWarning, match=note) as said:
        summary = it.run_steered(validate=sometimes, policy="random").summary
    held = [d for d in listener.decisions if note in d.note]

    assert len(said) == 1
    assert len(held) == 3
    assert summary.frozen == 3
    assert summary.finished
    for decision in held:
        before = listener.decisions[decision.index - 1]
        assert decision.reason["lr"] & Reason.FROZEN
        assert "no decision was taken: last multiplier held; " in decision.why()
        assert "observations unlike" not in decision.why()
        assert decision.metrics.val_loss == before.metrics.val_loss
        assert decision.action is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_one_validation_that_is_not_finite_is_done_again_and_nothing_else(loop, value):
    it = loop()
    good = it.validate

    def once():
        measured = good()
        return measured | {"loss": value} if it.validations == 9 else measured

    summary = it.run_steered(validate=once, policy="random").summary
    assert (summary.rollbacks, summary.frozen) == (0, 0)

    other = loop()
    usual = other.run_steered(policy="random").summary
    assert summary.schedule == usual.schedule


def test_a_validation_that_stays_not_finite_with_sound_weights_holds_the_values(loop):
    it = loop()
    good = it.validate

    def never_again():
        return good() | ({"loss": math.nan} if it.validations >= 9 else {})

    with pytest.warns(TrimtabWarning, match="loss is nan though all weights are finite"):
        summary = it.run_steered(validate=never_again, policy="random").summary
    assert summary.rollbacks == 0
    assert summary.frozen > 1
    assert summary.finished


def test_a_validation_that_is_not_finite_for_the_weights_are_not_is_rolled_back(loop):
    it = loop()
    good, broken = it.validate, []

    def breaks():
        if it.validations == 9 and not broken:
            broken.append(True)
            next(iter(it.model.parameters())).data.fill_(math.nan)
        return good()

    summary = it.run_steered(validate=breaks, policy="random").summary
    assert summary.rollbacks >= 1
    assert any("rolled back" in d.why() for d in summary.decisions)
    assert summary.finished


def test_a_metric_to_be_maximised_is_maximised(loop):
    it = loop()
    summary = it.run_steered(monitor="accuracy", mode="max").summary

    assert summary.best["accuracy"] == max(d.measured["accuracy"] for d in summary.decisions)
    assert it.validate()["accuracy"] == summary.best["accuracy"]


def test_a_known_metric_needs_no_mode_and_another_one_is_refused(loop, listener):
    it = loop()
    summary = it.run_steered(monitor="accuracy").summary

    assert summary.best["accuracy"] == max(d.measured["accuracy"] for d in summary.decisions)
    assert it.validate()["accuracy"] == summary.best["accuracy"]
    with pytest.raises(SpecError, match=r"monitor: whether 'quality' gets better .* mode='min'"):
        loop().controller(monitor="quality")


def test_the_record_says_which_way_the_monitored_value_gets_better(loop, tmp_path):
    store = f"sqlite:///{tmp_path / 'runs.db'}"
    loop().run_steered(monitor="accuracy", store=store)

    with sqlite3.connect(tmp_path / "runs.db") as connection:
        assert connection.execute("SELECT monitor, mode FROM runs").fetchall() == [
            ("accuracy", "max")
        ]


def test_a_bare_number_is_the_monitored_value(loop):
    it = loop()
    summary = it.run_steered(validate=lambda: it.validate()["loss"]).summary

    assert set(summary.best) == {"step", "loss"}
