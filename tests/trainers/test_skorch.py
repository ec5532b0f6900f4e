"""skorch: the optimiser that ``initialize`` makes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.trainers.claims import CLAIMS, WARNINGS
from tests.trainers.probe import STEPS, Probe

skorch = pytest.importorskip("skorch")

from trimtab import TorchController  # noqa: E402

pytestmark = [pytest.mark.framework, *WARNINGS]


def train(probe: Probe) -> Any:
    torch.manual_seed(0)
    x = torch.randn(STEPS * 8, 6)
    y = torch.arange(STEPS * 8) % 2
    module = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))
    net = skorch.NeuralNet(
        module,
        criterion=torch.nn.CrossEntropyLoss,
        optimizer=torch.optim.AdamW,
        lr=1e-3,
        batch_size=8,
        max_epochs=1,
        train_split=None,
        verbose=0,
    )
    net.initialize()
    probe.look_into(net.module_, net.optimizer_)

    @probe.validation
    @torch.no_grad()
    def validate() -> float:
        net.module_.eval()
        return float(net.criterion_(net.module_(x[:8]), y[:8]))

    left_x, left_y = x[probe.start * 8 :], y[probe.start * 8 :]
    # lines to write
    controller = TorchController.attach(
        net.optimizer_, total_steps=STEPS, validate=validate, model=net.module_, **probe.options
    )
    probe.resume(controller)  # test
    with controller:
        controller.watch(net.criterion_)
        net.partial_fit(left_x, left_y)  # loop
    # end of lines
    return controller.summary


@pytest.mark.parametrize("claim", CLAIMS)
def test_skorch(claim: str) -> None:
    CLAIMS[claim](train)
