"""fastai: a Learner without its one-cycle schedule."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from tests.trainers.claims import CLAIMS, WARNINGS
from tests.trainers.probe import STEPS, Probe

optimizers = pytest.importorskip("fastai.optimizer")
learner = pytest.importorskip("fastai.learner")
fastai_data = pytest.importorskip("fastai.data.core")

from trimtab import TorchController  # noqa: E402

pytestmark = [pytest.mark.framework, *WARNINGS]


def train(probe: Probe) -> Any:
    torch.manual_seed(0)
    x, y = torch.randn(STEPS * 8, 6), torch.arange(STEPS * 8) % 2
    left = torch.utils.data.TensorDataset(x[probe.start * 8 :], y[probe.start * 8 :])
    loaders = fastai_data.DataLoaders(torch.utils.data.DataLoader(left, 8), [])
    model = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))
    loss_fn = torch.nn.CrossEntropyLoss()
    adam = partial(optimizers.OptimWrapper, opt=torch.optim.AdamW)
    learn = learner.Learner(loaders, model, loss_fn, opt_func=adam, lr=1e-3)
    learn.create_opt()
    probe.look_into(model, learn.opt.opt)

    @probe.validation
    @torch.no_grad()
    def validate() -> float:
        model.eval()
        return float(loss_fn(model(x[:8]), y[:8]))

    # lines to write
    controller = TorchController.attach(
        learn.opt.opt, total_steps=STEPS, validate=validate, model=model, **probe.options
    )
    probe.resume(controller)  # test
    with controller:
        learn.loss_func = controller.watch(loss_fn)
        learn.fit(1)  # loop
    # end of lines
    return controller.summary


@pytest.mark.parametrize("claim", CLAIMS)
def test_fastai(claim: str) -> None:
    CLAIMS[claim](train)
