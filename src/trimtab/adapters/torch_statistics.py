"""What one window of training tells about itself, measured on PyTorch tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from trimtab.core.errors import SpecError
from trimtab.core.metrics import Metrics

__all__ = ["CHECK_EVERY", "WindowStatistics"]

CHECK_EVERY = 4
"""On an accelerator, steps between two looks at the losses; each look waits for the device."""


class WindowStatistics:
    """Loss and gradient statistics of one window of optimiser steps.

    Gradients and weights are touched on the window's last two steps only: the last but one keeps
    a copy of the gradients, the last one swaps it for a copy of the weights. So at most one copy
    of the trainable weights is held: on an accelerator only for a moment; in main memory its room
    is kept from window to window, for new pages cost several times what the copy does. All other
    steps cost the reading of one loss; on an accelerator the losses stay there and are read every
    `CHECK_EVERY` steps.

    One window is ``begin``, then ``before_step`` and ``after_step`` around each optimiser step,
    then ``finish``:

    >>> weight = torch.tensor([3.0, 4.0], requires_grad=True)
    >>> optimizer = torch.optim.SGD([weight], lr=0.1)
    >>> statistics = WindowStatistics()
    >>> statistics.begin(2)
    >>> for _ in range(2):
    ...     optimizer.zero_grad()
    ...     loss = 0.5 * weight.square().sum()
    ...     loss.backward()
    ...     if not statistics.before_step(loss, [weight]):
    ...         break
    ...     optimizer.step()
    ...     statistics.after_step([weight])
    >>> metrics = statistics.finish()
    >>> metrics.train_loss_first, round(metrics.grad_norm, 6), round(metrics.update_ratio, 6)
    (12.5, 4.5, 0.1)
    """

    def __init__(self) -> None:
        self._room: list[torch.Tensor | None] = []
        self.begin(1)

    def begin(self, window_steps: int) -> None:
        """Forget the last window and expect one of ``window_steps`` optimiser steps.

        Raises:
            SpecError: ``window_steps`` is below 1.
        """
        if window_steps < 1:
            raise SpecError(f"window_steps: {window_steps} is below 1; give at least one step")
        self._window_steps = int(window_steps)
        self._step = 0
        self._finite = True
        self._waits = False
        self._losses: list[float] = []
        self._unread: list[torch.Tensor] = []
        self._gradients: list[torch.Tensor | None] | None = None
        self._weights: list[torch.Tensor | None] | None = None
        self._measured: dict[str, torch.Tensor] = {}

    def before_step(self, loss: torch.Tensor | float, parameters: Sequence[torch.Tensor]) -> bool:
        """Take in a step's loss and gradients; return whether training may go on.

        To be called after the backward pass, with gradients unscaled and not yet clipped, before
        the optimiser's step.

        Args:
            loss: Mean loss of the step, one number.
            parameters: All trainable weights, in the same order each time.

        Returns:
            False once a loss was not finite: the window has to end without this step's update.
            On a CPU that is this very step; elsewhere at most ``CHECK_EVERY - 1`` steps later.
        """
        self._step += 1
        self._take_loss(loss)
        if not self._finite:
            self._drop_copies()
            return False
        if self._step >= self._window_steps - 1:
            with torch.no_grad():
                if self._step < self._window_steps:
                    self._gradients = self._copies([parameter.grad for parameter in parameters])
                else:
                    self._measure_gradients(parameters)
                    self._weights = self._copies([p.detach() for p in parameters])
        return True

    @torch.no_grad()
    def after_step(self, parameters: Sequence[torch.Tensor]) -> None:
        """Measure the window's last update; to be called after the optimiser's step.

        Args:
            parameters: The same as for `before_step`.
        """
        if self._weights is None:
            return
        weights = [weight for weight in self._weights if weight is not None]
        self._weights = None
        norm = _norm(weights)
        torch._foreach_sub_(weights, [parameter.detach() for parameter in parameters])
        self._measured["update_ratio"] = _norm(weights) / norm

    def finish(self) -> Metrics:
        """Return the window's metrics; validation and charge are left to the caller.

        ``steps`` counts every batch that was taken in, also the one whose loss was not finite.
        ``train_loss_change`` leaves the middle step of an odd window out, and is nan for a window
        of one step, as is ``grad_cosine``. Gradient statistics are nan if the window ended early.
        ``train_loss_std`` is the population's standard deviation. Computed in float64.
        """
        self._read_losses()
        self._drop_copies()
        losses = np.asarray(self._losses, np.float64)
        fields: dict[str, float] = {"steps": float(self._step)}
        fields["finite"] = 1.0 if self._finite else 0.0
        if losses.size:
            half = losses.size // 2
            with np.errstate(invalid="ignore", over="ignore"):
                fields["train_loss"] = float(losses.mean())
                fields["train_loss_first"] = float(losses[0])
                fields["train_loss_std"] = float(losses.std())
                if half:
                    change = losses[losses.size - half :].mean() - losses[:half].mean()
                    fields["train_loss_change"] = float(change)
        if self._measured and self._finite:
            names = sorted(self._measured)
            values = torch.stack([self._measured[name].double() for name in names]).tolist()
            fields |= dict(zip(names, values, strict=True))
        return Metrics(**fields)

    def state_dict(self) -> dict[str, Any]:
        """Return the open window, to go on with it later: plain values and tensors."""
        self._read_losses()
        gradients = self._gradients and [None if g is None else g.clone() for g in self._gradients]
        return {
            "window_steps": self._window_steps,
            "step": self._step,
            "finite": self._finite,
            "losses": list(self._losses),
            "gradients": gradients,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the window of `state_dict`, between two steps."""
        self.begin(int(state["window_steps"]))
        self._step, self._finite = int(state["step"]), bool(state["finite"])
        self._losses, self._gradients = list(state["losses"]), state["gradients"]

    def _take_loss(self, loss: torch.Tensor | float) -> None:
        if self._step == 1:  # asked once a window: the answer costs as much as the reading
            self._waits = isinstance(loss, torch.Tensor) and loss.device.type != "cpu"
        if self._waits and isinstance(loss, torch.Tensor):
            # A copy, for a compiled step may write the next loss into the same memory.
            self._unread.append(loss.detach().reshape(()).clone())
            if len(self._unread) >= CHECK_EVERY:
                self._read_losses()
            return
        value = float(loss.item() if isinstance(loss, torch.Tensor) else loss)
        self._losses.append(value)
        self._finite = self._finite and math.isfinite(value)

    def _read_losses(self) -> None:
        if self._unread:
            values = torch.stack([loss.double() for loss in self._unread]).tolist()
            self._unread = []
            self._losses += values
            self._finite = self._finite and all(math.isfinite(value) for value in values)

    def _measure_gradients(self, parameters: Sequence[torch.Tensor]) -> None:
        now = [_dense(parameter.grad) for parameter in parameters]
        norm = _norm([gradient for gradient in now if gradient is not None])
        self._measured["grad_norm"] = norm
        before, self._gradients = self._gradients, None
        if before is None:
            return
        pairs = [
            (a, b) for a, b in zip(before, now, strict=True) if a is not None and b is not None
        ]
        lengths = _norm([gradient for gradient in before if gradient is not None]) * norm
        if pairs:
            dots = [_single(a).flatten().dot(_single(b).flatten()) for a, b in pairs]
            dot = torch.stack([item.to(norm.device) for item in dots]).sum()
            self._measured["grad_cosine"] = (dot / lengths).clamp(-1.0, 1.0)

    def _copies(self, tensors: list[torch.Tensor | None]) -> list[torch.Tensor | None]:
        """Return dense copies, in the room of the last ones where they fit."""
        room = self._room + [None] * (len(tensors) - len(self._room))
        self._room = [_copy(tensor, into) for tensor, into in zip(tensors, room, strict=False)]
        return list(self._room)

    def _drop_copies(self) -> None:
        self._gradients = self._weights = None
        if any(room is not None and room.device.type != "cpu" for room in self._room):
            self._room = []


def _dense(gradient: torch.Tensor | None) -> torch.Tensor | None:
    if gradient is None:
        return None
    return gradient.to_dense() if gradient.is_sparse else gradient


def _copy(tensor: torch.Tensor | None, into: torch.Tensor | None) -> torch.Tensor | None:
    if tensor is None:
        return None
    if tensor.is_sparse:
        return tensor.to_dense()
    fits = into is not None and (into.shape, into.dtype) == (tensor.shape, tensor.dtype)
    if into is None or not fits or into.device != tensor.device:
        return tensor.clone()
    return into.copy_(tensor)


def _single(tensor: torch.Tensor) -> torch.Tensor:
    """Return half-precision tensors as float32, whose range holds their squares."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _norm(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Return the Euclidean norm of all entries together, () on the first tensor's device."""
    if not tensors:
        return torch.tensor(math.nan)
    norms = torch._foreach_norm([_single(tensor) for tensor in tensors])
    device = norms[0].device
    total: torch.Tensor = torch.stack([norm.float().to(device) for norm in norms]).norm()
    return total
