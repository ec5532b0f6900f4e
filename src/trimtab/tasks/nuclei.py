"""Fine-tuning EfficientNet-Lite0 to find cell nuclei in a microscope's image (PyTorch).

Data: one fluorescence image, 512 x 512, with the outlines of 125 nuclei, of the 2018 Data Science
Bowl (Caicedo et al., Nature Methods 16, 2019; Broad Bioimage Benchmark Collection BBBC038, CC0),
as the package stardist (BSD-3-Clause) brings it. Weights: EfficientNet-Lite0 on ImageNet-1k,
Apache-2.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

from trimtab.tasks.cache import cached_arrays
from trimtab.tasks.efficientnet import EFFICIENTNET_PACKAGES, pretrained_network, trunk_outputs
from trimtab.tasks.packages import package_folder, package_versions, require_packages
from trimtab.tasks.pictures import resized
from trimtab.tasks.randomness import RunSeeds
from trimtab.tasks.segmentation import FROZEN_STAGES, LabelledImages, segmentation_run
from trimtab.tasks.splits import SPLITS
from trimtab.tasks.torch_run import TorchRun
from trimtab.tasks.torch_task import OptimizerMaker, TorchTask
from trimtab.tasks.variants import Variant, recipe

__all__ = ["Nuclei", "Region", "eight_bits", "nuclei_regions"]

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


class Nuclei(TorchTask):
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
    on one core (``small`` 8 s, ``tiny`` 4 s). ``tuned_lr`` was searched on a
    coarse grid for ``small`` only.

    Attributes:
        hyperparameters: All act: lr, weight_decay, beta1, dropout, label_smoothing, clip.
        monitor: ``"loss"``, the pixels' log-loss in nats; see
            `trimtab.tasks.segmentation.segmentation_scores` for what is measured with it.
    """

    name = "segmentation/nuclei"
    kind = "semantic-segmentation"
    metric = "mean IoU"
    licence = "data CC0 (BBBC038), package stardist BSD-3-Clause, weights Apache-2.0"
    manual = recipe("PyTorch's defaults for AdamW; cosine decay")
    variants = _VARIANTS

    def _run(self, seeds: RunSeeds, optimizer: OptimizerMaker) -> TorchRun:
        data = self._data
        return segmentation_run(
            self._network,
            data,
            batch_size=self.batch_size,
            hyperparameters=self.hyperparameters,
            seeds=seeds,
            optimizer=optimizer,
        )

    @cached_property
    def _network(self) -> Any:
        return pretrained_network(self.name, self._settings.size)

    @cached_property
    def _data(self) -> LabelledImages:
        require_packages(self.name, _PACKAGES)
        inputs = {
            "format": 1,
            "pixels": self._settings.size,
            "regions": _REGIONS,
            "percentiles": _PERCENTILES,
            "stages": FROZEN_STAGES,
            "torch": torch.__version__,
        }
        arrays = cached_arrays("nuclei", {**inputs, **package_versions(_PACKAGES)}, self._build)
        return LabelledImages(
            [torch.from_numpy(arrays[f"stage.{n}"]).float() for n in FROZEN_STAGES],
            torch.from_numpy(arrays["labels"]).long(),
            {name: arrays[f"split.{name}"] for name in SPLITS},
            2,
        )

    def _build(self) -> dict[str, np.ndarray]:
        """Cut the tiles and run the frozen trunk over them once."""
        image, mask = self._image("img2d.tif"), self._image("mask2d.tif")
        train = _REGIONS["train"]
        seen = image[train.top : train.top + train.height, train.left : train.left + train.width]
        low, high = np.percentile(seen, _PERCENTILES)
        grey, nucleus = eight_bits(image, low, high), (mask > 0).astype(np.uint8)
        images: list[np.ndarray] = []
        labels: list[np.ndarray] = []
        splits: dict[str, list[int]] = {name: [] for name in SPLITS}
        for split, corners in nuclei_regions().items():
            for top, left in corners.tolist():
                square = (slice(top, top + _TILE), slice(left, left + _TILE))
                tile = resized(grey[square], self._settings.size)
                label = resized(nucleus[square], self._settings.size, is_labels=True)
                for mirrored in (False, True)[: 2 if split == "train" else 1]:
                    splits[split].append(len(images))
                    images.append(tile[:, ::-1] if mirrored else tile)
                    labels.append(label[:, ::-1] if mirrored else label)
        features = trunk_outputs(self._network, np.stack(images), FROZEN_STAGES)
        return {
            **{f"stage.{n}": part for n, part in zip(FROZEN_STAGES, features, strict=True)},
            "labels": np.stack(labels),
            **{f"split.{name}": np.array(rows, np.int64) for name, rows in splits.items()},
        }

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
