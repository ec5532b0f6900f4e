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
    if hasattr(reference, "step_with_optimizer") and hasattr(reference, "scheduler"):
        return _Accelerated(reference)
    if callable(reference) and hasattr(reference, "get_param") and hasattr(reference, "optimizer"):
        by_metric = getattr(reference, "metric_name", None) is not None
        return reference.scheduler if by_metric else _Ignite(reference)
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


def name_of(scheduler: Any) -> str:
    """Return what a message calls a scheduler: its own class, whatever its form."""
    inner = scheduler
    while isinstance(inner, _Accelerated | _Ignite | _Timm):
        inner = inner.scheduler
    return type(inner).__name__


class _Timm:
    """A scheduler of timm, which keeps no count of its own: it is told epochs, or updates."""

    def __init__(self, scheduler: Any) -> None:
        self.optimizer, self.by_metric = scheduler.optimizer, hasattr(scheduler, "restore_lr")
        self.scheduler, self._count = scheduler, 0

    def step(self, *metric: float) -> None:
        self._count += 1
        if self.scheduler.t_in_epochs:
            self.scheduler.step(self._count, *metric)
        else:
            self.scheduler.step_update(self._count)

    def state_dict(self) -> dict[str, Any]:
        return {"count": self._count, "scheduler": copy.deepcopy(self.scheduler.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._count = int(state["count"])
        self.scheduler.load_state_dict(copy.deepcopy(state["scheduler"]))


class _Ignite:
    """A scheduler of ignite, which is called before each step rather than after it."""

    by_metric = False

    def __init__(self, scheduler: Any) -> None:
        owners = scheduler.optimizer if isinstance(scheduler.optimizer, list) else None
        self.optimizer = scheduler.optimizer if owners is None else owners[0]
        self.scheduler = scheduler
        self.step()

    def step(self) -> None:
        self.scheduler(None)

    def state_dict(self) -> dict[str, Any]:
        return copy.deepcopy(dict(self.scheduler.state_dict()))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scheduler.load_state_dict(copy.deepcopy(state))


class _Accelerated:
    """A scheduler that Accelerate prepared: it steps once for each process, or not at all."""

    def __init__(self, prepared: Any) -> None:
        self._prepared, self.scheduler = prepared, in_torch_form(prepared.scheduler)
        self.optimizer = getattr(self.scheduler, "optimizer", None)
        self.by_metric = needs_metric(self.scheduler)

    def step(self, *metric: float) -> None:
        self._prepared.step(*metric)

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = self._prepared.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._prepared.load_state_dict(state)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Return what does the same steps, without Accelerate's state, which is one for all."""
        prepared, times = self._prepared, 1
        if prepared.step_with_optimizer and not prepared.split_batches:
            times = int(_processes(prepared))
        return _Repeated(copy.deepcopy(self.scheduler, memo), times)


class _Repeated:
    """The steps that a prepared scheduler is going to do where none is left out."""

    def __init__(self, scheduler: Any, times: int) -> None:
        self._scheduler, self._times = scheduler, times

    def step(self) -> None:
        for _ in range(self._times):
            last = getattr(self._scheduler, "total_steps", None)
            if last is None or self._scheduler._step_count <= last:
                self._scheduler.step()


def _processes(prepared: Any) -> int:
    for optimizer in prepared.optimizers:
        count = getattr(getattr(optimizer, "accelerator_state", None), "num_processes", None)
        if count is not None:
            return int(count)
    return 1
