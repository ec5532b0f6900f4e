"""Names and places of a network's tensors inside one flat vector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Tensor:
    """One named array of a network.

    Attributes:
        name: Unique within its layout, such as ``"0.weight"``.
        shape: Of the array.
        layer: Depth from the input, 0 first; the head has the highest.
        decays: Whether weight decay acts on it (matrices yes; biases and norms no).
    """

    name: str
    shape: tuple[int, ...]
    layer: int
    decays: bool = True

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape))


@dataclass(frozen=True)
class Layout:
    """The order in which tensors lie in a flat vector.

    Attributes:
        tensors: In order.
    """

    tensors: tuple[Tensor, ...]

    @cached_property
    def size(self) -> int:
        """Length P of the flat vector."""
        return sum(tensor.size for tensor in self.tensors)

    @cached_property
    def n_layers(self) -> int:
        """Number of layers, the head included."""
        return 1 + max(tensor.layer for tensor in self.tensors)

    @cached_property
    def tensor_of_element(self) -> np.ndarray:
        """(P,) int32: index of the tensor that each element belongs to."""
        sizes = [tensor.size for tensor in self.tensors]
        return np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)

    @cached_property
    def layer_of_element(self) -> np.ndarray:
        """(P,) int32: layer that each element belongs to."""
        layers = np.asarray([tensor.layer for tensor in self.tensors], np.int32)
        return np.asarray(layers[self.tensor_of_element])

    @cached_property
    def decays(self) -> np.ndarray:
        """(P,) float32: 1 where weight decay acts, else 0."""
        flags = np.asarray([tensor.decays for tensor in self.tensors], np.float32)
        return np.asarray(flags[self.tensor_of_element])

    def split(self, flat: Any) -> dict[str, Any]:
        """Return the tensors of a flat (P,) vector by name."""
        named, start = {}, 0
        for tensor in self.tensors:
            named[tensor.name] = flat[start : start + tensor.size].reshape(tensor.shape)
            start += tensor.size
        return named

    def join(self, named: Mapping[str, Any], xp: Any = np) -> Any:
        """Return the flat (P,) vector of tensors by name; the inverse of `split`."""
        return xp.concatenate([named[tensor.name].reshape(-1) for tensor in self.tensors])
