"""Steering a Lightning ``Trainer``."""

from __future__ import annotations

from trimtab.adapters.lightning.callback import TrimtabCallback

__all__ = ["TrimtabCallback"]
