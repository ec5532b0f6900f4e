"""Fine-tuning EfficientNet-Lite0 to tell how densely trees stand, from the air (PyTorch).

Data: `trimtab.tasks.data.tree_photographs` (package deepforest, MIT). Weights:
EfficientNet-Lite0 on ImageNet-1k, Apache-2.0.
"""

from __future__ import annotations

import numpy as np

from trimtab.tasks.data.splits import SPLITS, splits_to_arrays
from trimtab.tasks.data.tree_photographs import TREE_PACKAGES, resized, tiles_of
from trimtab.tasks.torch.efficientnet import EFFICIENTNET_PACKAGES, TailTask
from trimtab.tasks.variants import Variant, recipe

_PACKAGES = {**EFFICIENTNET_PACKAGES, **TREE_PACKAGES, "sklearn": "scikit-learn"}
_TILE = 160  # pixels, about 16 metres
# Split of each row of tiles of the training site, from the top; each row is 14 tiles.
_ROWS = "ttvttsttvttsttt"

# tuned_lr: python -m benchmarks.tuned_lr vision/tree-density --variant small --seeds 970001
#     --grid 1e-4,3.16e-4,1e-3
# Best validation losses of that one seed: .580, .529, .592 nats, of 28 tiles. The other variants
# take the value of "small".
_VARIANTS = {
    "tiny": Variant(30, 16, 4.0, 3.16e-4, size=48),
    "small": Variant(120, 16, 10.0, 3.16e-4, size=64),
    "default": Variant(240, 16, 25.0, 3.16e-4, size=96),
}


class TreeDensity(TailTask):
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
    10 s, ``tiny`` 4 s).
    """

    name = "vision/tree-density"
    licence = "data MIT (deepforest), weights Apache-2.0"
    manual = recipe(
        "AdamW's defaults but a rate for some 150 tiles; EfficientNet-Lite0's dropout",
        lr=3e-4,
        dropout=0.2,
    )
    variants = _VARIANTS
    _packages = _PACKAGES
    _n_classes = 3

    def _depends_on(self) -> dict[str, object]:
        return {"tile": _TILE, "rows": _ROWS, "frozen_blocks": self._stages[0]}

    def _build(self) -> dict[str, np.ndarray]:
        """Cut both photographs, split the tiles and run the frozen trunk over them once."""
        images: list[np.ndarray] = []
        labels: list[int] = []
        splits: dict[str, list[int]] = {name: [] for name in SPLITS}
        for split, pixels, corner, boxes in tiles_of(self.name, _TILE, _ROWS):
            image = resized(pixels, self._settings.size)
            for seen in (image, image[:, ::-1])[: 2 if split == "train" else 1]:
                splits[split].append(len(images))
                images.append(seen)
                labels += density_classes(boxes, np.array([corner]), _TILE).tolist()
        (features,) = self._features(images)
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
