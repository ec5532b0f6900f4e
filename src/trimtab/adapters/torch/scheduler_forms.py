"""Schedulers of other libraries in the form of PyTorch's: ``step()``, or ``step(metric)``.

timm's are told the count of epochs or updates, ignite's are called before each step, Accelerate's
step several times, or not at all. They are known by what they offer, so nothing is imported.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any


def in_torch_form(reference: Any) -> Any:
    """Return a scheduler in PyTorch's form; None for what is no scheduler.

    PyTorch's own, and others of their form, are returned as they are.
    """
    if not hasattr(reference, "state_dict") or isinstance(reference, type):
        return None
    if hasattr(reference, "step_update") and hasattr(reference, "t_in_epochs"):
        return _Timm(reference)
    return reference if callable(getattr(reference, "step", None)) else None


def needs_metric(scheduler: Any) -> bool:
    """Return whether a scheduler's step asks for a value, as ``ReduceLROnPlateau`` does."""
    told = getattr(scheduler, "by_metric", None)
    if isinstance(told, bool):
        return told
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = inspect.signature(scheduler.step).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(item.default is item.empty and item.kind in positional for item in parameters)


def counts_epochs(scheduler: Any) -> bool:
    """Return whether a scheduler says of itself that it counts epochs, as timm's may."""
    return isinstance(scheduler, _Timm) and scheduler.in_epochs


class _Timm:
    """A scheduler of timm, which keeps no count of its own: it is told epochs, or updates."""

    def __init__(self, scheduler: Any) -> None:
        self.optimizer, self.by_metric = scheduler.optimizer, hasattr(scheduler, "restore_lr")
        self.in_epochs = bool(scheduler.t_in_epochs) and not self.by_metric
        self._scheduler, self._count = scheduler, 0

    def step(self, *metric: float) -> None:
        self._count += 1
        if self._scheduler.t_in_epochs:
            self._scheduler.step(self._count, *metric)
        else:
            self._scheduler.step_update(self._count)

    def state_dict(self) -> dict[str, Any]:
        return {"count": self._count, "scheduler": copy.deepcopy(self._scheduler.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._count = int(state["count"])
        self._scheduler.load_state_dict(copy.deepcopy(state["scheduler"]))
