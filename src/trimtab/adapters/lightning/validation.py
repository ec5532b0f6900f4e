"""Calling a Lightning module's ``validation_step`` apart from Lightning's own validation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule

from trimtab.core.errors import AdapterError

__all__ = ["Capture", "validation_batches"]


class Capture:
    """Takes what a module logs for itself, while it is entered; nothing reaches Lightning.

    Args:
        module: A ``LightningModule``.
    """

    def __init__(self, module: Any) -> None:
        self._module = module
        self._logged: dict[str, Any] = {}
        self._metrics: dict[str, Any] = {}

    def __enter__(self) -> Capture:
        """Stand in for the module's ``log`` and ``log_dict``."""
        # In the instance only, and past nn.Module's own bookkeeping.
        object.__setattr__(self._module, "log", self._log)
        object.__setattr__(self._module, "log_dict", self._log_all)
        return self

    def __exit__(self, *exception: object) -> None:
        """Leave the module as it was."""
        object.__delattr__(self._module, "log")
        object.__delattr__(self._module, "log_dict")

    def measure(self, batch: Any, index: int) -> Mapping[str, Any]:
        """Return one batch's values: what ``validation_step`` logs, and its loss as ``"loss"``."""
        self._logged = {}
        returned = self._module.validation_step(batch, index)
        values = dict(self._logged)
        if isinstance(returned, Mapping):
            values |= {name: v for name, v in returned.items() if _is_number(v)}
        elif _is_number(returned):
            values["loss"] = returned
        return values

    def computed(self) -> dict[str, float]:
        """Return the metric objects that were logged, over all batches, and reset them."""
        values: dict[str, float] = {}
        for name, metric in self._metrics.items():
            values[name] = float(metric.compute())
            metric.reset()
        self._metrics = {}
        return values

    def _log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        del args, kwargs
        if callable(getattr(value, "compute", None)):
            self._metrics[name] = value
        elif _is_number(value):
            self._logged[name] = value

    def _log_all(self, dictionary: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
        for name, value in dictionary.items():
            self._log(name, value, *args, **kwargs)


def validation_batches(trainer: Any, given: Any, module: Any) -> Callable[[], Iterable[Any]]:
    """Return what gives the batches to validate on, each time from the beginning.

    Raises:
        AdapterError: There are none, or the module has no ``validation_step``.
    """
    if type(module).validation_step is LightningModule.validation_step:
        raise AdapterError(
            f"validation: {type(module).__name__} has no validation_step, and steering needs a "
            "validation loss after each window; write one, or give TrimtabCallback(validate=...)"
        )
    data = trainer.val_dataloaders if given is None else given
    if data is None:
        raise AdapterError(
            "validation_data=None, and the fit has no validation data; give "
            "TrimtabCallback(validation_data=...), or val_dataloaders= to fit"
        )
    if isinstance(data, Iterator):
        raise AdapterError(
            f"validation_data: {type(data).__name__} can be walked only once; give a DataLoader or "
            "a list of batches"
        )
    if given is not None or not isinstance(data, list | tuple):
        return lambda: data
    loaders = list(data)
    return lambda: (batch for loader in loaders for batch in loader)


def _is_number(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.numel() == 1
    return isinstance(value, int | float) and not isinstance(value, bool)
