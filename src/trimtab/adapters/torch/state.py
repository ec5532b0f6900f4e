"""Calling the user's ``validate()``: before step 1 it may fail loudly, later it may not at all.

The random state of Python, NumPy and PyTorch as plain values and tensors, for a checkpoint.

A state of nested plain values and tensors as one safetensors file; nothing is pickled.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from trimtab.adapters.validation import (
    Validated,
    check_validate,
    validated_or_refused,
    validated_or_told,
)
from trimtab.core.errors import AdapterError, MetricError
from trimtab.core.metrics import loss_from_validation
from trimtab.core.nested_state import ArrayBytes, StateForm

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


def random_state() -> dict[str, Any]:
    """Return the state of the global generators of this process."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 - the user's
    version, numbers, gauss_next = random.getstate()
    on_cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    return {
        "python": [version, list(numbers), gauss_next],
        "numpy": [str(kind), np.asarray(keys).tolist(), position, has_gauss, gauss],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if on_cuda else [],
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Put back what `random_state` returned; devices that are not there any more are left out."""
    version, numbers, gauss_next = state["python"]
    random.setstate((version, tuple(numbers), gauss_next))
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state(  # noqa: NPY002 - the user's
        (kind, np.asarray(keys, np.uint32), position, has_gauss, gauss)
    )
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([one.cpu() for one in state["cuda"]])


def write_state(path: Path, state: Mapping[str, Any]) -> str:
    """Write a state, complete or not at all; return 16 digits that name its plain part.

    Args:
        path: The file; its folder exists.
        state: Mappings with text keys, lists, tuples, numbers, texts, None and tensors.

    Raises:
        AdapterError: Something else is in it.
        OSError: The file cannot be written.
    """
    text, tensors = _FORM.take_apart(state)
    metadata = {"format": _FORM.format, "state": text}
    metadata["sha256"] = _FORM.digest(metadata, _bytes_of(tensors))
    partial = path.with_suffix(".partial")
    try:
        save_file(tensors, partial, metadata=metadata)
        partial.replace(path)
    except SafetensorError as error:
        raise OSError(f"{path}: {error}") from error
    return _name_of(text)


def read_state(path: Path) -> tuple[dict[str, Any], str]:
    """Return the state in a file, with tensors in main memory, and its name as `write_state`'s.

    Raises:
        AdapterError: The file is missing, damaged, changed after it was written, or not one of
            these.
    """
    where = str(path)
    with _FORM.refusing(where, OSError, SafetensorError):
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            _FORM.require_format(where, metadata)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        _FORM.require_content(where, metadata, _bytes_of(tensors))
        state = dict(_FORM.put_together(metadata["state"], tensors))
    return state, _name_of(metadata["state"])


def _bytes_of(tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, ArrayBytes]]:
    for name, one in tensors.items():
        data = one.reshape(-1).view(torch.uint8).numpy()
        yield name, ArrayBytes(str(one.dtype), tuple(one.shape), data)


def _name_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


_FORM = StateForm(
    format="trimtab-state-1",
    tag_of=lambda value: "tensor" if isinstance(value, torch.Tensor) else "",
    aside={"tensor": lambda value: value.detach().cpu().contiguous().clone()},
    back={"tensor": lambda tensor: tensor},
    error=AdapterError,
    advice="resume from another checkpoint",
)
