"""The loss of each optimiser step of a ``Trainer``, which it keeps to itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from trimtab.core.errors import AdapterError

__all__ = ["StepLoss"]


class StepLoss:
    """Collects the losses of an optimiser step's micro-batches, each with its true weight.

    How Trainer weighs micro-batches depends on the model, the number of tokens and its version.
    So the weight is not guessed: it is the gradient that arrives at the loss in the backward
    pass, divided by the gradient scaler's factor.

    Attributes:
        comes_from_trainer: Whether somebody hands losses to `take`; else they are read from what
            the model returns.
    """

    def __init__(self) -> None:
        self.comes_from_trainer = False
        self._parts: list[_Part] = []
        self._handle: Any = None
        self._scaler: Any = None

    def begin(self, model: nn.Module, scaler: Any) -> None:
        """Listen to a model's losses, unless they come from the trainer."""
        self.end()
        self._scaler = scaler
        if not self.comes_from_trainer:
            self._handle = model.register_forward_hook(self._after_forward)

    def end(self) -> None:
        """Stop listening."""
        self._parts = []
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    @torch.compiler.disable  # type: ignore[untyped-decorator, unused-ignore]
    def take(self, loss: Any) -> None:
        """Take in a micro-batch's loss; what is not going to be trained on is passed over."""
        if isinstance(loss, torch.Tensor) and loss.requires_grad and torch.is_grad_enabled():
            part = _Part(loss.detach().clone())
            loss.register_hook(part.take_weight)
            self._parts.append(part)

    def count(self) -> int:
        """Return how many losses were taken for the coming step."""
        return len(self._parts)

    def rewind(self, count: int) -> None:
        """Forget the losses of a batch that is done again."""
        del self._parts[count:]

    def step(self) -> torch.Tensor:
        """Return the mean loss of the step that is about to be done, and forget it.

        Raises:
            AdapterError: No loss was seen.
        """
        parts, self._parts = self._parts, []
        weighted = [part.weighted() for part in parts if part.weight is not None]
        if not weighted:
            raise AdapterError(
                "the loss that Trainer trains on is not what the model returns (label smoothing, "
                "compute_loss_func, or a compute_loss of your own); use "
                "TrimtabCallback(...).attach(trainer) in the place of callbacks=[...]"
            )
        total = torch.stack(weighted).sum()
        return total if self._scaler is None else total / float(self._scaler.get_scale())

    def _after_forward(self, model: nn.Module, inputs: Any, outputs: Any) -> None:
        del inputs
        if not model.training:
            return
        if isinstance(outputs, Mapping):
            self.take(outputs.get("loss"))
        elif isinstance(outputs, tuple) and outputs and isinstance(outputs[0], torch.Tensor):
            self.take(outputs[0] if outputs[0].numel() == 1 else None)


class _Part:
    """One micro-batch's loss and, after its backward pass, its weight in the step."""

    def __init__(self, loss: torch.Tensor) -> None:
        self.loss = loss
        self.weight: torch.Tensor | None = None

    def take_weight(self, gradient: torch.Tensor) -> None:
        self.weight = gradient.detach().clone()

    def weighted(self) -> torch.Tensor:
        assert self.weight is not None
        return (self.loss.double() * self.weight.double()).sum()
