"""timm: layer-wise decay of its groups."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.trainers.claims import CLAIMS, WARNINGS
from tests.trainers.probe import STEPS, Probe

timm = pytest.importorskip("timm")
optim = pytest.importorskip("timm.optim")

from trimtab import TorchController  # noqa: E402

pytestmark = [pytest.mark.framework, *WARNINGS]


def train(probe: Probe) -> Any:
    torch.manual_seed(0)
    x, y = torch.randn(STEPS, 4, 3, 32, 32), torch.arange(STEPS * 4).reshape(STEPS, 4) % 3
    loss_fn = torch.nn.CrossEntropyLoss()
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, num_classes=3, depth=2, embed_dim=24, num_heads=2
    )
    optimizer = optim.create_optimizer_v2(model, opt="adamw", lr=1e-4, layer_decay=0.75)
    probe.look_into(model, optimizer)
    validate = probe.loss_on(model, loss_fn, x[0], y[0])

    # lines to write
    controller = TorchController(
        optimizer, total_steps=STEPS, validate=validate, model=model, **probe.options
    )
    probe.resume(controller)  # test
    with controller:
        for step in probe.steps():  # loop
            loss = loss_fn(model(x[step]), y[step])  # loop
            loss.backward()  # loop
            controller.step(loss)  # instead of optimizer.step() and zero_grad()
    # end of lines
    return controller.summary


@pytest.mark.parametrize("claim", CLAIMS)
def test_timm(claim: str) -> None:
    CLAIMS[claim](train)
