"""Optimisers around others (Accelerate, Fabric, fastai, SAM): what is inside, how it is stepped."""

from __future__ import annotations

from functools import wraps
from typing import Any

import torch

from trimtab.core.errors import AdapterError


def unwrapped(optimizer: Any) -> Any:
    """Return the optimiser inside Accelerate's, Fabric's or fastai's, or that SAM steps by.

    Another one is returned as it is.
    """
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
    if has_two_steps(wrapper):
        return wrapper.base_optimizer
    return wrapper.opt if hasattr(wrapper, "fwd_map") else wrapper.optimizer


def _is_wrapper(optimizer: Any) -> bool:
    names = {cls.__name__ for cls in type(optimizer).__mro__}
    known = {"AcceleratedOptimizer", "_FabricOptimizer", "OptimWrapper", "SecondStep"}
    return bool(names & known) or has_two_steps(optimizer)


def has_two_steps(optimizer: Any) -> bool:
    """Return whether an optimiser looks at two gradients for each step, as SAM does."""
    needed = ("first_step", "second_step", "base_optimizer")
    return all(hasattr(optimizer, name) for name in needed)


class SecondStep:
    """The second half of a step of SAM, which takes the place of a whole one.

    The loop does the first half: ``loss.backward(); sam.first_step(zero_grad=True)``, and again a
    forward and a backward pass.

    Args:
        optimizer: SAM, or one like it.

    Attributes:
        optimizer: It.
    """

    def __init__(self, optimizer: Any) -> None:
        self.optimizer, self._is_due = optimizer, False
        first = optimizer.first_step

        @wraps(first)
        def first_step(*args: Any, **kwargs: Any) -> Any:
            self._is_due = True
            return first(*args, **kwargs)

        optimizer.first_step = first_step

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimiser's groups."""
        groups: list[dict[str, Any]] = unwrapped(self).param_groups
        return groups

    def step(self) -> None:
        """Go back from where the first half went, and step with the gradient found there.

        Raises:
            AdapterError: There was no first half.
        """
        if not self._is_due:
            name = type(self.optimizer).__name__
            raise AdapterError(
                f"optimizer: {name} looks at two gradients a step, and its first_step was not "
                "called; write loss.backward(); optimizer.first_step(zero_grad=True); "
                "loss_fn(model(x), y).backward(); controller.step(loss)"
            )
        self._is_due = False
        self.optimizer.second_step()

    def zero_grad(self) -> None:
        """Clear the gradients."""
        self.optimizer.zero_grad()


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
