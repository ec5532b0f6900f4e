"""What of a Keras run is kept as its best state: weights, buffers, and the optimiser's memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from trimtab.adapters.keras.optimizers import OtherMemory
from trimtab.adapters.keras.variables import array_of, own_buffers
from trimtab.core.errors import AdapterError


class TrainingState:
    """Trained weights, buffers, and the variables of all optimisers of a Keras run.

    Learning rate and steered settings are left out: they belong to the reference and the
    actuators, which go on. So are the states of random generators.

    Args:
        model: Whose weights and buffers are kept.
        optimizer: Whose variables are kept.
        is_steered: Tells which of the optimiser's variables are left out.
        others: What the model's other optimisers remember.
    """

    def __init__(
        self,
        model: Any,
        optimizer: Any,
        is_steered: Callable[[Any], bool],
        others: OtherMemory,
    ) -> None:
        self._model, self._optimizer, self._is_steered = model, optimizer, is_steered
        self._others = others

    def expected_bytes(self) -> int:
        """Return how large a snapshot will be."""
        return sum(map(self.size, self._variables().values()))

    def collect(self) -> tuple[dict[str, Any], None]:
        """Return the variables by name; there are no plain values."""
        return self._variables(), None

    def put_back(self, arrays: Mapping[str, Any], plain: None) -> None:
        """Put back what was collected."""
        del plain
        for name, variable in self._variables().items():
            if name in arrays:
                variable.assign(arrays[name])
            elif name.startswith("other."):  # of an optimiser that was built later
                variable.assign(self._others.beginning(name))

    def size(self, array: Any) -> int:
        """Return the bytes of a variable or value, whose type NumPy may not know."""
        from keras import backend

        count = int(np.prod([int(side) for side in array.shape], dtype=np.int64))
        sizes = {"float8_e4m3fn": 1, "float8_e5m2": 1, "bfloat16": 2}
        kind = backend.standardize_dtype(array.dtype)
        return count * (sizes[kind] if kind in sizes else np.dtype(kind).itemsize)

    def copy(
        self, live: Mapping[str, Any], before: Mapping[str, Any], place: str
    ) -> dict[str, Any]:
        """Return copies of values on the device, or in main memory."""
        from keras import ops

        del before
        copied = ops.copy if place == "memory" else array_of
        return {name: copied(value) for name, value in live.items()}

    def save(self, live: Mapping[str, Any], path: Path) -> None:
        """Write values as a safetensors file."""
        save_file(self.copy(live, {}, "cpu"), path)

    def load(self, path: Path) -> dict[str, np.ndarray]:
        """Read what `save` wrote."""
        return dict(load_file(path))

    def pack(self, arrays: Mapping[str, Any], plain: None) -> dict[str, np.ndarray]:
        """Return kept values as arrays in main memory."""
        del plain
        return self.copy(arrays, {}, "cpu")

    def unpack(self, state: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], None]:
        """Return the arrays of what `pack` returned.

        Raises:
            AdapterError: They are of another model or optimiser.
        """
        variables = self._variables()
        for name, variable in variables.items():
            if name not in state or tuple(state[name].shape) != tuple(variable.shape):
                seen = "nothing" if name not in state else f"shape {tuple(state[name].shape)}"
                raise AdapterError(
                    f"load_state_dict: the best state has {seen} for {variable.path}, here it has "
                    f"shape {tuple(variable.shape)}; resume with the model and optimiser of the "
                    "first run"
                )
        others = [name for name in state if name.startswith("other.")]  # perhaps not yet built
        return {name: state[name] for name in [*variables, *others]}, None

    def _variables(self) -> dict[str, Any]:
        """Return everything that is kept, by its place in the model, as names may repeat."""
        trained = self._model.trainable_variables
        found = {f"weight.{i}": variable for i, variable in enumerate(trained)}
        found |= {f"buffer.{i}": v for i, v in enumerate(own_buffers(self._model))}
        memory = [v for v in self._optimizer.variables if not self._is_steered(v)]
        found |= {f"optimizer.{i}": variable for i, variable in enumerate(memory)}
        self._others.look()
        return found | self._others.variables()
