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

from trimtab.core.digest import ArrayBytes, content_digest
from trimtab.core.errors import AdapterError

__all__ = ["read_state", "write_state"]

_FORMAT = "trimtab-state-1"
# What plain data of the wrong shape raise while they are put together again.
_ODD = (TypeError, AttributeError, RecursionError)


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
        metadata = {"format": _FORMAT, "state": text, "sha256": _digest(text, tensors)}
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
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise AdapterError(
                    f"{path}: its format is {metadata.get('format')!r}, expected {_FORMAT!r}; it "
                    "was not written by this version of trimtab"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        _check_content(path, metadata, tensors)
        state = dict(_full(json.loads(metadata["state"]), tensors))
    except AdapterError:
        raise
    except (OSError, SafetensorError, LookupError, ValueError, *_ODD) as error:
        raise AdapterError(
            f"{path}: no state can be read there ({error}); resume from another checkpoint"
        ) from error
    return state, _name_of(metadata["state"])


def _check_content(
    path: Path, metadata: Mapping[str, str], tensors: Mapping[str, torch.Tensor]
) -> None:
    """Raise unless a file holds what was written, by its hash."""
    if metadata.get("sha256") != _digest(metadata["state"], tensors):
        raise AdapterError(
            f"{path}: it was changed after it was written (its hash is another); resume from "
            "another checkpoint"
        )


def _digest(text: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the hash of a state's plain part and tensors."""
    arrays = [
        (
            name,
            ArrayBytes(str(one.dtype), tuple(one.shape), one.reshape(-1).view(torch.uint8).numpy()),
        )
        for name, one in tensors.items()
    ]
    return content_digest({"format": _FORMAT, "state": text}, arrays)


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
