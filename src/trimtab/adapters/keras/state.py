"""Validating a Keras model in the middle of ``fit``, and leaving everything else as it was.

The state of a steered Keras run in one safetensors file, the last two moments of it.

Keras writes its own checkpoint at another instant than we do. A process may be killed between the
two, so the moment before is kept as well, and each is named by the weights that it belongs to.
"""

from __future__ import annotations

import hashlib
import math
import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from trimtab.adapters.keras.variables import (
    array_of,
    backend_name,
    own_buffers,
    seed_states,
    synchronise,
)
from trimtab.adapters.validation import (
    Validated,
    check_validate,
    validated_or_refused,
    validated_or_told,
)
from trimtab.core.errors import AdapterError, MetricError
from trimtab.core.metrics import loss_from_validation
from trimtab.core.nested_state import ArrayBytes, StateForm

_NAME = "the validation"  # in messages


def random_state(model: Any) -> dict[str, Any]:
    """Return the state of every generator that Keras draws from: arrays and plain values."""
    import keras

    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002
    version, numbers, pending = random.getstate()
    state: dict[str, Any] = {
        "python": {
            "version": version,
            "numbers": np.array(numbers, np.int64),
            "pending": pending,
        },
        "numpy": {
            "kind": kind,
            "keys": np.array(keys, np.int64),
            "position": position,
            "has_gauss": has_gauss,
            "gauss": gauss,
        },
        "layers": [array_of(variable).astype(np.int64) for variable in seed_states(model)],
    }
    if keras.config.backend() == "torch":
        import torch

        state["torch"] = torch.get_rng_state().numpy().copy()
    return state


def load_random_state(model: Any, state: Mapping[str, Any]) -> None:
    """Put back what `random_state` returned."""
    python, legacy = state["python"], state["numpy"]
    numbers = tuple(int(number) for number in python["numbers"])
    random.setstate((python["version"], numbers, python["pending"]))
    keys = np.array(legacy["keys"], np.uint32)
    np.random.set_state(  # noqa: NPY002 - the user's stream
        (legacy["kind"], keys, legacy["position"], legacy["has_gauss"], legacy["gauss"])
    )
    for variable, kept in zip(seed_states(model), state["layers"], strict=True):
        variable.assign(kept)
    if "torch" in state and backend_name() == "torch":
        import torch

        torch.set_rng_state(torch.as_tensor(np.array(state["torch"], np.uint8)))


def _modes(model: Any) -> list[tuple[Any, bool]]:
    """Return each PyTorch module with its mode; other backends have none."""
    if backend_name() != "torch":
        return []
    return [(module, module.training) for module in model.modules()]


@contextmanager
def left_as_it_was(model: Any) -> Iterator[None]:
    """Put back metrics, random state, buffers and modes afterwards.

    Metrics hold the epoch's running means, which an evaluation starts afresh.
    """
    synchronise(model)
    drawn, modes = random_state(model), _modes(model)
    kept = [(v, array_of(v)) for v in [*model.metrics_variables, *own_buffers(model)]]
    stop = getattr(model, "stop_training", False)
    try:
        yield
    finally:
        synchronise(model)
        known = {id(variable) for variable, _ in kept}
        for metric in model.metrics:  # those that this very evaluation has built
            if any(id(variable) not in known for variable in metric.variables):
                metric.reset_state()
        for variable, value in kept:
            variable.assign(value)
        load_random_state(model, drawn)
        for module, training in modes:
            module.training = training
        model.stop_training = stop


def evaluation(
    model: Any, data: Any, *, batch_size: int | None, steps: int | None
) -> Callable[[], dict[str, float]]:
    """Return a function that evaluates a model on data that can be gone through again and again.

    Args:
        model: A compiled model.
        data: ``(x, y)``, ``(x, y, weights)``, or a data set that ``evaluate`` takes.
        batch_size: For arrays.
        steps: Batches of one validation; None for all.

    Raises:
        AdapterError: The data can be gone through only once.
    """
    import keras

    if hasattr(data, "__next__"):
        raise AdapterError(
            f"validation_data: {type(data).__name__} can be gone through only once, and it is "
            "needed again and again; give arrays, a tf.data.Dataset or a keras.utils.PyDataset"
        )
    x, y, weights = keras.utils.unpack_x_y_sample_weight(data)

    def evaluate() -> dict[str, float]:
        measured = model.evaluate(
            x,
            y,
            sample_weight=weights,
            batch_size=batch_size,
            steps=steps,
            verbose=0,
            return_dict=True,
        )
        return {
            name: float(value) for name, value in measured.items() if np.ndim(array_of(value)) == 0
        }

    return evaluate


