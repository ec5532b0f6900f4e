"""Nested states as safetensors files: NumPy arrays beside JSON, nothing that could be executed."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.core.nested_state import StateForm, array_bytes, safetensors_header


def pack(state: Any, form: StateForm, *, is_sealed: bool = True, **texts: str) -> bytes:
    """Return a state as the bytes of a safetensors file.

    Args:
        state: Mappings, lists, tuples, numbers, texts, None, NumPy arrays and numbers.
        form: How it is kept.
        is_sealed: Whether the file proves itself by a hash of its content.
        texts: What else the file says.

    Raises:
        TrimtabError: Something else is in the state; of the form's kind.
    """
    from safetensors.numpy import save

    text, arrays = form.take_apart(state)
    metadata = {"format": form.format, "state": text, **texts}
    if is_sealed:
        metadata["sha256"] = form.digest(metadata, array_bytes(arrays))
    return save(arrays, metadata=metadata)


def unpack(data: bytes, form: StateForm, where: str, *, is_sealed: bool = True) -> Any:
    """Return the state in the bytes that `pack` gave.

    Args:
        data: The bytes.
        form: As for `pack`.
        where: What messages call them.
        is_sealed: As for `pack`.

    Raises:
        TrimtabError: They are not such bytes, or were changed; of the form's kind.
    """
    from safetensors import SafetensorError

    with form.refusing(where, SafetensorError):
        texts = texts_in(data)
        form.require_format(where, texts)
        arrays = arrays_in(data)
        if is_sealed:
            form.require_content(where, texts, array_bytes(arrays))
        return form.put_together(texts["state"], arrays)


def texts_in(data: bytes) -> Mapping[str, str]:
    """Return what the bytes of a safetensors file say in words."""
    return dict(safetensors_header(data).get("__metadata__", {}))


def arrays_in(data: bytes) -> dict[str, np.ndarray]:
    """Return the arrays in the bytes of a safetensors file."""
    from safetensors.numpy import load

    return load(data)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole, or leave what was there and raise; a link's target is what is written.

    What is no file, such as ``/dev/stdout``, is written to as it comes.
    """
    path = path.resolve()
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    except OSError:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
