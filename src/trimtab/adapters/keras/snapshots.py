"""The state that a steered Keras run goes back to: weights, buffers, and the optimiser's memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from trimtab.adapters.keras.variables import array_of, own_buffers
from trimtab.adapters.snapshots import KeptArrays
from trimtab.core.errors import AdapterError


class Snapshots:
    """One kept state at a time: trained weights, buffers, and the optimiser's variables.

    Learning rate and steered settings are left out: they belong to the reference and the
    actuators, which go on. So are the states of random generators.

    Args:
        place: ``"memory"`` (the device), ``"cpu"``, ``"disk"`` (safetensors in a temporary folder)
            or ``"none"``.
        needed: False if nobody will ever go back; then nothing is kept.
        model: Whose weights and buffers are kept.
        optimizer: Whose variables are kept.
        is_steered: Tells which of the optimiser's variables are left out.

    Raises:
        UnknownNameError: There is no such place.
    """

    def __init__(
        self,
        place: str,
        *,
        needed: bool,
        model: Any,
        optimizer: Any,
        is_steered: Callable[[Any], bool],
    ) -> None:
        self._model, self._optimizer, self._is_steered = model, optimizer, is_steered
        self._arrays = KeptArrays(
            place, needed=needed, copy=lambda live, *_: live, save=save_file, load=load_file
        )

    @property
    def kept(self) -> bool:
        """Whether there is a state to go back to."""
        return self._arrays.there

    @property
    def bytes(self) -> int:
        """Size of one snapshot; 0 before it is announced or kept."""
        return self._arrays.bytes

    def announce(self) -> None:
        """Say in the log how large a snapshot is, and where it goes."""
        self._arrays.bytes = sum(_bytes_of(variable) for variable in self._variables().values())
        self._arrays.announce()

    def keep(self) -> None:
        """Keep the state as it is now in place of the one kept before."""
        place = self._arrays.place
        if place == "none":
            return
        if place == "memory":
            from keras import ops

            self._arrays.keep({name: ops.copy(v.value) for name, v in self._variables().items()})
        else:
            self._take({name: array_of(v) for name, v in self._variables().items()})

    def restore(self) -> None:
        """Put the kept state back; without one, nothing happens."""
        kept = self._arrays.load()
        for name, variable in self._variables().items() if kept else ():
            if name in kept:
                variable.assign(kept[name])

    def close(self) -> None:
        """Let go of the kept state and remove what is on disk."""
        self._arrays.close()

    def state_dict(self) -> dict[str, np.ndarray] | None:
        """Return the kept state as arrays in main memory, or None."""
        if not self.kept:
            return None
        return {name: array_of(value) for name, value in self._arrays.load().items()}

    def load_state_dict(self, state: Mapping[str, np.ndarray] | None) -> None:
        """Take over what `state_dict` returned.

        Raises:
            AdapterError: It is of another model or optimiser.
        """
        if state is None or self._arrays.place == "none":
            return
        variables = self._variables()
        for name, variable in variables.items():
            if name not in state or tuple(state[name].shape) != tuple(variable.shape):
                seen = "nothing" if name not in state else f"shape {tuple(state[name].shape)}"
                raise AdapterError(
                    f"load_state_dict: the best state has {seen} for {variable.path}, here it has "
                    f"shape {tuple(variable.shape)}; resume with the model and optimiser of the "
                    "first run"
                )
        self._take({name: np.array(state[name]) for name in variables})

    # Inside.

    def _variables(self) -> dict[str, Any]:
        """Return everything that is kept, by its place in the model, as names may repeat."""
        trained = self._model.trainable_variables
        found = {f"weight.{i}": variable for i, variable in enumerate(trained)}
        found |= {f"buffer.{i}": v for i, v in enumerate(own_buffers(self._model))}
        memory = [v for v in self._optimizer.variables if not self._is_steered(v)]
        return found | {f"optimizer.{i}": variable for i, variable in enumerate(memory)}

    def _take(self, arrays: dict[str, np.ndarray]) -> None:
        self._arrays.bytes = sum(array.nbytes for array in arrays.values())
        self._arrays.keep(arrays)


def _bytes_of(variable: Any) -> int:
    from keras import backend

    size = np.prod([int(side) for side in variable.shape], dtype=np.int64)
    bits = {"float8_e4m3fn": 8, "float8_e5m2": 8, "bfloat16": 16}
    kind = backend.standardize_dtype(variable.dtype)
    return int(size) * (bits[kind] // 8 if kind in bits else np.dtype(kind).itemsize)
