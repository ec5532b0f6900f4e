"""Fine-tuning EfficientNet-Lite0 to tell tissues apart in slices of a brain (PyTorch).

Data: the ICBM 152 template of 2009, the magnetic resonance images (T1) of 152 adults brought into
one space and averaged, with maps of grey and white matter, at 1 mm; Fonov et al., NeuroImage 54
(2011). Out of the package nilearn (BSD-3-Clause), under the template's own permissive terms
(copyright of the McConnell Brain Imaging Centre, McGill University). Weights: EfficientNet-Lite0
on ImageNet-1k, Apache-2.0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

import numpy as np

from trimtab.tasks.data.packages import package_folder
from trimtab.tasks.data.splits import SPLITS
from trimtab.tasks.data.tree_photographs import resized
from trimtab.tasks.torch.efficientnet import EFFICIENTNET_PACKAGES
from trimtab.tasks.torch.segmentation import SegmentationTask
from trimtab.tasks.variants import Variant, recipe

_PACKAGES = {
    **EFFICIENTNET_PACKAGES,
    "PIL": "pillow",
    "nibabel": "nibabel",
    "nilearn": "nilearn",
    "torchmetrics": "torchmetrics",
}
_FILE = "datasets/data/mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"
_CROP = (slice(20, 180), slice(0, 160))  # left to right, bottom to top: holds the whole brain

# Split and number of slices of each block, from the back of the head on, `_GAP` slices between.
_FIRST_SLICE = 35
_GAP = 10
_BLOCKS = (
    ("train", 15),
    ("validation", 14),
    ("train", 15),
    ("test", 19),
    ("train", 15),
    ("selection", 14),
    ("train", 15),
)

# tuned_lr: python -m benchmarks.tuned_lr segmentation/brain-tissue --variant small --seeds 970001
#     --grid 3.16e-3,1e-2,3.16e-2,1e-1
# Best validation losses of that one seed: .232, .164, .152, .145 nats; the lower of the last two,
# whose test losses are .200 and .197, is taken. The other variants take the value of "small".
_VARIANTS = {
    "tiny": Variant(20, 4, 4.0, 3.16e-2, size=48),
    "small": Variant(200, 8, 12.0, 3.16e-2, size=64),
    "default": Variant(400, 8, 30.0, 3.16e-2, size=96),
}


class BrainTissue(SegmentationTask):
    """Background, grey matter, white matter or the rest, for each pixel of a slice of a brain.

    107 frontal slices of one averaged head, 160 x 160 mm, in seven blocks: train has four of 15
    slices (each slice also mirrored, 120), validation and selection one of 14 each, test one of 19
    in the middle of the brain. 10 slices (10 mm) between two blocks belong to none, since
    neighbours look alike. Still it is one head: what is learned says nothing about other heads. A
    voxel of the brain is grey or white matter where that map is highest and at least one half,
    else rest (mostly fluid).

    The stem and the first 5 of 16 stages are frozen, so their output is computed once for each
    slice and kept in the user's cache folder; a step trains the next 6 stages and the decoder.
    Optimiser: AdamW. ``size`` is the number of pixels that a slice's side is reduced to.

    Licence: template ICBM 152 (free to use and to pass on with its notice), package BSD-3-Clause,
    weights Apache-2.0. Cost: about 30 s a run on one core (``small`` 12 s, ``tiny`` 4 s).
    """

    name = "segmentation/brain-tissue"
    licence = "data ICBM 152 template terms (nilearn, BSD-3-Clause), weights Apache-2.0"
    manual = recipe("PyTorch's defaults for AdamW; cosine decay")
    variants = _VARIANTS
    _packages = _PACKAGES
    _n_classes = 4

    def _depends_on(self) -> dict[str, object]:
        return {"blocks": (_FIRST_SLICE, _GAP, _BLOCKS), "stages": self._stages}

    def _labelled(self) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Yield the slices of each split and the tissues in them."""
        head, grey, white = (self._volume(name) for name in ("t1", "gm", "wm"))
        classes = tissue_labels(head, grey, white)
        for split, chosen in slice_blocks().items():
            for at in chosen:
                # (left to right, bottom to top) -> (top to bottom, left to right)
                image = resized(head[:, at].T[::-1], self._settings.size)
                label = resized(classes[:, at].T[::-1], self._settings.size, is_labels=True)
                yield split, image, label

    def _volume(self, name: str) -> np.ndarray:
        """Return (160, 233, 160) uint8: left to right, back to front, bottom to top, 1 mm."""
        import nibabel

        path = package_folder(self.name, "nilearn", "nilearn") / _FILE.format(name)
        volume = np.asarray(nibabel.load(path).dataobj)
        return volume[_CROP[0], :, _CROP[1]].astype(np.uint8)


def slice_blocks() -> Mapping[str, np.ndarray]:
    """Return the numbers of the slices of each split, (n_split,) int64, from the back on."""
    found: dict[str, list[int]] = {name: [] for name in SPLITS}
    start = _FIRST_SLICE
    for split, count in _BLOCKS:
        found[split] += range(start, start + count)
        start += count + _GAP
    return MappingProxyType({name: np.array(rows, np.int64) for name, rows in found.items()})


def tissue_labels(head: np.ndarray, grey: np.ndarray, white: np.ndarray) -> np.ndarray:
    """Return the class of each voxel, uint8: 0 background, 1 grey, 2 white matter, 3 the rest.

    Args:
        head: Any shape, uint8: the image, 0 outside the brain.
        grey: As many voxels: share of grey matter, 255 for all.
        white: The same of white matter.

    >>> of = lambda *voxels: np.array(voxels, np.uint8)
    >>> tissue_labels(of(0, 9, 9, 9), of(255, 200, 55, 120), of(0, 55, 200, 90)).tolist()
    [0, 1, 2, 3]
    """
    matter = np.where(grey >= white, 1, 2)
    labels = np.where(np.maximum(grey, white) >= 128, matter, 3)
    return np.where(head > 0, labels, 0).astype(np.uint8)
