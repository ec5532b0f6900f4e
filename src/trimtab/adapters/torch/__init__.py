"""Steering a PyTorch training loop."""

from __future__ import annotations

from trimtab.adapters.actuators import SteeredValue
from trimtab.adapters.torch.controller import TorchController
from trimtab.adapters.torch.rescue import Rescue
from trimtab.adapters.total_steps import total_steps

__all__ = ["Rescue", "SteeredValue", "TorchController", "total_steps"]
