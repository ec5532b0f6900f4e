"""Steering a Transformers ``Trainer``."""

from __future__ import annotations

from trimtab.adapters.transformers.callback import TrimtabCallback, steer

__all__ = ["TrimtabCallback", "steer"]
