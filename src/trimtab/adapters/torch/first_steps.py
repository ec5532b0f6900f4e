"""Whether a loop does in its first steps what it has to: gradients come, nobody else steps."""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import Any

import torch

from trimtab.core.errors import AdapterError
from trimtab.core.notices import is_ours, local_variables, tell

_WATCHED = 3  # steps; what is wrong with a loop is wrong in each of them


class FirstSteps:
    """Watches the first steps of a run, and costs nothing from then on.

    An optimiser that steps before its turn is heard of through a hook that follows its steps. It
    is put there when this is made, before those of trainers, which may end a step by theirs.

    Args:
        optimizers: What is stepped, one after the other.
        scaled: Whether a gradient scaler steps them.
        alone: Whether one process trains; of several each may have a part of the gradients only.

    Attributes:
        watching: Whether the coming step is watched.
    """

    def __init__(self, optimizers: Sequence[Any], *, scaled: bool, alone: bool) -> None:
        self.watching = True
        self._scaled, self._alone = scaled, alone
        self._names = " and ".join(dict.fromkeys(type(one).__name__ for one in optimizers))
        self._steps = self._without = self._zero = self._outside = 0
        self._handles: list[Any] = []
        self._scalers: set[int] = set()  # that had scaled something before the run began
        this = weakref.ref(self)

        def stepped(*args: Any) -> None:
            del args
            watch = this()
            if watch is not None:
                watch._outside += 1

        for optimizer in optimizers:
            with suppress(AttributeError):  # a class of the user's own may know no hooks
                self._handles.append(optimizer.register_step_post_hook(stepped))
        self._finalizer = weakref.finalize(self, _remove, self._handles)

    def begin(self) -> None:
        """Begin to count: what was stepped before the run is nobody's business."""
        self._outside = 0
        if not self._scaled and not self._steps:
            self._scalers = {id(scaler) for scaler in _scalers_in_sight()}

    def before(self, loss: torch.Tensor | float, weights: Sequence[torch.Tensor]) -> None:
        """Look at a step before its update.

        Args:
            loss: Of the step; one that is not finite may well have no gradients.
            weights: The optimisers' trainable weights.

        Raises:
            AdapterError: They were stepped by somebody else, or have no gradients.
        """
        if self._outside:
            self.end()
            raise AdapterError(_STEPPED.format(optimizer=self._names))
        self._steps += 1
        if self._steps == 1 and not self._scaled:
            self._tell_of_scaler()
        value = loss.item() if isinstance(loss, torch.Tensor) else float(loss)
        if not weights or not math.isfinite(value):
            return
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        if not gradients:
            self._without += 1
            if self._without == self._steps and (self._scaled or self._steps > 1):
                self.end()
                raise AdapterError(_NO_GRADIENTS)
        elif self._alone and self._zero == self._steps - 1:
            self._zero += not any(map(_is_something, gradients)) and value != 0

    def after(self) -> None:
        """Go on to the next step, after the update."""
        self._outside = 0
        if self._steps >= _WATCHED:
            self.end()
            if self._zero == self._steps:
                tell(_ALL_ZERO.format(steps=self._steps))

    def _tell_of_scaler(self) -> None:
        """Tell of a gradient scaler that has begun its work in the loop and was not handed over."""
        for scaler in _scalers_in_sight():
            if id(scaler) not in self._scalers:
                tell(_NO_SCALER.format(scale=float(scaler.get_scale())))
                return

    def end(self) -> None:
        """Watch no longer."""
        self.watching = False
        self._finalizer()


def _remove(handles: list[Any]) -> None:
    for handle in handles:
        handle.remove()
    handles.clear()


def _scalers_in_sight() -> list[Any]:
    """Return the gradient scalers that have scaled a loss, among what the loop's code names."""
    frame: FrameType | None = sys._getframe()
    seen = 0
    found: dict[int, Any] = {}
    while frame is not None and seen < _MOST_FRAMES:
        if not is_ours(frame):
            seen += 1
            names = local_variables(frame)
            owner = getattr(names.get("self"), "__dict__", {})
            for value in (*names.values(), *frame.f_globals.values(), *owner.values()):
                if isinstance(value, torch.amp.GradScaler) and value.is_enabled():
                    found[id(value)] = value
        frame = frame.f_back
    return [one for one in found.values() if getattr(one, "_scale", None) is not None]


def _is_something(gradient: torch.Tensor) -> bool:
    values = gradient.coalesce().values() if gradient.is_sparse else gradient
    return bool(values.any())


_MOST_FRAMES = 4  # of the user's code, from the call that steps outwards
_NO_SCALER = (
    "scaler=None, but a GradScaler scales the loss in this loop by {scale:g}: gradients are taken "
    "as they are, its scale never changes, and steps that overflow are done; pass scaler=scaler, "
    "and leave scaler.step(optimizer) and scaler.update() out of the loop"
)
_NO_GRADIENTS = (
    "step(loss): no weight of the optimiser has a gradient; call loss.backward() before it, on a "
    "loss that was not detached, with no zero_grad() and no optimizer.step() in between (take them "
    "out: trimtab does both), and make the optimiser from the weights that the model has now"
)
_STEPPED = (
    "step(loss): {optimizer} was stepped elsewhere, so the loop would train twice and unsteered; "
    "take optimizer.step() and optimizer.zero_grad() out of it, or scaler.step(optimizer) and "
    "scaler.update() and pass scaler=scaler here, for trimtab does these; of a loop that is not "
    "yours use TorchController.attach"
)
_ALL_ZERO = (
    "all gradients were zero in the first {steps} steps, so nothing is trained; if the loop clears "
    "them between loss.backward() and the step, take that zero_grad() out"
)
