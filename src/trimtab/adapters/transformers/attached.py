"""What a callback can do only with a ``Trainer`` in hand: see its loss, smooth labels, retry."""

from __future__ import annotations

from collections.abc import Mapping
from functools import wraps
from typing import Any

import torch

from trimtab.adapters.torch.actuators import Place
from trimtab.adapters.torch.memory import MicroBatches
from trimtab.adapters.torch.proofs import Replay
from trimtab.adapters.transformers.loss import StepLoss

__all__ = ["Attachment"]


class Attachment:
    """Stands around a trainer's ``compute_loss`` and ``training_step``.

    Args:
        trainer: The trainer; one process, or memory that runs out is left to the user.
        losses: Takes each loss that is trained on.

    Attributes:
        memory: Cuts batches that run out of memory.
    """

    def __init__(self, trainer: Any, losses: StepLoss) -> None:
        self._trainer, self._losses = trainer, losses
        self._replay = Replay(None, trainer.model)
        self.memory = MicroBatches(trainer.model)
        self._compute, self._train = trainer.compute_loss, trainer.training_step

        @wraps(self._compute)
        def compute_loss(*args: Any, **kwargs: Any) -> Any:
            return self._compute_loss(*args, **kwargs)

        @wraps(self._train)
        def training_step(*args: Any, **kwargs: Any) -> torch.Tensor:
            return self._training_step(*args, **kwargs)

        trainer.compute_loss, trainer.training_step = compute_loss, training_step

    def smoothing(self) -> Place | None:
        """Return where Trainer keeps label smoothing; None if it smooths nothing."""
        smoother = getattr(self._trainer, "label_smoother", None)
        if smoother is None:
            return None

        def write(value: float) -> None:
            smoother.epsilon = value

        def read() -> float:
            return float(smoother.epsilon)

        return Place(read(), read, write, owner=self._replay)

    def _compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        if self._replay.waits and torch.is_grad_enabled() and not self._replay.was_called:
            kept, named = _copied(args), _copied(kwargs)
            self._replay.remember(lambda: self._compute(*_copied(kept), **_copied(named)))
        result = self._compute(*args, **kwargs)
        self._losses.take(result[0] if isinstance(result, tuple) else result)
        return result

    def _training_step(
        self, model: Any, inputs: Any, num_items_in_batch: Any = None, *args: Any
    ) -> torch.Tensor:
        trainer, seen = self._trainer, self._losses.count()
        if trainer.accelerator.num_processes > 1:
            return self._train(model, inputs, num_items_in_batch, *args)  # type: ignore[no-any-return]

        def backward(part: Any, share: float) -> torch.Tensor:
            whole = getattr(trainer, "current_gradient_accumulation_steps", None)
            if share < 1.0 and whole is not None and not self._is_scaled(num_items_in_batch):
                trainer.current_gradient_accumulation_steps = whole / share
            try:
                return self._train(model, part, num_items_in_batch, *args)  # type: ignore[no-any-return]
            finally:
                if whole is not None:
                    trainer.current_gradient_accumulation_steps = whole

        return self.memory.run(inputs, backward, lambda: self._losses.rewind(seen))

    def _is_scaled(self, num_items_in_batch: Any) -> bool:
        """Return whether a loss is a sum over the batch's items divided by their number."""
        trainer = self._trainer
        said = getattr(trainer, "loss_is_scaled_for_ga", None)
        if said is not None:
            return bool(said)
        by_model = trainer.model_accepts_loss_kwargs and num_items_in_batch is not None
        return bool(by_model or trainer.compute_loss_func is not None)


def _copied(given: Any) -> Any:
    """Return arguments whose mappings are copies, for Trainer takes the labels out of them."""
    if isinstance(given, Mapping):
        return {key: _copied(value) for key, value in given.items()}
    return tuple(_copied(value) for value in given) if isinstance(given, tuple) else given
