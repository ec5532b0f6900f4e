"""Fine-tuning EfficientNet-Lite0 to find cell nuclei in a microscope's image (PyTorch).

Data: one fluorescence image, 512 x 512, with the outlines of 125 nuclei, of the 2018 Data Science
Bowl (Caicedo et al., Nature Methods 16, 2019; Broad Bioimage Benchmark Collection BBBC038, CC0),
as the package stardist (BSD-3-Clause) brings it. Weights: EfficientNet-Lite0 on ImageNet-1k,
Apache-2.0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from trimtab.tasks.data.packages import package_folder
from trimtab.tasks.data.tree_photographs import resized
from trimtab.tasks.torch.efficientnet import EFFICIENTNET_PACKAGES
from trimtab.tasks.torch.segmentation import SegmentationTask
from trimtab.tasks.variants import Variant, recipe

_PACKAGES = {
    **EFFICIENTNET_PACKAGES,
    "PIL": "pillow",
    "stardist": "stardist",
    "torchmetrics": "torchmetrics",
}
_FOLDER = "data/images"
_TILE = 64
_PERCENTILES = (1.0, 99.8)

# tuned_lr: python -m benchmarks.tuned_lr segmentation/nuclei --variant small --seeds 970001
#     --grid 1e-3,3.16e-3,1e-2,3.16e-2
# Best validation losses of that one seed: .305, .121, .098, .095 nats; the lower of the last two,
# which cannot be told apart, is taken. The other variants take the value of "small".
_VARIANTS = {
    "tiny": Variant(20, 4, 4.0, 1e-2, size=48),
    "small": Variant(100, 8, 8.0, 1e-2, size=64),
    "default": Variant(200, 8, 45.0, 1e-2, size=96),
}


class Region(NamedTuple):
    """A rectangle of the image that belongs to one split, in pixels.

    Attributes:
        top: First row.
        left: First column.
        height: Number of rows.
        width: Number of columns.
        stride: Distance between two tiles; the tile's side where they do not overlap.
    """

    top: int
    left: int
    height: int
    width: int
    stride: int


_REGIONS: Mapping[str, Region] = {
    "train": Region(0, 0, 192, 256, 32),
    "validation": Region(224, 0, 128, 256, _TILE),
    "selection": Region(384, 0, 128, 256, _TILE),
    "test": Region(0, 320, 512, 192, _TILE),
}


class Nuclei(SegmentationTask):
    """Nucleus or background, for each pixel of a microscope's image.

    The left half of the one image gives train (192 rows; tiles of 64 pixels every 32, each also
    mirrored, 70), validation and selection (128 rows, 8 tiles each), the right half gives test (24
    tiles); 32 rows or 64 columns between two splits belong to none. So little shows that
    fine-tuning works; it decides no comparison. Brightness is stretched from the 1st to the 99.8th
    percentile of the training rows.

    The stem and the first 5 of 16 stages are frozen, so their output is computed once for each
    tile and kept in the user's cache folder; a step trains the next 6 stages and the decoder.
    Optimiser: AdamW. ``size`` is the number of pixels that a tile's side is scaled to.

    Licence: image CC0 (BBBC038), package BSD-3-Clause, weights Apache-2.0. Cost: about 45 s a run
    on one core (``small`` 8 s, ``tiny`` 4 s).
    """

    name = "segmentation/nuclei"
    licence = "data CC0 (BBBC038), package stardist BSD-3-Clause, weights Apache-2.0"
    manual = recipe("PyTorch's defaults for AdamW; cosine decay")
    variants = _VARIANTS
    _packages = _PACKAGES
    _n_classes = 2

    def _depends_on(self) -> dict[str, object]:
        return {"regions": _REGIONS, "percentiles": _PERCENTILES, "stages": self._stages}

    def _labelled(self) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Yield the tiles of each split and the nuclei in them."""
        image, mask = self._image("img2d.tif"), self._image("mask2d.tif")
        train = _REGIONS["train"]
        seen = image[train.top : train.top + train.height, train.left : train.left + train.width]
        low, high = np.percentile(seen, _PERCENTILES)
        grey, nucleus = eight_bits(image, low, high), (mask > 0).astype(np.uint8)
        for split, corners in nuclei_regions().items():
            for top, left in corners.tolist():
                square = (slice(top, top + _TILE), slice(left, left + _TILE))
                tile = resized(grey[square], self._settings.size)
                yield split, tile, resized(nucleus[square], self._settings.size, is_labels=True)

    def _image(self, name: str) -> np.ndarray:
        """Return (512, 512) float64."""
        from PIL import Image

        path = package_folder(self.name, "stardist", "stardist") / _FOLDER / name
        with Image.open(path) as image:
            return np.asarray(image).astype(np.float64)


def nuclei_regions() -> dict[str, np.ndarray]:
    """Return the top left corners of each split's tiles, (n, 2) int64: top, left."""
    corners: dict[str, np.ndarray] = {}
    for split, (top, left, height, width, stride) in _REGIONS.items():
        tops = np.arange(top, top + height - _TILE + 1, stride)
        lefts = np.arange(left, left + width - _TILE + 1, stride)
        grid = np.stack(np.meshgrid(tops, lefts, indexing="ij"), axis=-1)
        corners[split] = grid.reshape(-1, 2).astype(np.int64)
    return corners


def eight_bits(image: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return brightness from ``low`` to ``high`` as uint8, 0 to 255; what is outside is cut.

    >>> eight_bits(np.array([0.0, 10.0, 15.0, 99.0]), 10.0, 20.0).tolist()
    [0, 0, 128, 255]
    """
    share = np.clip((image - low) / (high - low), 0.0, 1.0)
    return np.rint(255.0 * share).astype(np.uint8)
