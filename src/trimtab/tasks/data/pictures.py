"""Pictures in another size."""

from __future__ import annotations

import numpy as np

__all__ = ["resized"]


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
