"""A run that is interrupted and goes on in another process is the run that was not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

from trimtab.core.errors import AdapterError, SpecError
from trimtab.records.store.store import Store

SETTINGS = {"policy": "random", "hyperparameters": ("lr", "weight_decay"), "seed": 4}


def cosine(it: Any) -> Any:
    return lr_scheduler.CosineAnnealingLR(it.optimizer, T_max=60)


def plateau(it: Any) -> Any:
    return lr_scheduler.ReduceLROnPlateau(it.optimizer, patience=0)


REFERENCES = {"name": lambda _: "cosine", "adopted": cosine, "plateau": plateau}


# Where the loss alone is wrecked, the batch is skipped; step 30 is the first of its window.
@pytest.mark.parametrize(
    ("at", "spared"), [(1, ()), (23, ()), (41, ()), (23, (30,)), (30, (30,)), (41, (30,))]
)
@pytest.mark.parametrize("reference", REFERENCES)
def test_a_resumed_run_is_the_uninterrupted_one(loop, equal, tmp_path, reference, at, spared):
    whole = loop(learning_rate=0.05, wrecked={30: math.nan}, spared=spared)
    expected = whole.run_steered(reference=REFERENCES[reference](whole), **SETTINGS).summary

    first = loop(learning_rate=0.05, wrecked={30: math.nan}, spared=spared)
    first.begin()
    with first.controller(reference=REFERENCES[reference](first), **SETTINGS) as controller:
        for loss in first.losses(at):
            loss.backward()
            controller.step(loss)
        saved = {
            "model": first.model.state_dict(),
            "optimizer": first.optimizer.state_dict(),
            "controller": controller.state_dict(),
            "random": torch.get_rng_state(),
        }
        torch.save(saved, tmp_path / "checkpoint.pt")
        done = [*controller.summary.decisions]

    loaded = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    second = loop(
        learning_rate=0.05, wrecked={30 - at: math.nan}, spared=tuple(bad - at for bad in spared)
    )
    second.begin()
    again = second.controller(reference=REFERENCES[reference](second), **SETTINGS)
    second.model.load_state_dict(loaded["model"])
    second.optimizer.load_state_dict(loaded["optimizer"])
    again.load_state_dict(loaded["controller"])
    torch.set_rng_state(loaded["random"])
    with again:
        for loss in second.losses(60 - at):
            loss.backward()
            again.step(loss)

    assert second.validations == whole.validations - first.validations
    assert equal(second.state(), whole.state())
    assert again.summary.schedule == expected.schedule
    assert again.summary.best == expected.best
    assert again.summary.events == expected.events
    assert [event["step"] for event in expected.events] == list(spared)
    everything = done + again.summary.decisions
    for left, right in zip(everything, expected.decisions, strict=True):
        assert np.array_equal(left.observation, right.observation)
        assert left.applied == right.applied


def test_a_state_may_be_loaded_inside_the_block(loop):
    first = loop()
    controller = first.run_steered(train_for=10)
    state = controller.state_dict()
    second = loop()
    with second.controller() as again:
        again.load_state_dict(state)
        for loss in second.losses(50):
            loss.backward()
            again.step(loss)

    assert again.summary.finished


def test_the_record_goes_on(loop, tmp_path):
    store = f"sqlite:///{tmp_path / 'runs.db'}"
    first = loop()
    with first.controller(store=store) as controller:
        for loss in first.losses(30):
            loss.backward()
            controller.step(loss)
        state = controller.state_dict()
    second = loop()
    again = second.controller(store=store)
    again.load_state_dict(state)
    with again:
        for loss in second.losses(30):
            loss.backward()
            again.step(loss)
    with Store(store) as records:
        (number,) = records.run_ids()
        record = records.run(number)

    assert len(record.decisions) == 15
    assert record.status == "finished"


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"total_steps": 61}, SpecError, "60.* 61"),
        ({"hyperparameters": ("lr", "dropout")}, AdapterError, "steers lr, this run lr, dropout"),
    ],
)
def test_a_state_of_another_run_is_refused(loop, settings, error, message):
    with loop().controller() as controller:
        state = controller.state_dict()
    with pytest.raises(error, match=message):
        loop().controller(**settings).load_state_dict(state)


def test_a_run_that_has_begun_cannot_load(loop):
    it = loop()
    with it.controller() as controller:
        state = controller.state_dict()
        for loss in it.losses(1):
            loss.backward()
            controller.step(loss)
        with pytest.raises(AdapterError, match="1 steps were done already"):
            controller.load_state_dict(state)


def test_a_run_that_has_not_begun_has_no_state(loop):
    with pytest.raises(AdapterError, match="has not begun"):
        loop().controller().state_dict()
