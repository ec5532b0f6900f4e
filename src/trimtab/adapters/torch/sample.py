"""Which entries of a model's weights and gradients are looked at, where there are very many."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

__all__ = ["SAMPLED_ENTRIES", "Room", "Sample"]

SAMPLED_ENTRIES = 32_768
"""So many entries, or up to twice as many, are looked at; a smaller model is seen whole."""

_LEAST = 64  # entries of each tensor, if it has so many
_PLACES = 7919  # a prime: tensors of one shape are not all looked at in the same place


class Sample:
    """A fixed choice of the entries of a list of tensors, the same in each process and run.

    Each tensor is a stratum that gives entries in proportion to its size, at least 64 of them:
    every k-th slice along its first dimension that is long enough for that (rows of a matrix,
    filters of a convolution), or along its longest one. The choice follows from the shapes alone,
    so it needs no state. A square sum is estimated by weighting each entry with its tensor's size
    over the entries taken from it, which is without bias over the choice of the first slice.

    Args:
        tensors: All trainable weights.
        entries: How many entries to look at altogether.

    Attributes:
        is_whole: Whether every entry is looked at, and nothing is estimated.
        entries: Number of entries that are looked at.
        device: Where samples are kept: that of the first tensor.
    """

    def __init__(self, tensors: Sequence[torch.Tensor], entries: int = SAMPLED_ENTRIES) -> None:
        self.shapes = [tensor.shape for tensor in tensors]
        is_double = any(tensor.dtype in (torch.float64, torch.complex128) for tensor in tensors)
        given, tensors = tensors, [_plain(tensor) for tensor in tensors]
        total = sum(tensor.numel() for tensor in tensors)
        self._slices: list[tuple[slice, ...] | None] = []
        self._sizes: list[torch.Size] = []
        weights: list[float] = []
        for index, tensor in enumerate(tensors):
            where = _slices(tensor, entries / total, index) if total > entries else None
            size = tensor.shape if where is None else tensor[where].shape
            self._slices.append(where)
            self._sizes.append(size)
            weights.append(tensor.numel() / max(size.numel(), 1))
        counts = [size.numel() for size in self._sizes]
        self._is_complex = any(tensor.dtype.is_complex for tensor in given)
        self.is_whole = all(where is None for where in self._slices)
        self.entries = sum(counts)
        self.device = tensors[0].device if tensors else torch.device("cpu")
        # Half-precision entries are kept as float32, whose range holds their squares.
        self._dtype = torch.float64 if is_double else torch.float32
        self._weights: torch.Tensor | None = None
        if not self.is_whole:
            each = torch.tensor(weights, dtype=self._dtype)
            self._weights = each.repeat_interleave(torch.tensor(counts)).to(self.device)

    def fits(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Return whether this is a choice for tensors of these shapes."""
        return len(tensors) == len(self.shapes) and all(
            tensor.shape == shape for tensor, shape in zip(tensors, self.shapes, strict=True)
        )

    def room(self) -> Room:
        """Return room for one sample."""
        flat = torch.zeros(self.entries, dtype=self._dtype, device=self.device)
        views, start = [], 0
        for size in self._sizes:
            views.append(flat[start : start + size.numel()].view(size))
            start += size.numel()
        return Room(flat, views, self._slices, is_complex=self._is_complex)

    def weighted(self, sample: torch.Tensor) -> torch.Tensor:
        """Return a sample with each entry multiplied by how many it stands for."""
        return sample if self._weights is None else sample * self._weights


class Room:
    """Holds one sample; it is written again and again, for new pages cost more than the copy.

    Attributes:
        flat: (entries,) the sample.
    """

    def __init__(
        self,
        flat: torch.Tensor,
        views: list[torch.Tensor],
        slices: list[tuple[slice, ...] | None],
        *,
        is_complex: bool,
    ) -> None:
        self.flat = flat
        self._is_complex = is_complex
        self._views, self._slices = views, slices

    def take(self, tensors: Sequence[torch.Tensor | None]) -> torch.Tensor:
        """Copy the chosen entries here and return them; a tensor that is None counts as zeros."""
        return self.copy(self.chosen(tensors))

    @torch.no_grad()
    def chosen(self, tensors: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None]:
        """Return the chosen entries of each tensor: views of it, if it is dense."""
        return [
            None if tensor is None else self._entries(tensor, where)
            for tensor, where in zip(tensors, self._slices, strict=True)
        ]

    @torch.no_grad()
    def copy(self, chosen: Sequence[torch.Tensor | None]) -> torch.Tensor:
        """Copy what `chosen` returned here and return it; None counts as zeros."""
        into: list[torch.Tensor] = []
        taken: list[torch.Tensor] = []
        for entries, view in zip(chosen, self._views, strict=True):
            if entries is None:
                view.zero_()
            else:
                into.append(view)
                taken.append(entries)
        if into:
            torch._foreach_copy_(into, taken)
        return self.flat

    def _entries(self, tensor: torch.Tensor, where: tuple[slice, ...] | None) -> torch.Tensor:
        entries = _plain(tensor) if self._is_complex or tensor.is_sparse else tensor
        return entries if where is None else entries[where]


def _slices(tensor: torch.Tensor, share: float, index: int) -> tuple[slice, ...] | None:
    """Return which slices of a tensor to take; None for all of it."""
    n = tensor.numel()
    wanted = max(math.ceil(n * share), min(_LEAST, n))
    every = n // wanted if wanted else 1
    if every < 2:
        return None
    long_enough = [axis for axis, length in enumerate(tensor.shape) if length >= 2 * every]
    axis = long_enough[0] if long_enough else max(range(tensor.dim()), key=tensor.shape.__getitem__)
    every = min(every, tensor.shape[axis])
    return (*[slice(None)] * axis, slice(index * _PLACES % every, None, every))


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """Return a dense view without history; a complex entry is two."""
    tensor = tensor.detach()
    if tensor.is_sparse:
        tensor = tensor.to_dense()
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor
