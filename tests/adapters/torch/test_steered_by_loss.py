"""The policy reads the loss; the monitored value says which weights are kept."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

STEPS = 60


def apart(it: Any) -> Any:
    """Return a validation whose quality is best at its 5th and 7th call, and the weights."""
    seen: list[list[torch.Tensor]] = []

    def validate() -> dict[str, float]:
        loss = it.validate()["loss"]
        seen.append(it.state())
        return {"loss": loss, "quality": 5.0 if len(seen) in (5, 7) else 1.0}

    return validate, seen


def decided(summary: Any) -> list[Any]:
    return [(d.step, d.applied, d.observation.tolist(), d.reason) for d in summary.decisions]


def test_the_monitored_value_moves_no_decision(loop):
    by_loss, by_quality = loop(learning_rate=1.0), loop(learning_rate=1.0)
    one = by_loss.run_steered(policy="trimtab-1", validate=apart(by_loss)[0]).summary
    other = by_quality.run_steered(
        policy="trimtab-1", validate=apart(by_quality)[0], monitor="quality", mode="max"
    ).summary

    assert decided(one) == decided(other)
    assert one.schedule == other.schedule
    assert other.best != one.best


@pytest.mark.parametrize("policy", [None, "random"])
@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_the_weights_that_are_left_are_the_best_by_the_monitored_value(loop, policy, place):
    it = loop()
    validate, seen = apart(it)
    summary = it.run_steered(
        policy=policy, validate=validate, monitor="quality", mode="max", snapshots=place
    ).summary
    best = [d for d in summary.decisions if d.measured["quality"] == 5.0]
    lowest = min(best, key=lambda decision: decision.measured["loss"])

    assert len(best) > 1
    assert summary.best == {"step": float(lowest.step), **lowest.measured}
    kept = seen[[d.step for d in summary.decisions].index(lowest.step)]
    assert all(torch.equal(a, b) for a, b in zip(it.state(), kept, strict=True))


def test_a_rollback_goes_to_the_lowest_loss(loop):
    by_loss, by_quality = loop(wrecked={32: math.nan}), loop(wrecked={32: math.nan})
    options = {"policy": "trimtab-1", "keep_best": False}
    by_loss.run_steered(validate=apart(by_loss)[0], **options)
    by_quality.run_steered(validate=apart(by_quality)[0], monitor="quality", mode="max", **options)

    assert all(torch.equal(a, b) for a, b in zip(by_loss.state(), by_quality.state(), strict=True))


def test_without_a_loss_the_monitored_value_is_steered_by(loop):
    it = loop()
    summary = it.run_steered(
        policy="random",
        validate=lambda: {"accuracy": it.validate()["accuracy"]},
        monitor="accuracy",
    ).summary

    for decision in summary.decisions:
        assert decision.metrics.val_loss == 1.0 - decision.measured["accuracy"]


def test_the_loss_of_a_split_is_the_loss(loop):
    it = loop()

    def validate() -> dict[str, float]:
        return {f"val_{name}": value for name, value in it.validate().items()}

    summary = it.run_steered(policy="random", validate=validate, monitor="val_accuracy").summary
    for decision in summary.decisions:
        assert decision.metrics.val_loss == decision.measured["val_loss"]
    assert summary.best["val_accuracy"] == max(
        d.measured["val_accuracy"] for d in summary.decisions
    )


@pytest.mark.parametrize("at", [12, 41])
def test_a_resumed_run_keeps_the_same_weights(loop, equal, at):
    options = {"policy": "random", "monitor": "quality", "mode": "max"}
    whole = loop()
    expected = whole.run_steered(validate=apart(whole)[0], **options).summary

    first = loop()
    validate, _ = apart(first)
    first.begin()
    with first.controller(validate=validate, **options) as controller:
        for loss in first.losses(at):
            loss.backward()
            controller.step(loss)
        saved = [first.model.state_dict(), first.optimizer.state_dict(), controller.state_dict()]
        saved = [*map(_copied, saved), torch.get_rng_state()]
    second = loop()
    goes_on = apart(second)[0]
    for _ in range(first.validations):
        goes_on()
    second.begin()
    again = second.controller(validate=goes_on, **options)
    for owner, state in zip((second.model, second.optimizer, again), saved[:3], strict=True):
        owner.load_state_dict(state)
    torch.set_rng_state(saved[3])
    with again:
        for loss in second.losses(STEPS - at):
            loss.backward()
            again.step(loss)

    assert again.summary.best == expected.best
    assert again.summary.schedule == expected.schedule
    assert equal(second.state(), whole.state())


def _copied(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: _copied(value) for key, value in state.items()}
    return state.clone() if isinstance(state, torch.Tensor) else state


@pytest.mark.parametrize(("mode", "turned"), [("auto", 0.0), ("max", 1.0)])
def test_a_run_of_before_goes_on_by_the_monitored_value(loop, mode, turned):
    options = {"policy": "random", "monitor": "accuracy"}
    it = loop()
    state = it.run_steered(
        train_for=30,
        validate=lambda: {"accuracy": it.validate()["accuracy"]},
        mode="max",
        **options,
    ).state_dict()
    for name in ("mode", "steers_by", "kept"):
        del state[name]
    del state["session"]["best_rank"]
    second = loop()
    with second.controller(mode=mode, **options) as again:
        again.load_state_dict(state)
        for loss in second.losses(30):
            loss.backward()
            again.step(loss)
    last = again.summary.decisions[-1]

    assert last.metrics.val_loss == pytest.approx(abs(turned - last.measured["accuracy"]))
    assert "loss" in last.measured


def test_a_later_validation_without_its_loss_holds_the_values(loop):
    it = loop()

    def validate() -> dict[str, float]:
        measured = it.validate()
        return {"accuracy": 0.99} if it.validations == 5 else measured

    with pytest.warns(UserWarning, match="returned no 'loss'; it has accuracy"):
        summary = it.run_steered(policy="random", validate=validate, monitor="accuracy").summary
    assert summary.frozen == 1
    assert summary.best["accuracy"] < 0.99
    assert np.isfinite([d.metrics.val_loss for d in summary.decisions]).all()
