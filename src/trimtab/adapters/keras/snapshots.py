"""The state that a steered Keras run goes back to: weights, buffers, and the optimiser's memory."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from trimtab.adapters.keras.variables import array_of, own_buffers
from trimtab.core.errors import AdapterError, unknown_name
from trimtab.core.notices import tell

PLACES: tuple[str, ...] = ("memory", "cpu", "disk", "none")

_logger = logging.getLogger("trimtab")


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

    Attributes:
        place: Where copies go; a full disk turns ``"disk"`` into ``"cpu"``.
        bytes: Size of one snapshot.

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
        if place not in PLACES:
            raise unknown_name("place for snapshots", str(place), PLACES)
        self.place = place if needed else "none"
        self._model, self._optimizer, self._is_steered = model, optimizer, is_steered
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._on_disk: Path | None = None
        self._kept: dict[str, Any] | None = None
        self.bytes = 0

    @property
    def kept(self) -> bool:
        """Whether there is a state to go back to."""
        return self._kept is not None or self._on_disk is not None

    def announce(self) -> None:
        """Say in the log how large a snapshot is, and where it goes."""
        if self.place == "none":
            _logger.info("no snapshots: a run that diverges cannot go back to its best weights")
            return
        self.bytes = sum(_bytes_of(variable) for variable in self._variables().values())
        where = {"memory": "the device", "cpu": "main memory", "disk": "a temporary folder"}
        _logger.info(
            "a snapshot takes about %.1f MB in %s; one is kept at a time",
            self.bytes / 1e6,
            where[self.place],
        )

    def keep(self) -> None:
        """Keep the state as it is now in place of the one kept before."""
        if self.place == "none":
            return
        if self.place == "memory":
            from keras import ops

            self._kept = {name: ops.copy(v.value) for name, v in self._variables().items()}
        else:
            self._take({name: array_of(v) for name, v in self._variables().items()})

    def restore(self) -> None:
        """Put the kept state back; without one, nothing happens."""
        if not self.kept:
            return
        kept = self._load()
        for name, variable in self._variables().items():
            if name in kept:
                variable.assign(kept[name])

    def close(self) -> None:
        """Let go of the kept state and remove what is on disk."""
        self._kept = self._on_disk = None
        directory, self._directory = self._directory, None
        if directory is not None:
            with suppress(OSError):
                directory.cleanup()

    def state_dict(self) -> dict[str, np.ndarray] | None:
        """Return the kept state as arrays in main memory, or None."""
        if not self.kept:
            return None
        return {name: array_of(value) for name, value in self._load().items()}

    def load_state_dict(self, state: Mapping[str, np.ndarray] | None) -> None:
        """Take over what `state_dict` returned.

        Raises:
            AdapterError: It is of another model or optimiser.
        """
        if state is None or self.place == "none":
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
        self.bytes = sum(array.nbytes for array in arrays.values())
        if self.place == "disk":
            try:
                self._to_disk(arrays)
            except (OSError, SafetensorError) as error:
                self.place, self._on_disk = "cpu", None
                tell(
                    f"snapshots: {self.bytes / 1e6:.1f} MB could not be written to the temporary "
                    f"folder ({error}); they stay in main memory instead, so free the disk or set "
                    "TMPDIR"
                )
            else:
                return
        self._kept = dict(arrays)

    def _to_disk(self, arrays: dict[str, np.ndarray]) -> None:
        if self._directory is None:
            self._directory = tempfile.TemporaryDirectory(
                prefix="trimtab-", ignore_cleanup_errors=True
            )
        path = Path(self._directory.name) / "best.safetensors"
        partial = path.with_suffix(".partial")
        save_file(arrays, partial)
        partial.replace(path)
        self._on_disk = path

    def _load(self) -> dict[str, Any]:
        if self._on_disk is not None:
            return dict(load_file(self._on_disk))
        return self._kept or {}


def _bytes_of(variable: Any) -> int:
    from keras import backend

    size = np.prod([int(side) for side in variable.shape], dtype=np.int64)
    bits = {"float8_e4m3fn": 8, "float8_e5m2": 8, "bfloat16": 16}
    kind = backend.standardize_dtype(variable.dtype)
    return int(size) * (bits[kind] // 8 if kind in bits else np.dtype(kind).itemsize)
