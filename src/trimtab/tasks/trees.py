"""Fine-tuning EfficientNet-Lite0 to put a box around each tree, seen from the air (PyTorch).

Data: `trimtab.tasks.data.tree_photographs` (package deepforest, MIT). Weights:
EfficientNet-Lite0 on ImageNet-1k, Apache-2.0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch

from trimtab.tasks.data.batches import RunSeeds
from trimtab.tasks.data.splits import SPLITS, splits_from_arrays, splits_to_arrays
from trimtab.tasks.data.tree_photographs import TREE_PACKAGES, resized, tiles_of
from trimtab.tasks.torch.detection import FROZEN_STAGES, BoxedImages, Boxes, detection_parts
from trimtab.tasks.torch.efficientnet import EFFICIENTNET_PACKAGES, FrozenTrunkTask
from trimtab.tasks.torch.task import RunParts
from trimtab.tasks.variants import Variant

_PACKAGES = {**EFFICIENTNET_PACKAGES, **TREE_PACKAGES, "pycocotools": "pycocotools"}
_TILE = 128  # pixels, about 13 metres
# Split of each row of tiles of the training site, from the top; each row is 17 tiles.
_ROWS = "ttvttsttvttsttvttst"
_LEAST_VISIBLE = 0.5

# One in so many tiles of validation, selection and test is used.
_THINNED = {"tiny": 4, "small": 2, "default": 1}

# tuned_lr: python -m benchmarks.tuned_lr detection/trees --variant small --seeds 970001
#     --grid 1e-3,3.16e-3,1e-2
# Best validation losses of that one seed: .763, .772, .780; lower rates were not tried. The other
# variants take the value of "small".
_VARIANTS = {
    "tiny": Variant(20, 4, 3.0, 1e-3, size=64),
    "small": Variant(120, 8, 10.0, 1e-3, size=96),
    "default": Variant(250, 8, 25.0, 1e-3, size=128),
}


class Trees(FrozenTrunkTask):
    """A box around each tree, in photographs from the air: trained at one site, tested at another.

    Two photographs of one region, 13 km apart, are cut into tiles of 128 pixels that do not
    overlap. Of the first site, with 574 trees, 13 rows of tiles give train (those with a tree in
    them, each also mirrored), 3 validation and 3 selection (51 tiles each); the second, with 279
    trees, gives the 72 tiles of test. ``small`` evaluates every second tile of validation,
    selection and test, ``tiny`` every fourth. ``objects``, beside every figure, says how many
    trees it counts: of a tree at a tile's border the tile that shows at least half of it counts
    it, cut off there, and in the others it counts neither way. So few photographs show that
    fine-tuning works; they decide no comparison.

    The stem and the first 5 of 16 stages are frozen, so their output is computed once for each
    tile and kept in the user's cache folder; a step trains the next 6 stages, the neck and the
    heads. Optimiser: AdamW. ``size`` is the number of pixels that a tile's side is scaled to.

    Licence: photographs MIT, weights Apache-2.0. Cost: about 25 s a run on one core (``small``
    10 s, ``tiny`` 3 s).

    Attributes:
        hyperparameters: All act: lr, weight_decay, beta1, dropout, clip.
        monitor: ``"loss"``, see `trimtab.tasks.torch.detection.detection_loss`; ``ap`` and ``ap50``
            are measured with it.
    """

    name = "detection/trees"
    kind = "object-detection"
    metric = "box AP"
    licence = "data MIT (deepforest), weights Apache-2.0"
    manual: Mapping[str, Any] = {
        "values": {
            "lr": 1e-3,
            "weight_decay": 1e-2,
            "beta1": 0.9,
            "dropout": 0.1,
            "clip": 1.0,
        },
        "reference": "cosine",
        "source": "PyTorch's defaults for AdamW; losses and prior of RetinaNet and FCOS",
    }
    variants = _VARIANTS
    _packages = _PACKAGES
    _stages = FROZEN_STAGES

    def _parts(self, seeds: RunSeeds) -> RunParts:
        return detection_parts(self._network, self._data, seed=seeds.weights)

    def _depends_on(self) -> dict[str, object]:
        return {
            "thinned": _THINNED[self.variant],
            "tile": (_TILE, _LEAST_VISIBLE),
            "rows": _ROWS,
            "stages": self._stages,
        }

    @cached_property
    def _data(self) -> BoxedImages:
        arrays = self._arrays()
        images = range(len(arrays["features"]))
        of_image = [arrays["box.image"] == image for image in images]
        return BoxedImages(
            torch.from_numpy(arrays["features"]).float(),
            [Boxes(arrays["box.sides"][mine], arrays["box.is_cut"][mine]) for mine in of_image],
            self._settings.size,
            splits_from_arrays(arrays),
        )

    def _build(self) -> dict[str, np.ndarray]:
        """Cut both photographs, split the tiles and run the frozen trunk over them once."""
        images: list[np.ndarray] = []
        boxes: list[Boxes] = []
        splits: dict[str, list[int]] = {name: [] for name in SPLITS}
        for split, image, found in self._tiles():
            splits[split].append(len(images))
            images.append(image)
            boxes.append(found)
        for split in ("validation", "selection", "test"):
            splits[split] = splits[split][:: _THINNED[self.variant]]
        used = sorted(row for rows in splits.values() for row in rows)
        (features,) = self._features([images[row] for row in used])
        kept = [boxes[row] for row in used]
        counts = [len(some.sides) for some in kept]
        rows_of = {name: np.searchsorted(used, rows) for name, rows in splits.items()}
        return {
            "features": features,
            "box.sides": np.concatenate([some.sides for some in kept]),
            "box.is_cut": np.concatenate([some.is_cut for some in kept]),
            "box.image": np.repeat(np.arange(len(kept)), counts),
            **splits_to_arrays(rows_of),
        }

    def _tiles(self) -> Iterator[tuple[str, np.ndarray, Boxes]]:
        """Yield split, image (size, size, 3) uint8 and trees of each tile and mirrored tile."""
        size = self._settings.size
        for split, pixels, corner, boxes in tiles_of(self.name, _TILE, _ROWS):
            found = boxes_in_tile(boxes, *corner, _TILE)
            found = Boxes(found.sides * np.float32(size / _TILE), found.is_cut)
            if split == "train" and not (~found.is_cut).any():
                continue
            image = resized(pixels, size)
            yield split, image, found
            if split == "train":
                sides = found.sides.copy()
                sides[:, [0, 2]] = size - found.sides[:, [2, 0]]
                yield split, image[:, ::-1], Boxes(sides, found.is_cut)


def boxes_in_tile(boxes: np.ndarray, top: int, left: int, size: int) -> Boxes:
    """Return the boxes that a tile shows, in the tile's own pixels, cut off at its border.

    Args:
        boxes: (n, 4) float32 left, top, right, bottom, in the photograph's pixels.
        top: First row of the tile.
        left: First column.
        size: Its height and width.

    Returns:
        The boxes of which anything is seen; ``is_cut`` where it is less than half of the area.

    >>> boxes_in_tile(np.array([[2.0, 2.0, 12.0, 6.0], [8.0, 0.0, 9.0, 9.0]]), 0, 0, 6)
    Boxes(sides=array([[2., 2., 6., 6.]], dtype=float32), is_cut=array([ True]))
    """
    shifted = boxes - np.array([left, top, left, top])
    shown = shifted.clip(0, size)
    area = np.prod(shifted[:, 2:] - shifted[:, :2], axis=1)
    seen = np.prod(shown[:, 2:] - shown[:, :2], axis=1)
    some = seen > 0
    return Boxes(shown[some].astype(np.float32), seen[some] < _LEAST_VISIBLE * area[some])
