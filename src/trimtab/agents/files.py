"""Agents in files: safetensors for arrays, JSON for the rest, nothing that can be executed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.core.errors import PolicyFileError

AGENT_FORMAT = "trimtab-agent-1"
_ARRAY, _INTEGER_KEYS = "array:", "integer keys"


def _packed(value: Any, place: str, arrays: dict[str, np.ndarray]) -> Any:
    """Return a value as JSON-able data, with its arrays put aside under their place."""
    if isinstance(value, np.ndarray):
        arrays[place] = np.array(value, order="C")
        return _ARRAY + place
    if isinstance(value, Mapping):
        packed = {str(key): _packed(item, f"{place}/{key}", arrays) for key, item in value.items()}
        if value and all(isinstance(key, int) for key in value):
            return {_INTEGER_KEYS: packed}
        return packed
    if isinstance(value, list | tuple):
        return [_packed(item, f"{place}/{index}", arrays) for index, item in enumerate(value)]
    if isinstance(value, np.generic):
        return value.item()
    return value


def _unpacked(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    if isinstance(value, str) and value.startswith(_ARRAY):
        return arrays[value[len(_ARRAY) :]]
    if isinstance(value, list):
        return [_unpacked(item, arrays) for item in value]
    if isinstance(value, dict):
        if list(value) == [_INTEGER_KEYS]:
            return {int(k): _unpacked(item, arrays) for k, item in value[_INTEGER_KEYS].items()}
        return {key: _unpacked(item, arrays) for key, item in value.items()}
    return value


def write_agent(path: str | Path, header: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write an agent whole or not at all.

    Args:
        path: File to write.
        header: JSON-able data that says what the agent is.
        state: Nested dicts and lists of NumPy arrays and JSON-able data.
    """
    from safetensors.numpy import save

    arrays: dict[str, np.ndarray] = {}
    packed = _packed(state, "state", arrays)
    metadata = {
        "format": AGENT_FORMAT,
        "header": json.dumps(dict(header)),
        "state": json.dumps(packed),
    }
    target = Path(path)
    partial = target.with_name(target.name + ".partial")
    partial.write_bytes(save(arrays, metadata=metadata))
    partial.replace(target)


def read_agent(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the header and state that `write_agent` wrote.

    Raises:
        PolicyFileError: The file is unreadable, damaged, foreign, or a pickle.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise PolicyFileError(
            f"agent {path}: {error.strerror or error}; name a file that save() wrote"
        ) from error
    if data[:2] == b"PK" or data[:1] == b"\x80":
        raise PolicyFileError(
            f"agent {path} is a pickle or zip archive, which could run code and is not read; "
            "save the agent with its own save()"
        )
    try:
        size = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + size]).get("__metadata__", {})
        if metadata.get("format") != AGENT_FORMAT:
            raise PolicyFileError(
                f"agent {path} has format {metadata.get('format')!r}, expected {AGENT_FORMAT!r}; "
                "it was not written by an agent's save()"
            )
        arrays = load(data)
        state = _unpacked(json.loads(metadata["state"]), arrays)
        header = json.loads(metadata["header"])
    except (ValueError, KeyError, AttributeError, SafetensorError, MemoryError) as error:
        if isinstance(error, PolicyFileError):
            raise
        raise PolicyFileError(
            f"agent {path} is damaged or truncated ({len(data)} bytes); save it again"
        ) from error
    return header, state
