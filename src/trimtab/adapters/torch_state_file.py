"""A state of nested plain values and tensors as one safetensors file; nothing is pickled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from trimtab.core.errors import AdapterError

__all__ = ["read_state", "write_state"]

_FORMAT = "trimtab-state-1"


def write_state(path: Path, state: Mapping[str, Any]) -> str:
    """Write a state, complete or not at all; return 16 digits that name its plain part.

    Args:
        path: The file; its folder exists.
        state: Mappings with text keys, lists, tuples, numbers, texts, None and tensors.

    Raises:
        AdapterError: Something else is in it.
        OSError: The file cannot be written.
    """
    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps(_plain(state, tensors))
    partial = path.with_suffix(".partial")
    try:
        save_file(tensors, partial, metadata={"format": _FORMAT, "state": text})
        partial.replace(path)
    except SafetensorError as error:
        raise OSError(f"{path}: {error}") from error
    return _name_of(text)


def read_state(path: Path) -> tuple[dict[str, Any], str]:
    """Return the state in a file, with tensors in main memory, and its name as `write_state`'s.

    Raises:
        AdapterError: The file is missing, damaged, or not one of these.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise AdapterError(
                    f"{path}: its format is {metadata.get('format')!r}, expected {_FORMAT!r}; it "
                    "was not written by this version of trimtab"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        state = _full(json.loads(metadata["state"]), tensors)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        if isinstance(error, AdapterError):
            raise
        raise AdapterError(
            f"{path}: no state can be read there ({error}); resume from another checkpoint"
        ) from error
    return dict(state), _name_of(metadata["state"])


def _name_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Return a value as JSON takes it, with its tensors put aside."""
    if isinstance(value, torch.Tensor):
        name = f"t{len(tensors)}"
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"map": {str(key): _plain(item, tensors) for key, item in value.items()}}
    if isinstance(value, tuple):
        return {"tuple": [_plain(item, tensors) for item in value]}
    if isinstance(value, list):
        return [_plain(item, tensors) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise AdapterError(
        f"state: {value!r} ({type(value).__name__}) cannot be kept in a file; "
        "only numbers, texts, lists, mappings and tensors can"
    )


def _full(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_full(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "tuple" in value:
        return tuple(_full(item, tensors) for item in value["tuple"])
    return {key: _full(item, tensors) for key, item in value["map"].items()}
