"""The state of a steered Keras run in one safetensors file, the last two moments of it.

Keras writes its own checkpoint at another instant than we do. A process may be killed between the
two, so the moment before is kept as well, and each is named by the weights that it belongs to.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from trimtab.adapters.keras_variables import array_of
from trimtab.core.digest import ArrayBytes, content_digest
from trimtab.core.errors import AdapterError

__all__ = ["before", "fingerprint", "read_state", "write_state"]

_FORMAT = "trimtab-keras-state-1"
# What plain data of the wrong shape raise while they are put together again.
_ODD = (TypeError, AttributeError, RecursionError)


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
        OSError: The file cannot be written.
    """
    arrays: dict[str, np.ndarray] = {}
    text = json.dumps(_plain(state, arrays))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    metadata = {"format": _FORMAT, "weights": weights, "state": text}
    metadata["sha256"] = _digest(metadata, arrays)
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
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata.get("format") != _FORMAT:
            raise AdapterError(
                f"state_file: {path} has the format {metadata.get('format')!r}, expected "
                f"{_FORMAT!r}; it was not written by this version of trimtab"
            )
        if metadata.get("sha256") != _digest(metadata, arrays):
            raise AdapterError(
                f"state_file: {path} was changed after it was written (its hash is another); "
                "delete it to begin a new run"
            )
        return dict(_full(json.loads(metadata["state"]), arrays))
    except AdapterError:
        raise
    except (OSError, SafetensorError, LookupError, ValueError, *_ODD) as error:
        raise AdapterError(
            f"state_file: {path} cannot be read ({error}); delete it to begin a new run"
        ) from error


def _digest(metadata: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> str:
    """Return the hash of a state's texts and arrays."""
    bytes_of = [
        (name, ArrayBytes(str(one.dtype), one.shape, np.ascontiguousarray(one).tobytes()))
        for name, one in arrays.items()
    ]
    texts = {key: metadata[key] for key in ("format", "weights", "state")}
    return content_digest(texts, bytes_of)


def _plain(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """Return a value as JSON takes it, with its arrays put aside."""
    if isinstance(value, np.ndarray):
        name = f"a{len(arrays)}"
        arrays[name] = np.asarray(value, order="C")
        return {"array": name}
    if isinstance(value, Mapping):
        return {"map": {str(key): _plain(item, arrays) for key, item in value.items()}}
    if isinstance(value, tuple):
        return {"tuple": [_plain(item, arrays) for item in value]}
    if isinstance(value, list):
        return [_plain(item, arrays) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise AdapterError(
        f"state: {value!r} ({type(value).__name__}) cannot be kept in a file; "
        "only numbers, texts, lists, mappings and arrays can"
    )


def _full(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    if isinstance(value, list):
        return [_full(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return arrays[value["array"]]
    if "tuple" in value:
        return tuple(_full(item, arrays) for item in value["tuple"])
    return {key: _full(item, arrays) for key, item in value["map"].items()}
