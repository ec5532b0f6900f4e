"""Steering a PyTorch training loop."""

from __future__ import annotations

from trimtab.adapters.torch.controller import TorchController
from trimtab.adapters.torch.values import SteeredValue

__all__ = ["SteeredValue", "TorchController"]
