"""The state around a Keras run: random generators, what a validation leaves alone, its file.

The last two moments of a run are kept. Keras writes its own checkpoint at another instant than we
do, and a process may be killed between the two; so the moment before is kept as well, and each is
named by the weights that it belongs to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from trimtab.adapters import state_file as shared
from trimtab.adapters.keras.variables import (
    array_of,
    backend_name,
    own_buffers,
    seed_states,
    synchronise,
)
from trimtab.adapters.state_file import StateFile
from trimtab.core.errors import AdapterError
from trimtab.core.nested_state import ArrayBytes, StateForm


def random_state(model: Any) -> dict[str, Any]:
    """Return the state of every generator that Keras draws from: arrays and plain values."""
    state = shared.random_state()
    state["layers"] = [array_of(variable).astype(np.int64) for variable in seed_states(model)]
    if backend_name() == "torch":
        import torch

        state["torch"] = torch.get_rng_state().numpy().copy()
    return state


def load_random_state(model: Any, state: Mapping[str, Any]) -> None:
    """Put back what `random_state` returned."""
    shared.restore_random_state(state)
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
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, _ = _FILE.write_partial(path, state, weights=weights)
    if path.exists() and _FILE.text(path, "weights") != weights:
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
        if _FILE.text(candidate, "weights") == weights:
            return _FILE.read(candidate, f"state_file: {candidate}")[0]
    if there:
        raise AdapterError(
            f"state_file: {path} is of other weights than the model has; load the checkpoint that "
            "was written with it (BackupAndRestore does, before the first epoch), or delete the "
            "file to begin a new run"
        )
    return None


def _bytes_of(array: np.ndarray) -> ArrayBytes:
    return ArrayBytes(str(array.dtype), array.shape, np.ascontiguousarray(array).tobytes())


_FILE = StateFile(
    form=StateForm(
        format="trimtab-keras-state-1",
        tag_of=lambda value: "array" if isinstance(value, np.ndarray) else "",
        aside={"array": lambda value: np.asarray(value, order="C")},
        back={"array": lambda array: array},
        error=AdapterError,
        advice="delete it to begin a new run",
    ),
    framework="np",
    save=save_file,
    bytes_of=_bytes_of,
)
