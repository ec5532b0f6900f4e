"""How the record writes plain data: JSON that every reader accepts, and float32 arrays as bytes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from trimtab.core.metrics import Metrics


def to_json(value: Any) -> str:
    """Return strict JSON of plain data; nan becomes null and infinities ``"inf"``, ``"-inf"``.

    >>> to_json({"loss": float("nan"), "best": float("inf")})
    '{"loss":null,"best":"inf"}'
    """
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError):
        return json.dumps(_plain(value), separators=(",", ":"), allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "inf" if value > 0 else "-inf"
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def from_json(text: str) -> Any:
    """Return what `to_json` wrote, with ``"inf"`` and ``"-inf"`` as floats and null as None."""
    return _numbers(json.loads(text))


def _numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return float(value) if value in ("inf", "-inf") else value


def metrics_to_json(metrics: Metrics) -> str:
    """Return the metrics that were measured, as one JSON object; nan fields are left out."""
    fields = {name: float(value) for name, value in zip(Metrics._fields, metrics, strict=True)}
    return to_json({name: value for name, value in fields.items() if not math.isnan(value)})


def metrics_from_json(text: str) -> Metrics:
    """Return what `metrics_to_json` wrote; fields that this version does not know are left out."""
    fields = {k: v for k, v in from_json(text).items() if k in Metrics._fields and v is not None}
    return Metrics(**fields)


def array_to_bytes(array: np.ndarray) -> bytes:
    """Return a float array of any shape as little-endian float32, flat."""
    return np.ascontiguousarray(array, "<f4").tobytes()


def array_from_bytes(data: bytes) -> np.ndarray:
    """Return (n,) float32, what `array_to_bytes` wrote of an array of n numbers."""
    return np.frombuffer(data, "<f4").astype(np.float32)
