"""PyTorch's states as plain data and NumPy arrays, for files that hold nothing to be executed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from trimtab.core.errors import SpecError

__all__ = ["from_plain", "to_plain"]

# NumPy has no such type; its bits travel as another of the same size.
_AS_BITS = {torch.bfloat16: torch.int16}


def to_plain(value: Any) -> Any:
    """Return nested states with every tensor as a NumPy array; `from_plain` is the inverse.

    Args:
        value: Mappings with text or number keys, lists, tuples, numbers, texts, None and tensors.

    Raises:
        SpecError: Something else is in it.
    """
    if isinstance(value, torch.Tensor):
        tensor = value.detach().cpu().contiguous()
        tensor = tensor.view(_AS_BITS.get(tensor.dtype, tensor.dtype))
        kind = str(value.dtype).removeprefix("torch.")
        return {"tensor": tensor.numpy().copy(), "dtype": kind, "device": str(value.device)}
    if isinstance(value, Mapping):
        return {"pairs": [[key, to_plain(item)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return tuple(to_plain(item) for item in value)
    if isinstance(value, list):
        return [to_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise SpecError(
        f"state: {type(value).__name__} cannot be kept in a file; only numbers, texts, lists, "
        "mappings and tensors can"
    )


def from_plain(value: Any) -> Any:
    """Return the nested states that `to_plain` made plain; tensors on the device they came from."""
    if isinstance(value, tuple):
        return tuple(from_plain(item) for item in value)
    if isinstance(value, list):
        return [from_plain(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    if "pairs" in value:
        return {key: from_plain(item) for key, item in value["pairs"]}
    dtype = getattr(torch, value["dtype"])
    tensor = torch.from_numpy(np.array(value["tensor"], order="C"))
    return tensor.view(dtype if dtype in _AS_BITS else tensor.dtype).to(value["device"])
