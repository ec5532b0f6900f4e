"""The state of a steered Keras run in one safetensors file, the last two moments of it.

Keras writes its own checkpoint at another instant than we do. A process may be killed between the
two, so the moment before is kept as well, and each is named by the weights that it belongs to.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from trimtab.adapters.keras.keras_variables import array_of
from trimtab.core.digest import ArrayBytes
from trimtab.core.errors import AdapterError
from trimtab.core.nested_state import StateForm

__all__ = ["before", "fingerprint", "read_state", "write_state"]


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
