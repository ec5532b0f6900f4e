"""Tasks that give each pixel of an image a class: network, scores, data (PyTorch)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from trimtab.tasks.data.batches import RunSeeds
from trimtab.tasks.data.splits import SPLITS, splits_from_arrays, splits_to_arrays
from trimtab.tasks.torch.efficientnet import FrozenTrunkTask, PretrainedStages
from trimtab.tasks.torch.pretraining import draw_head, seeded
from trimtab.tasks.torch.task import RunParts, outputs_of

FROZEN_STAGES = (1, 3, 5)
"""After how many stages the frozen trunk's output is kept: at a half, a quarter and an eighth."""

_TRAINED_STAGES = slice(5, 11)  # down to a sixteenth
_FROZEN_CHANNELS = (16, 24, 40)
_DEEPEST_CHANNELS = 112
_DECODER_CHANNELS = (48, 32, 24)
_EVALUATED_TOGETHER = 16


@dataclass(frozen=True)
class LabelledImages:
    """What the frozen trunk made of images, and the class of each of their pixels.

    Attributes:
        features: For each of `FROZEN_STAGES` (n, channels, height, width) float32.
        labels: (n, pixels, pixels) int64.
        splits: For each split its rows, (n_split,) int64.
        n_classes: How many classes there are.
    """

    features: Sequence[torch.Tensor]
    labels: torch.Tensor
    splits: Mapping[str, np.ndarray]
    n_classes: int


