"""Fine-tuning EfficientNet-Lite0 to tell how densely trees stand, from the air (PyTorch).

Data: `trimtab.tasks.data.tree_photographs` (package deepforest, MIT). Weights:
EfficientNet-Lite0 on ImageNet-1k, Apache-2.0.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch

from trimtab.tasks.data.batches import RunSeeds
from trimtab.tasks.data.splits import SPLITS, splits_from_arrays, splits_to_arrays
from trimtab.tasks.data.tree_photographs import (
    TEST_SITE,
    TRAINING_SITE,
    TREE_PACKAGES,
    read_photograph,
    resized,
    tile_corners,
)
from trimtab.tasks.torch.efficientnet import (
    EFFICIENTNET_PACKAGES,
    FrozenTrunkTask,
    Tail,
    trunk_outputs,
)
from trimtab.tasks.torch.task import LabelledData, RunParts, classification_parts
from trimtab.tasks.variants import Variant, recipe

_PACKAGES = {**EFFICIENTNET_PACKAGES, **TREE_PACKAGES, "sklearn": "scikit-learn"}
_TILE = 160  # pixels, about 16 metres
_FROZEN_BLOCKS = 11
# Split of each row of tiles of the training site, from the top; each row is 14 tiles.
_ROWS = "ttvttsttvttsttt"
_LETTER = {"train": "t", "validation": "v", "selection": "s"}

# tuned_lr: python -m benchmarks.tuned_lr vision/tree-density --variant small --seeds 970001
#     --grid 1e-4,3.16e-4,1e-3
# Best validation losses of that one seed: .580, .529, .592 nats, of 28 tiles. The other variants
# take the value of "small".
_VARIANTS = {
    "tiny": Variant(30, 16, 4.0, 3.16e-4, size=48),
    "small": Variant(120, 16, 10.0, 3.16e-4, size=64),
    "default": Variant(240, 16, 25.0, 3.16e-4, size=96),
}


class TreeDensity(FrozenTrunkTask):
    """No tree, one to three, or four and more, on 16 x 16 metres seen from the air.

    Two photographs of one region, 13 km apart, are cut into tiles of 160 pixels that do not
    overlap; a tree counts where the middle of its box lies. The first gives train (11 rows of
    tiles, each tile also mirrored, 308), validation and selection (2 rows, 28 tiles each, at least
    two rows apart from each other); the second gives the 42 tiles of test. So few tiles show that
    fine-tuning works; they decide no comparison, and one tile is worth 2 to 4 points of accuracy.

    The stem and the first 11 of 16 stages are frozen, so their output is computed once for each
    tile and kept in the user's cache folder; a step trains the last 5 stages and the head.
    Optimiser: AdamW. ``size`` is the number of pixels that a tile's side is reduced to.

    Licence: photographs MIT, weights Apache-2.0. Cost: about 25 s a run on one core (``small``
    10 s, ``tiny`` 4 s). ``tuned_lr`` was searched on a
    coarse grid for ``small`` only.

    Attributes:
        hyperparameters: All act: lr, weight_decay, beta1, dropout, label_smoothing, clip.
        monitor: ``"loss"``, the log-loss in nats; accuracy and macro-F1 are measured with it.
    """

    name = "vision/tree-density"
    kind = "image-classification"
    licence = "data MIT (deepforest), weights Apache-2.0"
    manual = recipe(
        "AdamW's defaults but a rate for some 150 tiles; EfficientNet-Lite0's dropout",
        lr=3e-4,
        dropout=0.2,
    )
    variants = _VARIANTS
    _packages = _PACKAGES

    def _parts(self, seeds: RunSeeds) -> RunParts:
        model = Tail(self._network, frozen_blocks=_FROZEN_BLOCKS, n_classes=3, seed=seeds.weights)
        return classification_parts(model, self._data, evaluated_together=32)

    def _depends_on(self) -> dict[str, object]:
        return {"tile": _TILE, "rows": _ROWS, "frozen_blocks": _FROZEN_BLOCKS}

    @cached_property
    def _data(self) -> LabelledData:
        arrays = self._arrays()
        return LabelledData(
            torch.from_numpy(arrays["features"]).float(),
            torch.from_numpy(arrays["labels"]),
            splits_from_arrays(arrays),
        )

    def _build(self) -> dict[str, np.ndarray]:
        """Cut both photographs, split the tiles and run the frozen trunk over them once."""
        images: list[np.ndarray] = []
        labels: list[int] = []
        splits: dict[str, list[int]] = {name: [] for name in SPLITS}

        def add(split: str, tile: np.ndarray, label: int) -> None:
            splits[split].append(len(images))
            images.append(tile)
            labels.append(label)

        split_of = {letter: name for name, letter in _LETTER.items()}
        for site in (TRAINING_SITE, TEST_SITE):
            photograph = read_photograph(self.name, site)
            height, width = photograph.pixels.shape[:2]
            corners = tile_corners(height, width, _TILE)
            classes = density_classes(photograph.boxes, corners, _TILE)
            for (top, left), label in zip(corners.tolist(), classes.tolist(), strict=True):
                tile = photograph.pixels[top : top + _TILE, left : left + _TILE]
                small = resized(tile, self._settings.size)
                split = "test" if site == TEST_SITE else split_of[_ROWS[top // _TILE]]
                add(split, small, label)
                if split == "train":
                    add(split, np.ascontiguousarray(small[:, ::-1]), label)
        (features,) = trunk_outputs(self._network, np.stack(images), (_FROZEN_BLOCKS,))
        return {
            "features": features,
            "labels": np.array(labels, np.int64),
            **splits_to_arrays(splits),
        }


def density_classes(boxes: np.ndarray, corners: np.ndarray, size: int) -> np.ndarray:
    """Return the class of each tile, (n_tiles,) int64: 0 no tree, 1 up to three, 2 more.

    Args:
        boxes: (n, 4), left, top, right, bottom; a tree stands in the middle of its box.
        corners: (n_tiles, 2), top and left of each tile.
        size: Pixels of a tile's side.

    >>> middle = np.array([[0.0, 0.0, 4.0, 4.0]] * 4)
    >>> density_classes(middle, np.array([[0, 0], [0, 3]]), 3).tolist()
    [2, 0]
    """
    x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    top, left = corners[:, :1], corners[:, 1:]
    inside = (y >= top) & (y < top + size) & (x >= left) & (x < left + size)  # (n_tiles, n)
    return np.asarray(np.digitize(inside.sum(1), [1, 4]), np.int64)
