"""Aerial photographs of woods with a box around each tree, cut into tiles.

Data: four photographs of the National Ecological Observatory Network's sites, about 10 cm a pixel,
annotated by hand; Weinstein et al., "Individual tree-crown detection in RGB imagery using
semi-supervised deep learning neural networks", Remote Sensing 11 (2019); out of the package
deepforest, MIT licence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple
from xml.etree import ElementTree as Xml

import numpy as np

from trimtab.tasks.data.packages import package_folder

TREE_PACKAGES: Mapping[str, str] = MappingProxyType({"deepforest": "deepforest", "PIL": "pillow"})
"""What `read_photograph` needs: importable module -> package."""

TRAINING_SITE = "2019_YELL_2_528000_4978000_image_crop2"
"""2,299 x 2,472 pixels, 574 trees."""
TEST_SITE = "2019_YELL_2_541000_4977000_image_crop"
"""1,249 x 1,035 pixels, 279 trees, 13 km away."""


class Photograph(NamedTuple):
    """A photograph and the trees in it.

    Attributes:
        pixels: (height, width, 3) uint8, red, green, blue.
        boxes: (n, 4) float32, left, top, right, bottom, in pixels.
    """

    pixels: np.ndarray
    boxes: np.ndarray


def read_photograph(task: str, name: str) -> Photograph:
    """Return one of the package's photographs.

    Args:
        task: Who needs it, for the message of an error.
        name: `TRAINING_SITE` or `TEST_SITE`.

    Raises:
        MissingDependencyError: A package is not installed.
    """
    folder: Path = package_folder(task, "deepforest", TREE_PACKAGES["deepforest"]) / "data"
    from PIL import Image

    with Image.open(folder / f"{name}.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    return Photograph(pixels, read_boxes((folder / f"{name}.xml").read_text(encoding="utf-8")))


class Tile(NamedTuple):
    """A square of a photograph.

    Attributes:
        split: Which one it belongs to.
        pixels: (size, size, 3) uint8.
        corner: Its first row and column in the photograph.
        boxes: (n, 4) float32, all trees of the photograph, in the photograph's pixels.
    """

    split: str
    pixels: np.ndarray
    corner: tuple[int, int]
    boxes: np.ndarray


def tiles_of(task: str, size: int, rows: str) -> Iterator[Tile]:
    """Yield the tiles of the two sites, row by row; those of `TEST_SITE` are of the split test.

    Args:
        task: Who needs them, for the message of an error.
        size: Pixels of a side.
        rows: First letter of the split of each row of tiles of `TRAINING_SITE`, from the top.
    """
    split_of = {name[0]: name for name in ("train", "validation", "selection")}
    for site in (TRAINING_SITE, TEST_SITE):
        pixels, boxes = read_photograph(task, site)
        height, width = pixels.shape[:2]
        for top, left in tile_corners(height, width, size).tolist():
            split = "test" if site == TEST_SITE else split_of[rows[top // size]]
            yield Tile(split, pixels[top : top + size, left : left + size], (top, left), boxes)


def read_boxes(text: str) -> np.ndarray:
    """Return the boxes of an annotation in Pascal VOC's form, (n, 4) float32.

    >>> text = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>5</xmax><ymax>4</ymax></bndbox>"
    >>> read_boxes(f"<annotation><object>{text}</object></annotation>").tolist()
    [[1.0, 2.0, 5.0, 4.0]]
    """
    sides = ("xmin", "ymin", "xmax", "ymax")
    boxes = [
        [float(box.findtext(side, "nan")) for side in sides]
        for box in Xml.fromstring(text).iter("bndbox")
    ]
    return np.array(boxes, np.float32).reshape(-1, 4)


def tile_corners(height: int, width: int, size: int) -> np.ndarray:
    """Return the top left corners of the tiles that fit side by side, (n, 2) int64: top, left.

    Tiles come row by row; what is left at the right and at the bottom belongs to none.

    >>> tile_corners(5, 7, 3).tolist()
    [[0, 0], [0, 3]]
    """
    tops, lefts = np.arange(height // size) * size, np.arange(width // size) * size
    grid = np.stack(np.meshgrid(tops, lefts, indexing="ij"), axis=-1)
    return grid.reshape(-1, 2).astype(np.int64)


def resized(picture: np.ndarray, pixels: int, *, is_labels: bool = False) -> np.ndarray:
    """Return a picture scaled to a square of ``pixels``, by Pillow.

    Args:
        picture: (height, width) or (height, width, 3) uint8.
        pixels: Height and width of the result.
        is_labels: Whether values are classes: the nearest is taken, none are mixed.

    Returns:
        (pixels, pixels) or (pixels, pixels, 3) uint8.
    """
    from PIL import Image

    method = Image.Resampling.NEAREST if is_labels else Image.Resampling.BILINEAR
    image = Image.fromarray(np.ascontiguousarray(picture)).resize((pixels, pixels), method)
    return np.array(image)
