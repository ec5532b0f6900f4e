"""What a PyTorch loop does with its gradients between ``backward()`` and ``zero_grad()``."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import nn

from trimtab.adapters.torch.actuators import Place
from trimtab.adapters.torch.checks import check_clip, check_scaler
from trimtab.adapters.torch.proofs import Replay
from trimtab.adapters.torch.several import parts_of
from trimtab.adapters.torch.sharding import put_shards_back
from trimtab.adapters.torch.wrappers import SecondStep, scaler_of
from trimtab.core.errors import AdapterError


class Stepper:
    """Does with the gradients what a loop does between ``backward()`` and ``zero_grad()``.

    Args:
        optimizer: The optimiser.
        model: Whose gradients are clipped together with those of weights outside it.
        clip: Norm at which gradients are clipped; None for no clipping.
        scaler: A ``torch.amp.GradScaler``, or None.
        stepped: What is stepped: the optimiser as the loop has it, which may be wrapped; None for
            the optimiser itself. A wrapper that has a scaler steps that as well.

    Attributes:
        optimizer: The optimiser.
        weights: The optimiser's trainable weights, in the order of its groups.
        clip: The norm now in force.
        scaler: The scaler.

    Raises:
        AdapterError: ``clip`` or ``scaler`` cannot be used.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: nn.Module,
        *,
        clip: float | None = None,
        scaler: Any = None,
        stepped: Any = None,
    ) -> None:
        self._stepped = optimizer if stepped is None else stepped
        inside = scaler_of(self._stepped)
        scaler = inside if scaler is None else scaler
        self._steps_scaler = scaler is not None and scaler is not inside
        if scaler is not None and isinstance(self._stepped, SecondStep):
            raise AdapterError(
                f"scaler: {type(self._stepped.optimizer).__name__} looks at two gradients a step, "
                "and a scaler may leave out one of them; use torch.bfloat16, which needs none"
            )
        check_scaler(scaler)
        self.optimizer, self.model = optimizer, model
        self.clip, self.scaler = check_clip(clip), scaler
        self.weights: list[torch.Tensor] = []
        self._clipped: list[torch.Tensor] = []
        self._norm: torch.Tensor | None = None  # of the gradients, if it was asked for
        self.look_again()

    def look_again(self) -> None:
        """Find the trainable weights again, for a loop may freeze, unfreeze and add groups."""
        put_shards_back(self.model)
        groups = self.optimizer.param_groups
        self.weights = [w for group in groups for w in group["params"] if w.requires_grad]
        self.look_for_clipped()

    def look_for_clipped(self) -> None:
        """Find what is clipped again: every weight, for one may be unfrozen at any step."""
        if self.clip is None:
            return
        # In the model's order, as clip_grad_norm_(model.parameters()) adds the norms up.
        clipped = {id(w): w for w in self.model.parameters()}
        clipped |= {id(w): w for group in self.optimizer.param_groups for w in group["params"]}
        self._clipped = list(clipped.values())

    def clipping(self) -> Place | None:
        """Return where the clipping norm is kept; None if nothing is clipped."""
        if self.clip is None:
            return None
        replay = Replay(None)
        replay.remember(self._clipped_ten)
        return Place(self.clip, lambda: float(self.clip or 0.0), self._set_clip, owner=replay)

    def unscale(self) -> None:
        """Divide the gradients by the scaler's factor, unless the loop did so itself."""
        if self.scaler is None:
            return
        for part in parts_of(self.optimizer):
            try:
                self.scaler.unscale_(part)
            except RuntimeError as error:
                if "already been called" not in str(error):
                    raise

    def update(self) -> None:
        """Clip, step, and update the scaler, which may leave the step out."""
        self.clip_now()
        if not self._steps_scaler:
            self._stepped.step()
        else:
            for part in parts_of(self.optimizer):
                self.scaler.step(part)
            self.scaler.update()

    def clipping_norm(self) -> torch.Tensor | None:
        """Return the norm by which the coming step clips; None if it does not, or says none."""
        if self.clip is None or not hasattr(nn.utils, "get_total_norm"):  # new in PyTorch 2.6
            return None
        gradients = [weight.grad for weight in self._clipped if weight.grad is not None]
        self._norm = nn.utils.get_total_norm(gradients)
        return self._norm

    def clip_now(self) -> None:
        """Clip the gradients, if there is a norm to clip at."""
        norm, self._norm = self._norm, None
        if self.clip is None:
            return
        if norm is None:
            self._clip(self._clipped)
        else:
            nn.utils.clip_grads_with_norm_(self._clipped, float(self.clip), norm)

    def skip(self) -> None:
        """Leave the weights alone, and let the scaler take note."""
        self._norm = None
        if self.scaler is not None:
            self.unscale()
            with suppress(AssertionError):  # there was no gradient at all
                self.scaler.update()

    def _clip(self, weights: list[torch.Tensor]) -> None:
        nn.utils.clip_grad_norm_(weights, float(self.clip or 0.0))

    def _clipped_ten(self) -> torch.Tensor:
        """Return a gradient of norm 10 as a step clips it, for the proof that it does."""
        weight = torch.zeros(4, requires_grad=True)
        weight.grad = torch.full((4,), 5.0)
        self._clip([weight])
        return weight.grad

    def _set_clip(self, value: float) -> None:
        self.clip = value
