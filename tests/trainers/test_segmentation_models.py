"""segmentation-models-pytorch: a U-Net, its encoder at a lower rate than its decoder."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.trainers.claims import CLAIMS, WARNINGS
from tests.trainers.probe import STEPS, Probe

smp = pytest.importorskip("segmentation_models_pytorch")

from trimtab import TorchController  # noqa: E402

pytestmark = [pytest.mark.framework, *WARNINGS]


def train(probe: Probe) -> Any:
    torch.manual_seed(0)
    x = torch.randn(STEPS, 2, 3, 32, 32)
    y = (x.mean(2, keepdim=True) > 0).float()
    loss_fn = smp.losses.DiceLoss("binary")
    model = smp.Unet("mobilenet_v2", encoder_weights=None, decoder_channels=(16, 8, 8, 8, 8))
    head = [*model.decoder.parameters(), *model.segmentation_head.parameters()]
    groups = [{"params": model.encoder.parameters(), "lr": 1e-4}, {"params": head, "lr": 1e-3}]
    optimizer = torch.optim.AdamW(groups)
    probe.look_into(model, optimizer)
    validate = probe.loss_on(model, loss_fn, x[0], y[0])

    # lines to write
    controller = TorchController(
        optimizer, total_steps=STEPS, validate=validate, model=model, **probe.options
    )
    probe.resume(controller)  # test
    with controller:
        for step in probe.steps():  # loop
            model.train()  # loop
            loss = loss_fn(model(x[step]), y[step])  # loop
            loss.backward()  # loop
            controller.step(loss)  # instead of optimizer.step() and zero_grad()
    # end of lines
    return controller.summary


@pytest.mark.parametrize("claim", CLAIMS)
def test_segmentation_models(claim: str) -> None:
    CLAIMS[claim](train)
