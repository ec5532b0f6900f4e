"""Gradient statistics of a TensorFlow loop, taken at the last two steps of a window."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

__all__ = ["GradientStatistics"]


class GradientStatistics:
    """Measures gradient norm, cosine and update ratio as `Metrics` defines them.

    Usage: `remember` at the window's last step but one; at the last one `before`, the update, and
    `measure`.
    """

    def __init__(self) -> None:
        self._previous: list[Any] | None = None

    def remember(self, gradients: Sequence[Any]) -> None:
        """Keep the gradients of the window's last step but one."""
        self._previous = [_dense(gradient) for gradient in gradients]

    def before(self, weights: Sequence[Any]) -> list[Any]:
        """Return copies of the weights before the window's last update."""
        from keras import ops

        return [ops.copy(weight.value) for weight in weights]

    def measure(
        self, gradients: Sequence[Any], weights: Sequence[Any], before: Sequence[Any]
    ) -> dict[str, float]:
        """Return ``grad_norm``, ``update_ratio``, and ``grad_cosine`` where a step came before."""
        now = [_dense(gradient) for gradient in gradients]
        updates = [weight.value - old for weight, old in zip(weights, before, strict=True)]
        norm = _norm(now)
        measured = {"grad_norm": norm, "update_ratio": _ratio(_norm(updates), _norm(before))}
        previous, self._previous = self._previous, None
        if previous is not None:
            measured["grad_cosine"] = _cosine(previous, now, norm)
        return measured


def _dense(gradient: Any) -> Any:
    import tensorflow

    return None if gradient is None else tensorflow.convert_to_tensor(gradient)


def _sum(products: list[Any]) -> float:
    from keras import ops

    sums = [float(ops.sum(ops.cast(product, "float32"))) for product in products]
    return math.fsum(sums) if all(map(math.isfinite, sums)) else math.nan


def _norm(tensors: Sequence[Any]) -> float:
    from keras import ops

    total = _sum([ops.square(ops.cast(item, "float32")) for item in tensors if item is not None])
    return math.sqrt(total)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else math.nan


def _cosine(previous: Sequence[Any], now: Sequence[Any], norm: float) -> float:
    pairs = [(a, b) for a, b in zip(previous, now, strict=True) if a is not None and b is not None]
    lengths = _norm(previous) * norm
    return max(-1.0, min(1.0, _ratio(_sum([a * b for a, b in pairs]), lengths)))
