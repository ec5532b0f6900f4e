"""Tasks that give each pixel of an image a class, on a frozen trunk (PyTorch)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch

from trimtab.tasks.data.batches import RunSeeds
from trimtab.tasks.data.splits import SPLITS, splits_from_arrays, splits_to_arrays
from trimtab.tasks.torch.efficientnet import trunk_outputs
from trimtab.tasks.torch.frozen_trunk import FrozenTrunkTask
from trimtab.tasks.torch.segmentation import FROZEN_STAGES, LabelledImages, segmentation_parts
from trimtab.tasks.torch.task import RunParts

__all__ = ["SegmentationTask"]


class SegmentationTask(FrozenTrunkTask):
    """A segmentation task, which says by ``_labelled`` what there is to see.

    Training images enter twice, the second time mirrored.
    """

    kind = "semantic-segmentation"
    metric = "mean IoU"
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
        features = trunk_outputs(self._network, np.stack(images), FROZEN_STAGES)
        return {
            **{f"stage.{n}": part for n, part in zip(FROZEN_STAGES, features, strict=True)},
            "labels": np.stack(labels),
            **splits_to_arrays(splits),
        }
