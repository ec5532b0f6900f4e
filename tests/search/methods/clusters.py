"""A task in PyTorch that trains in a blink and takes any optimiser: three clouds of points."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from trimtab.core.hyperparameters import hyperparameter
from trimtab.tasks.data.batches import ShuffledBatches
from trimtab.tasks.torch.run import TorchRun, TorchSetup
from trimtab.tasks.torch.task import OptimizerMaker, optimizer_maker

_SIZES = {"train": 120, "validation": 60, "selection": 60, "test": 60}


class Clusters:
    """Learns to tell three overlapping clouds apart; AdamW's tuned rate is about .03."""

    name = "clusters"
    monitor, mode = "loss", "min"
    total_steps, batch_size = 80, 8

    def __init__(self) -> None:
        self.hyperparameters = (hyperparameter("lr", 0.03), hyperparameter("weight_decay", 0.01))

    def start(
        self, *, seed: int, optimizer: str | OptimizerMaker = "adamw", momentum: float | None = None
    ) -> TorchRun:
        drawn = torch.Generator().manual_seed(7)
        data = {}
        for split, count in _SIZES.items():
            labels = torch.arange(count) % 3
            noise = torch.randn(count, 4, generator=drawn)
            data[split] = (noise + 1.5 * nn.functional.one_hot(labels, 4), labels)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))

        def loss(model: nn.Module, rows: np.ndarray, values: Mapping[str, float]) -> torch.Tensor:
            x, y = data["train"]
            return nn.functional.cross_entropy(model(x[rows]), y[rows])

        def evaluate(model: nn.Module, split: str) -> dict[str, float]:
            x, y = data[split]
            return {"loss": nn.functional.cross_entropy(model(x), y).item(), "examples": len(y)}

        setup = TorchSetup(
            model,
            loss,
            ShuffledBatches(_SIZES["train"], self.batch_size, seed=seed),
            evaluate,
            {item.name: item.default for item in self.hyperparameters},
            optimizer=optimizer_maker(optimizer, momentum),
            seed=seed,
        )
        return TorchRun(setup)


class Fixed(Clusters):
    """The same with an optimiser of its own, which ``start`` does not name.

    Args:
        make: Makes it.
    """

    def __init__(self, make: OptimizerMaker) -> None:
        super().__init__()
        self._make = make

    def start(self, *, seed: int) -> TorchRun:  # type: ignore[override] # takes no optimiser
        return super().start(seed=seed, optimizer=self._make)


def made_by(kind: Any, **settings: Any) -> OptimizerMaker:
    """Return what makes an optimiser of a class with these settings."""
    return lambda groups: kind(groups, lr=1.0, **settings)
