"""Trainers of other people, steered at their optimiser's steps, give the bits of `step`."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from trimtab.adapters.torch import TorchController

pytestmark = pytest.mark.framework

EPOCHS, BATCH = 3, 20
STEPS = EPOCHS * 10
STEERED: dict[str, Any] = {"policy": "random", "decisions": 6, "seed": 3, "total_steps": STEPS}


def make_one(loop: Any) -> Any:
    one = loop(steps=STEPS)
    one.data = TensorDataset(one.inputs[:200], one.labels[:200])
    return one


def by_step(one: Any) -> list[torch.Tensor]:
    one.begin()
    with one.controller(**STEERED) as controller:
        for _ in range(EPOCHS):
            for inputs, labels in DataLoader(one.data, BATCH):
                loss = one.loss_fn(one.model(inputs), labels)
                loss.backward()
                controller.step(loss)
    return [tensor.clone() for tensor in one.model.parameters()]


def without_dropout(one: Any) -> Any:
    one.model[3] = nn.Identity()  # trainers draw random numbers of their own
    return one


def test_ignite(loop, equal):
    engine = pytest.importorskip("ignite.engine")
    mine, theirs = (without_dropout(make_one(loop)) for _ in range(2))
    with TorchController.attach(
        theirs.optimizer, model=theirs.model, validate=theirs.validate, **STEERED
    ) as controller:
        watched = controller.watch(theirs.loss_fn)
        trainer = engine.create_supervised_trainer(theirs.model, theirs.optimizer, watched)
        trainer.run(DataLoader(theirs.data, BATCH), EPOCHS)

    assert equal([w.detach() for w in theirs.model.parameters()], by_step(mine))
    assert controller.summary.finished


def test_skorch_whose_steps_have_a_closure(loop, equal):
    skorch = pytest.importorskip("skorch")
    mine, theirs = (without_dropout(make_one(loop)) for _ in range(2))
    net = skorch.NeuralNetClassifier(
        theirs.model,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.AdamW,
        lr=theirs.learning_rate,
        batch_size=BATCH,
        max_epochs=EPOCHS,
        train_split=None,
        verbose=0,
    )
    net.initialize()
    with TorchController.attach(
        net.optimizer_, model=net.module_, validate=theirs.validate, **STEERED
    ) as controller:
        net.partial_fit(theirs.inputs[:200].numpy(), theirs.labels[:200].numpy())

    assert equal([w.detach() for w in net.module_.parameters()], by_step(mine))
    assert controller.summary.finished


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fit", ["fit", "fit_one_cycle"])
def test_fastai(loop, equal, fit):
    pytest.importorskip("fastai")
    import fastai.callback.schedule  # noqa: F401 - puts fit_one_cycle into Learner
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader as FastaiLoader
    from fastai.learner import Learner
    from fastai.optimizer import OptimWrapper

    one = without_dropout(make_one(loop))
    loaders = DataLoaders(*(FastaiLoader(one.data, bs=BATCH) for _ in range(2)))
    learner = Learner(
        loaders,
        one.model,
        loss_func=one.loss_fn,
        lr=one.learning_rate,
        opt_func=partial(OptimWrapper, opt=torch.optim.AdamW),
    )
    learner.create_opt()
    reference = "warmup-linear" if fit == "fit" else None
    with (
        learner.no_bar(),
        learner.no_logging(),
        TorchController.attach(
            learner.opt, model=one.model, validate=one.validate, reference=reference, **STEERED
        ) as controller,
    ):
        controller.watch(learner.loss_func)
        getattr(learner, fit)(EPOCHS)

    assert controller.summary.finished
    assert controller.summary.spent_steps == STEPS
    if fit == "fit":
        mine = by_step(without_dropout(make_one(loop)))
        assert equal([w.detach() for w in one.model.parameters()], mine)
