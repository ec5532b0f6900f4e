"""How a task trains a network itself, before any run (NumPy only)."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Pretraining"]


@dataclass(frozen=True)
class Pretraining:
    """How a network is pretrained: AdamW, cosine decay to zero, gradients clipped to norm 1.

    Attributes:
        steps: Optimiser steps.
        batch_size: Examples a step.
        lr: Learning rate of the first step.
        seed: Of initialisation, order of data and dropout.
    """

    steps: int
    batch_size: int
    lr: float
    seed: int = 0