class SegmentationNetwork(PretrainedStages):
    """The middle stages of EfficientNet-Lite0, and a decoder that meets the early ones again.

    The form of U-Net (Ronneberger et al., MICCAI 2015): three times the deepest features are
    enlarged to twice their size, joined with the frozen trunk's of that size, convolved and
    normalised in groups (Wu and He, ECCV 2018). The classes are told at half the image's size and
    enlarged.
    """

    def __init__(self, network: Any, n_classes: int, *, seed: int) -> None:
        """Take a copy of the middle stages of ``network`` and draw a decoder.

        Args:
            network: What `trimtab.tasks.torch.efficientnet.pretrained_network` returns.
            n_classes: Classes of a pixel.
            seed: Draws the decoder, and the head near zero.
        """
        super().__init__()
        stages = list(network._blocks)[_TRAINED_STAGES]
        self.encoder = copy.deepcopy(nn.Sequential(*stages))
        self.decoder = seeded(_decoder, seed)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Conv2d(_DECODER_CHANNELS[-1], n_classes, 1)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        draw_head(self.head, seed)

    def forward(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return logits (n, n_classes, pixels, pixels).

        Args:
            features: Outputs of the frozen trunk, see `LabelledImages`.
        """
        hidden = self.encoder(features[-1].contiguous(memory_format=torch.channels_last))
        for early, layer in zip(reversed(features), self.decoder, strict=True):
            hidden = _enlarged(hidden, early.shape[-2:])
            hidden = layer(torch.cat([hidden, early], dim=1))
        logits: torch.Tensor = self.head(self.dropout(hidden))
        height, width = logits.shape[-2:]
        return _enlarged(logits, (2 * height, 2 * width))


def _decoder() -> nn.ModuleList:
    """Return one layer for each early stage, from the deepest on."""
    layers, inside = nn.ModuleList(), _DEEPEST_CHANNELS
    for early, outside in zip(reversed(_FROZEN_CHANNELS), _DECODER_CHANNELS, strict=True):
        convolution = nn.Conv2d(inside + early, outside, 3, padding=1, bias=False)
        layers.append(nn.Sequential(convolution, nn.GroupNorm(8, outside), nn.ReLU()))
        inside = outside
    return layers


def _enlarged(images: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    return nn.functional.interpolate(images, tuple(size), mode="bilinear", align_corners=False)


def segmentation_scores(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Return ``loss``, ``mean_iou``, ``dice``, ``pixel_accuracy`` and ``examples``.

    The loss is the mean cross-entropy of a pixel in nats. Mean intersection over union and Dice
    are torchmetrics' (``multiclass_jaccard_index`` and ``dice_score``): of all pixels of all
    images together, class by class, then the mean over the classes that occur in the labels or in
    the predictions, background included; in the unit interval.

    Args:
        logits: (n, n_classes, height, width) float.
        labels: (n, height, width) int64.
    """
    from torchmetrics.functional.classification import multiclass_jaccard_index
    from torchmetrics.functional.segmentation import dice_score

    n_classes = logits.shape[1]
    predicted = logits.argmax(1)
    dice = dice_score(
        predicted,
        labels,
        n_classes,
        average="macro",
        input_format="index",
        aggregation_level="global",
    )
    return {
        "loss": nn.functional.cross_entropy(logits, labels).item(),
        "mean_iou": multiclass_jaccard_index(predicted, labels, n_classes).item(),
        "dice": dice.item(),
        "pixel_accuracy": (predicted == labels).double().mean().item(),
        "examples": float(len(labels)),
    }


def segmentation_parts(network: Any, data: LabelledImages, *, seed: int) -> RunParts:
    """Return the parts of a run that minimises the pixels' cross-entropy.

    Args:
        network: What `trimtab.tasks.torch.efficientnet.pretrained_network` returns; copied.
        data: Stays as it is.
        seed: Draws the decoder and the head.
    """
    train = data.splits["train"]

    def of(rows: torch.Tensor) -> list[torch.Tensor]:
        return [stage[rows] for stage in data.features]

    def loss(model: nn.Module, indices: np.ndarray, values: Mapping[str, float]) -> torch.Tensor:
        rows = torch.from_numpy(train[indices])
        return nn.functional.cross_entropy(
            model(of(rows)), data.labels[rows], label_smoothing=values.get("label_smoothing", 0.0)
        )

    def evaluate(model: nn.Module, split: str) -> dict[str, float]:
        rows = torch.from_numpy(data.splits[split])
        logits = outputs_of(model, of, rows, together=_EVALUATED_TOGETHER)
        return segmentation_scores(logits, data.labels[rows])

    model = SegmentationNetwork(network, data.n_classes, seed=seed)
    return RunParts(model, len(train), loss, evaluate)


class SegmentationTask(FrozenTrunkTask):
    """A segmentation task, which says by ``_labelled`` what there is to see.

    Training images enter twice, the second time mirrored.
    """

    kind = "semantic-segmentation"
    metric = "mean IoU"
    _stages = FROZEN_STAGES
    _n_classes: ClassVar[int]

    def _labelled(self) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Yield split, image and classes, both (pixels, pixels) uint8."""
        raise NotImplementedError

    def _parts(self, seeds: RunSeeds) -> RunParts:
        return segmentation_parts(self._network, self._data, seed=seeds.weights)

    @cached_property
    def _data(self) -> LabelledImages:
        arrays = self._arrays()
        return LabelledImages(
            [torch.from_numpy(arrays[f"stage.{n}"]).float() for n in FROZEN_STAGES],
            torch.from_numpy(arrays["labels"]).long(),
            splits_from_arrays(arrays),
            self._n_classes,
        )

    def _build(self) -> dict[str, np.ndarray]:
        images: list[np.ndarray] = []
        labels: list[np.ndarray] = []
        splits: dict[str, list[int]] = {name: [] for name in SPLITS}
        for split, image, label in self._labelled():
            for mirrored in (False, True)[: 2 if split == "train" else 1]:
                splits[split].append(len(images))
                images.append(image[:, ::-1] if mirrored else image)
                labels.append(label[:, ::-1] if mirrored else label)
        features = self._features(images)
        return {
            **{f"stage.{n}": part for n, part in zip(FROZEN_STAGES, features, strict=True)},
            "labels": np.stack(labels),
            **splits_to_arrays(splits),
        }
