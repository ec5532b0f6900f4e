"""torchvision detection: a Faster R-CNN, which returns its losses in training mode alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch._dynamo

from tests.trainers.claims import CLAIMS, WARNINGS
from tests.trainers.probe import STEPS, Probe

detection = pytest.importorskip("torchvision.models.detection")
faster_rcnn = pytest.importorskip("torchvision.models.detection.faster_rcnn")
anchors = pytest.importorskip("torchvision.models.detection.anchor_utils")
ops = pytest.importorskip("torchvision.ops")

from trimtab import TorchController  # noqa: E402

pytestmark = [pytest.mark.framework, *WARNINGS]


def train(probe: Probe) -> Any:
    torch.manual_seed(0)
    boxes = torch.tensor([[8.0, 8.0, 40.0, 40.0]])
    target = {"boxes": boxes, "labels": torch.tensor([1])}
    images = torch.rand(STEPS, 3, 64, 64)
    images[:, :, 8:40, 8:40] += 1
    torch.manual_seed(0)
    backbone = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 8, stride=8), torch.nn.ReLU())
    backbone.out_channels = 8
    model = detection.FasterRCNN(
        backbone,
        min_size=64,
        max_size=64,
        rpn_anchor_generator=anchors.AnchorGenerator(((32,),), ((1.0,),)),
        box_roi_pool=ops.MultiScaleRoIAlign(["0"], output_size=3, sampling_ratio=2),
        box_head=faster_rcnn.TwoMLPHead(8 * 9, 16),
        box_predictor=faster_rcnn.FastRCNNPredictor(16, 2),
        rpn_pre_nms_top_n_train=10,
        rpn_post_nms_top_n_train=5,
        box_batch_size_per_image=8,
    )
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=1e-3, momentum=0.9)
    probe.look_into(model, optimizer)

    @probe.validation
    @torch.no_grad()
    def validate() -> float:
        model.train()  # this mode alone returns losses
        torch.manual_seed(0)  # which it draws proposals for
        return float(sum(model([images[0]], [target]).values()))

    # lines to write
    controller = TorchController(
        optimizer, total_steps=STEPS, validate=validate, model=model, **probe.options
    )
    probe.resume(controller)  # test
    with controller:
        for step in probe.steps():  # loop
            torch.manual_seed(step)  # test
            loss = sum(model([images[step]], [target]).values())  # loop
            loss.backward()  # loop
            controller.step(loss)  # instead of optimizer.step() and zero_grad()
    # end of lines
    return controller.summary


@pytest.fixture(autouse=True)
def eager() -> Iterator[None]:
    """Where torchvision's binaries do not load, its Python would be compiled for half a minute."""
    with torch._dynamo.config.patch(disable=True):
        yield


@pytest.mark.parametrize("claim", CLAIMS)
def test_torchvision_detection(claim: str) -> None:
    CLAIMS[claim](train)
