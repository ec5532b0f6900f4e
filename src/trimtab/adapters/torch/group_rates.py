"""A parameter group's learning rate: its peak, in which ``lr_scale`` counts, and writing it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch


class Peaks:
    """What a schedule that knows no ``lr_scale`` multiplies in each parameter group.

    Layer-wise decay in timm, BEiT and MAE writes ``lr_scale`` into the groups and leaves it to the
    scheduler to multiply by it. Where the rates are in proportion to it, it is in them already.

    Args:
        groups: The parameter groups on entry.
        key: Where their rate stands.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], key: str = "lr") -> None:
        self._key, self._unscaled = key, math.nan
        scales = [_scale(group) for group in groups]
        rates = [self._rate(group) for group in groups]
        if len(set(scales)) > 1 and min(scales) > 0:
            base = rates[0] / scales[0]
            pairs = zip(rates, scales, strict=True)
            if all(math.isclose(rate, base * scale, rel_tol=1e-6) for rate, scale in pairs):
                self._unscaled = base

    def all(self, groups: Sequence[dict[str, Any]]) -> list[float]:
        """Return each group's peak."""
        return [self.of(group) for group in groups]

    def of(self, group: dict[str, Any]) -> float:
        """Return a group's peak, by its rate as it stands there now."""
        rate, scale = self._rate(group), _scale(group)
        counted = math.isclose(rate, self._unscaled * scale, rel_tol=1e-6)
        return rate if counted else rate * scale

    def _rate(self, group: dict[str, Any]) -> float:
        return float(group.get(self._key, group["lr"]))


def _scale(group: dict[str, Any]) -> float:
    scale = group.get("lr_scale")
    return 1.0 if scale is None else float(scale)


def put(group: dict[str, Any], value: Any) -> None:
    """Write a learning rate; one that is a tensor is filled in place, as compiled steps need."""
    current = group["lr"]
    if isinstance(current, torch.Tensor):
        current.fill_(value) if isinstance(value, float) else current.copy_(value)
    else:
        group["lr"] = value


def copied(rate: Any) -> Any:
    """Return a rate that does not change where it stands, a tensor as a copy of it."""
    return rate.detach().clone() if isinstance(rate, torch.Tensor) else rate


def differs(group: dict[str, Any], written: Any) -> bool:
    """Return whether a rate is not what was written; on an accelerator that is not looked at."""
    current = group["lr"]
    if isinstance(current, torch.Tensor):
        if current.device.type != "cpu":
            return False
        return bool(current != torch.as_tensor(written, dtype=current.dtype))
    return bool(current != written)
