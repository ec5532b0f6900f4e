"""Optimisers that Accelerate, Fabric and fastai wrap: what is inside, and how it is stepped."""

from __future__ import annotations

from typing import Any

import torch


def unwrapped(optimizer: Any) -> Any:
    """Return the optimiser inside Accelerate's, Fabric's or fastai's; another one as it is."""
    while _is_wrapper(optimizer):
        optimizer = _inside(optimizer)
    return optimizer


def scaler_of(optimizer: Any) -> Any:
    """Return the gradient scaler that a wrapper steps its optimiser by, or None."""
    optimizer = getattr(optimizer, "given", [optimizer])[0]  # of several all have the same
    while _is_wrapper(optimizer):
        strategy = getattr(optimizer, "_strategy", None)
        holder = optimizer if strategy is None else getattr(strategy, "precision", None)
        scaler = getattr(holder, "scaler", None)
        if scaler is not None:
            return scaler
        optimizer = _inside(optimizer)
    return None


def _inside(wrapper: Any) -> Any:
    return wrapper.opt if hasattr(wrapper, "fwd_map") else wrapper.optimizer


def _is_wrapper(optimizer: Any) -> bool:
    names = {cls.__name__ for cls in type(optimizer).__mro__}
    return bool(names & {"AcceleratedOptimizer", "_FabricOptimizer", "OptimWrapper"})


class Accumulation:
    """The micro-batches that Accelerate gathers for one optimiser step.

    Inside ``accelerator.accumulate(model)`` a loop calls ``optimizer.step()`` after each of them,
    and Accelerate lets the last one through. So does this.

    Args:
        optimizer: The optimiser that the loop was given.
    """

    def __init__(self, optimizer: Any) -> None:
        first = getattr(optimizer, "given", [optimizer])[0]
        self._state = getattr(first, "gradient_state", None)
        self._losses: list[torch.Tensor | float] = []

    @property
    def is_possible(self) -> bool:
        """Whether there is anything that gathers micro-batches."""
        return self._state is not None

    def gathers(self, loss: torch.Tensor | float) -> bool:
        """Take in a micro-batch's loss; return whether more of them come before the step."""
        if self._state is None or (self._state.sync_gradients and not self._losses):
            return False
        self._losses.append(loss.detach() if isinstance(loss, torch.Tensor) else loss)
        return not self._state.sync_gradients

    def mean(self, loss: torch.Tensor | float) -> torch.Tensor | float:
        """Return the mean loss of the step that is due, given that of its last micro-batch."""
        losses, self._losses = self._losses, []
        return sum(losses) / len(losses) if losses else loss
