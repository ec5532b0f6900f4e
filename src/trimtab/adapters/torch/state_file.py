"""A state of nested plain values and tensors as one safetensors file; nothing is pickled."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from trimtab.core.digest import ArrayBytes
from trimtab.core.errors import AdapterError
from trimtab.core.nested_state import StateForm

__all__ = ["read_state", "write_state"]


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
