"""Doing a training batch again in smaller parts where it ran out of memory."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from trimtab.adapters.snapshots import is_out_of_memory
from trimtab.adapters.torch.state import random_state, restore_random_state
from trimtab.core.notices import tell


class MicroBatches:
    """Does the forward and backward pass of a batch, in as many parts as memory needs.

    Nothing is done to a batch that fits. One that does not is rolled back (gradients, buffers,
    random state) and done again in twice as many parts, whose gradients add up to the batch's
    mean; later batches are cut alike. Batch normalisation sees the parts, as it does in gradient
    accumulation. An error with parts of one example is the user's to see.

    Args:
        model: Whose gradients and buffers are rolled back.
        told: Called with a message after a batch that was done again; None to warn.

    Attributes:
        parts: In how many parts batches are done now.
        retries: How often a batch was done again.
    """

    def __init__(self, model: nn.Module, told: Callable[[str], None] | None = None) -> None:
        self.parts, self.retries = 1, 0
        self._model, self._told = model, told or tell

    def run(
        self,
        batch: Any,
        backward: Callable[[Any, float], torch.Tensor],
        undo: Callable[[], None] = lambda: None,
    ) -> torch.Tensor:
        """Return the batch's loss after its backward pass.

        Args:
            batch: Tensors, or mappings and sequences of them; those as long as the first one in
                their first dimension are cut.
            backward: Does one part, whose loss counts with the share that it is given, and returns
                its loss times that share, detached.
            undo: Called before a batch is done again.

        Raises:
            RuntimeError: Memory ran out with one example a part.
        """
        state = random_state()
        buffers = [(buffer, buffer.detach().clone()) for buffer in self._model.buffers()]
        # Set aside rather than copied; adding them up afterwards is what autograd does.
        before = [(weight, weight.grad) for weight in self._model.parameters()]
        for weight, _ in before:
            weight.grad = None
        while True:
            try:
                losses = [backward(part, share) for part, share in parts_of(batch, self.parts)]
                break
            except Exception as error:
                if not is_out_of_memory(error) or self.parts >= _length(batch):
                    self._roll_back(before, buffers, state)
                    for weight, gradient in before:
                        weight.grad = gradient
                    raise
                said = str(error).partition("\n")[0]
            self._roll_back(before, buffers, state)
            undo()
            self.parts, self.retries = min(2 * self.parts, _length(batch)), self.retries + 1
            self._told(
                f"memory ran out ({said}); the batch is done again in {self.parts} parts, and so "
                "are those that follow"
            )
        with torch.no_grad():
            for weight, gradient in before:
                if gradient is not None:
                    weight.grad = gradient if weight.grad is None else gradient.add_(weight.grad)
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    @torch.no_grad()
    def _roll_back(self, before: Any, buffers: Any, state: Mapping[str, Any]) -> None:
        for weight, _ in before:
            weight.grad = None
        for buffer, kept in buffers:
            buffer.copy_(kept)
        restore_random_state(state)
        gc.collect()
        with suppress(AssertionError, RuntimeError):
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def parts_of(batch: Any, parts: int) -> list[tuple[Any, float]]:
    """Return a batch cut in parts of nearly the same size, each with its share of the examples."""
    n = _length(batch)
    if parts <= 1 or n <= 1:
        return [(batch, 1.0)]
    bounds = [n * index // parts for index in range(parts + 1)]
    return [
        (_cut(batch, first, last, n), (last - first) / n)
        for first, last in pairwise(bounds)
        if last > first
    ]


def _cut(value: Any, first: int, last: int, n: int) -> Any:
    if isinstance(value, torch.Tensor):
        return value[first:last] if value.dim() and len(value) == n else value
    if isinstance(value, Mapping):
        return {key: _cut(item, first, last, n) for key, item in value.items()}
    if isinstance(value, list | tuple):
        cut = [_cut(item, first, last, n) for item in value]
        return type(value)(*cut) if hasattr(value, "_fields") else type(value)(cut)
    return value


def _length(batch: Any) -> int:
    """Return how many examples there are: the length of the first tensor, or 1."""
    if isinstance(batch, torch.Tensor):
        return len(batch) if batch.dim() else 1
    items = batch.values() if isinstance(batch, Mapping) else batch
    for item in items if isinstance(batch, Mapping | list | tuple) else ():
        n = _length(item)
        if n > 1:
            return n
    return 1
