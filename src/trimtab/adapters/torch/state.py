"""Calling the user's ``validate()``: before step 1 it may fail loudly, later it may not at all."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from trimtab.adapters.validation import (
    Validated,
    check_validate,
    validated_or_refused,
    validated_or_told,
)
from trimtab.core.errors import MetricError
from trimtab.core.metrics import loss_from_validation

__all__ = ["Validated", "Validation", "left_as_it_was"]

_NAME = "validate()"  # in messages


@contextmanager
def _random_state_kept() -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the user's stream
    cpu = torch.get_rng_state()
    on_cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    cuda = torch.cuda.get_rng_state_all() if on_cuda else []
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002 - the user's stream
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
        if mps is not None:
            torch.mps.set_rng_state(mps)


@contextmanager
def left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Put back random state (Python, NumPy, torch), buffers, and every module's mode afterwards.

    Buffers hold BatchNorm's statistics, which a validation in training mode would move.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        with _random_state_kept():
            yield
    finally:
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for buffer, kept in buffers:
                # Always: batch_norm on a CPU moves its statistics without raising their version.
                buffer.copy_(kept)


class Validation:
    """The user's function, and what it last gave.

    Args:
        validate: Returns a loss, or a dict of floats that holds ``monitor``.
        model: Left as it was: mode, buffers, random state.
        monitor: Key of the value that is watched.
        mode: ``"min"`` or ``"max"``.

    Raises:
        MetricError: ``validate`` cannot be called.
        SpecError: ``mode`` is neither of the two.
    """

    def __init__(
        self, validate: Callable[[], Any], model: nn.Module, *, monitor: str, mode: str
    ) -> None:
        check_validate(validate, mode)
        self._validate, self._model = validate, model
        self._monitor, self._mode = monitor, mode
        self.last_loss = math.nan

    def first(self) -> Validated:
        """Validate before any step; whatever is wrong is an error now.

        Raises:
            MetricError: The function raised, gave nothing to steer by, or something not finite.
        """
        result = validated_or_refused(self._call, _NAME)
        if not math.isfinite(result.loss):
            raise MetricError(
                f"validate() returned {result.monitored!r} for {self._monitor!r} before the first "
                "step; a finite number is needed, so check the model and the validation data"
            )
        self.last_loss = result.loss
        return result

    def later(self) -> Validated:
        """Validate in mid-run: a failure is told, never raised, and the last loss is used.

        A value that is not finite is no failure but a signal, and is returned as it is.
        """
        result = validated_or_told(self._call, _NAME, self.last_loss)
        if math.isfinite(result.loss):
            self.last_loss = result.loss
        return result

    def _call(self) -> Validated:
        with left_as_it_was(self._model):
            measured = self._validate()
        loss, values = loss_from_validation(measured, monitor=self._monitor, mode=self._mode)
        return Validated(loss, values, values[self._monitor])
