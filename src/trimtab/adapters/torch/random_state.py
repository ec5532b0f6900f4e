"""The random state of Python, NumPy and PyTorch as plain values and tensors, for a checkpoint."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

__all__ = ["random_state", "restore_random_state"]


def random_state() -> dict[str, Any]:
    """Return the state of the global generators of this process."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 - the user's
    version, numbers, gauss_next = random.getstate()
    on_cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    return {
        "python": [version, list(numbers), gauss_next],
        "numpy": [str(kind), np.asarray(keys).tolist(), position, has_gauss, gauss],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if on_cuda else [],
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Put back what `random_state` returned; devices that are not there any more are left out."""
    version, numbers, gauss_next = state["python"]
    random.setstate((version, tuple(numbers), gauss_next))
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state(  # noqa: NPY002 - the user's
        (kind, np.asarray(keys, np.uint32), position, has_gauss, gauss)
    )
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([one.cpu() for one in state["cuda"]])