class Validation:
    """A function that validates, and what it last gave.

    Args:
        validate: Returns a loss, or a dict of floats that holds ``monitor``.
        model: Left as it was: metrics, buffers, random state.
        monitor: Key of the value that is watched; Keras' own ``val_`` in front is not needed.
        mode: ``"min"`` or ``"max"``.

    Raises:
        MetricError: ``validate`` cannot be called.
        SpecError: ``mode`` is neither of the two.
    """

    def __init__(self, validate: Callable[[], Any], model: Any, *, monitor: str, mode: str) -> None:
        check_validate(validate, mode)
        self._validate, self._model = validate, model
        self._monitor, self._mode = monitor.removeprefix("val_"), mode
        self.last_loss = math.nan

    def first(self) -> Validated:
        """Validate before any step; whatever is wrong is an error now.

        Raises:
            MetricError: The function raised, gave nothing to steer by, or something not finite.
        """
        result = validated_or_refused(self._call, _NAME)
        if not math.isfinite(result.loss):
            raise MetricError(
                f"the validation gave {result.measured!r} before the first step; a finite "
                f"{self._monitor!r} is needed, so check the model and the validation data"
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


def before(path: Path) -> Path:
    """Return where the state of the moment before is kept."""
    return path.with_name(f"{path.stem}.before{path.suffix}")


def fingerprint(variables: Iterable[Any]) -> str:
    """Return 16 digits that name the values of variables, to the last bit."""
    digest = hashlib.sha256()
    for variable in variables:
        digest.update(np.ascontiguousarray(array_of(variable)).tobytes())
    return digest.hexdigest()[:16]


def write_state(path: Path, state: Mapping[str, Any], weights: str) -> None:
    """Write a state, complete or not at all; the one that was there becomes the one before.

    Args:
        path: The file; its folder is made.
        state: Mappings with text keys, lists, tuples, numbers, texts, None and arrays.
        weights: Fingerprint of the weights that the state belongs to.

    Raises:
        AdapterError: Something else is in the state.
        OSError: The file cannot be written.
    """
    text, arrays = _FORM.take_apart(state)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    metadata = {"format": _FORM.format, "weights": weights, "state": text}
    metadata["sha256"] = _FORM.digest(metadata, _bytes_of(arrays))
    try:
        save_file(arrays, partial, metadata=metadata)
    except SafetensorError as error:
        raise OSError(f"{path}: {error}") from error
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    if path.exists() and _weights_of(path) != weights:
        path.replace(before(path))
    partial.replace(path)


def read_state(path: Path, weights: str) -> dict[str, Any] | None:
    """Return the state that belongs to these weights; None if nothing was ever written.

    Args:
        path: The file.
        weights: Fingerprint of the weights that the model has now.

    Raises:
        AdapterError: There are states, but of other weights, changed after they were written, or
            none that can be read.
    """
    there = [candidate for candidate in (path, before(path)) if candidate.exists()]
    for candidate in there:
        if _weights_of(candidate) == weights:
            return _read(candidate)
    if there:
        raise AdapterError(
            f"state_file: {path} is of other weights than the model has; load the checkpoint that "
            "was written with it (BackupAndRestore does, before the first epoch), or delete the "
            "file to begin a new run"
        )
    return None


def _weights_of(path: Path) -> str:
    try:
        with safe_open(path, framework="np") as file:
            return str((file.metadata() or {}).get("weights", ""))
    except (OSError, SafetensorError):
        return ""


def _read(path: Path) -> dict[str, Any]:
    where = f"state_file: {path}"
    with _FORM.refusing(where, OSError, SafetensorError):
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            _FORM.require_format(where, metadata)
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        _FORM.require_content(where, metadata, _bytes_of(arrays))
        return dict(_FORM.put_together(metadata["state"], arrays))


def _bytes_of(arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, ArrayBytes]]:
    for name, one in arrays.items():
        yield name, ArrayBytes(str(one.dtype), one.shape, np.ascontiguousarray(one).tobytes())


_FORM = StateForm(
    format="trimtab-keras-state-1",
    tag_of=lambda value: "array" if isinstance(value, np.ndarray) else "",
    aside={"array": lambda value: np.asarray(value, order="C")},
    back={"array": lambda array: array},
    error=AdapterError,
    advice="delete it to begin a new run",
)
