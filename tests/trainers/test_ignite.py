"""ignite: its engine steps the optimiser."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.trainers.claims import CLAIMS, WARNINGS
from tests.trainers.probe import STEPS, Probe

engine = pytest.importorskip("ignite.engine")

from trimtab import TorchController  # noqa: E402

pytestmark = [pytest.mark.framework, *WARNINGS]


def train(probe: Probe) -> Any:
    torch.manual_seed(0)
    x, y = torch.randn(STEPS, 8, 6), torch.arange(STEPS * 8).reshape(STEPS, 8) % 2
    model = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    probe.look_into(model, optimizer)
    loss_fn = torch.nn.CrossEntropyLoss()
    validate = probe.loss_on(model, loss_fn, x[0], y[0])

    # lines to write
    controller = TorchController.attach(
        optimizer, total_steps=STEPS, validate=validate, model=model, **probe.options
    )
    probe.resume(controller)  # test
    with controller:
        watched = controller.watch(loss_fn)
        trainer = engine.create_supervised_trainer(model, optimizer, watched)  # loop
        trainer.run([(x[step], y[step]) for step in probe.steps()])  # loop
    # end of lines
    return controller.summary


@pytest.mark.parametrize("claim", CLAIMS)
def test_ignite(claim: str) -> None:
    CLAIMS[claim](train)
