"""Going on after a Lightning training step that ran out of memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import wraps
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from trimtab.adapters.lightning.validation import Capture
from trimtab.adapters.torch.memory import is_out_of_memory, parts_of
from trimtab.adapters.torch.random_state import random_state, restore_random_state
from trimtab.core.notices import tell

__all__ = ["StepInParts"]


class StepInParts:
    """Stands in the place of a module's ``training_step`` in automatic optimisation.

    Lightning clears gradients between the forward and the backward pass, so the parts of a batch
    cannot be done one after the other. Instead each part's activations are dropped and computed
    again in the backward pass, so that one part's are held at a time. A step whose forward pass
    runs out of memory is rolled back (buffers, random state) and done again in twice as many
    parts, and so are later ones. In the backward pass the error is the user's to see.

    Args:
        module: A ``LightningModule``.
        told: Called with how often a batch was done again.
    """

    def __init__(self, module: Any, told: Callable[[int], None]) -> None:
        self.parts, self.retries = 1, 0
        self._module, self._told = module, told
        self._step = module.training_step

        @wraps(self._step)  # Lightning looks at its signature
        def training_step(*args: Any, **kwargs: Any) -> Any:
            return self._training_step(*args, **kwargs)

        # In the instance only, and past nn.Module's own bookkeeping.
        object.__setattr__(module, "training_step", training_step)

    def release(self) -> None:
        """Give the module its own step back."""
        if "training_step" in vars(self._module):
            object.__delattr__(self._module, "training_step")

    def _training_step(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        state = random_state()
        buffers = [(buffer, buffer.detach().clone()) for buffer in self._module.buffers()]
        while True:
            cut = parts_of(batch, self.parts)
            try:
                if len(cut) == 1:
                    return self._step(batch, *args, **kwargs)
                return torch.stack([self._part(p, s, args, kwargs) for p, s in cut]).sum()
            except Exception as error:
                if not is_out_of_memory(error) or len(parts_of(batch, 2 * self.parts)) == len(cut):
                    raise
                said = str(error).partition("\n")[0]
            with torch.no_grad():
                for buffer, kept in buffers:
                    buffer.copy_(kept)
            restore_random_state(state)
            self.parts, self.retries = 2 * self.parts, self.retries + 1
            self._told(self.retries)
            tell(
                f"memory ran out ({said}); the batch is done again in {self.parts} parts, and so "
                "are those that follow"
            )

    def _part(self, part: Any, share: float, args: Any, kwargs: Any) -> torch.Tensor:
        def loss() -> torch.Tensor:
            outputs = self._step(part, *args, **kwargs)
            value = outputs["loss"] if isinstance(outputs, Mapping) else outputs
            return torch.as_tensor(value)

        contexts = lambda: (nullcontext(), Capture(self._module))  # noqa: E731 - logs once
        result: torch.Tensor = checkpoint(loss, use_reentrant=False, context_fn=contexts)
        return result * share
