"""Accelerate: a loop with what ``prepare`` returns."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.trainers.claims import CLAIMS, WARNINGS
from tests.trainers.probe import STEPS, Probe

accelerate = pytest.importorskip("accelerate")

from trimtab import TorchController  # noqa: E402

pytestmark = [pytest.mark.framework, *WARNINGS]


def train(probe: Probe) -> Any:
    torch.manual_seed(0)
    x, y = torch.randn(STEPS, 8, 6), torch.arange(STEPS * 8).reshape(STEPS, 8) % 2
    loss_fn = torch.nn.CrossEntropyLoss()
    net = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))
    accelerator = accelerate.Accelerator(cpu=True)
    adam = torch.optim.AdamW(net.parameters(), lr=1e-3)
    probe.look_into(net, adam)
    model, optimizer = accelerator.prepare(net, adam)
    validate = probe.loss_on(model, loss_fn, x[0], y[0])

    # lines to write
    controller = TorchController(
        optimizer, total_steps=STEPS, validate=validate, model=model, **probe.options
    )
    probe.resume(controller)  # test
    with controller:
        for step in probe.steps():  # loop
            loss = loss_fn(model(x[step]), y[step])  # loop
            accelerator.backward(loss)  # loop
            controller.step(loss)  # instead of optimizer.step() and zero_grad()
    # end of lines
    return controller.summary


@pytest.mark.parametrize("claim", CLAIMS)
def test_accelerate(claim: str) -> None:
    CLAIMS[claim](train)
