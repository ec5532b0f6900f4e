"""The random state of Python and NumPy as plain values; each framework adds its own."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np


def random_state() -> dict[str, Any]:
    """Return the state of the two global generators of this process."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 - the user's
    version, numbers, gauss_next = random.getstate()
    return {
        "python": [version, list(numbers), gauss_next],
        "numpy": [str(kind), np.asarray(keys).tolist(), position, has_gauss, gauss],
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Put back what `random_state` returned, or what earlier versions kept of a Keras run."""
    version, numbers, gauss_next = _in_order(state["python"])
    random.setstate((version, tuple(map(int, numbers)), gauss_next))
    kind, keys, position, has_gauss, gauss = _in_order(state["numpy"])
    np.random.set_state(  # noqa: NPY002 - the user's
        (kind, np.asarray(keys, np.uint32), position, has_gauss, gauss)
    )


def _in_order(kept: Any) -> list[Any]:
    # Version 0.1 wrote mappings for Keras, whose entries stand in this very order.
    return list(kept.values() if isinstance(kept, Mapping) else kept)
