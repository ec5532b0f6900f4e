"""A tiny PyTorch loop, steered: whole, or from the checkpoint of an interrupted one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trimtab.adapters.torch import TorchController

STEPS, STOPPED_AT = 40, 17  # in the middle of a window
CHECKPOINT = Path("torch", "checkpoint.pt")


class Loop:
    """Two classes, BatchNorm and dropout; everything drawn from one seed."""

    def __init__(self, **settings: Any) -> None:
        torch.manual_seed(0)
        self.inputs = torch.randn(120, 6)
        self.labels = (self.inputs @ torch.randn(6, 2)).argmax(1)
        self.model = nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 2)
        )
        self.loss_fn = nn.CrossEntropyLoss()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.02, weight_decay=0.1)
        usual: dict[str, Any] = {
            "total_steps": STEPS,
            "validate": self.validate,
            "model": self.model,
            "policy": "random",
            "hyperparameters": ("lr", "weight_decay", "dropout"),
            "decisions": 10,
            "reference": "cosine",
            "seed": 4,
        }
        self.controller = TorchController(self.optimizer, **(usual | settings))
        torch.manual_seed(1)

    def validate(self) -> float:
        self.model.eval()
        with torch.no_grad():
            return float(self.loss_fn(self.model(self.inputs[100:]), self.labels[100:]))

    def batches(self, steps: int) -> Iterator[torch.Tensor]:
        for _ in range(steps):
            rows = torch.randint(0, 100, (8,))
            yield self.loss_fn(self.model(self.inputs[rows]), self.labels[rows])

    def train(self, steps: int) -> None:
        self.model.train()
        for loss in self.batches(steps):
            loss.backward()
            self.controller.step(loss)

    def end(self) -> dict[str, Any]:
        """Return schedule, best values and weights as plain data."""
        summary = self.controller.summary
        return {
            "schedule": summary.schedule,
            "best": dict(summary.best),
            "weights": [weight.tolist() for weight in self.model.state_dict().values()],
        }


def whole() -> dict[str, Any]:
    loop = Loop()
    with loop.controller:
        loop.train(STEPS)
    return loop.end()


def write(store: str) -> None:
    """Stop in mid-run and keep everything, as the documentation has it."""
    loop = Loop(store=store)
    with loop.controller:
        loop.train(STOPPED_AT)
        state = {
            "model": loop.model.state_dict(),
            "optimizer": loop.optimizer.state_dict(),
            "controller": loop.controller.state_dict(),
            "random": torch.get_rng_state(),
        }
        CHECKPOINT.parent.mkdir(exist_ok=True)
        torch.save(state, CHECKPOINT)
        raise KeyboardInterrupt


def resumed(store: str) -> dict[str, Any]:
    """Go on from the checkpoint, with its record."""
    kept = torch.load(CHECKPOINT, weights_only=True)
    loop = Loop(store=store)
    loop.model.load_state_dict(kept["model"])
    loop.optimizer.load_state_dict(kept["optimizer"])
    loop.controller.load_state_dict(kept["controller"])
    torch.set_rng_state(kept["random"])
    with loop.controller:
        loop.train(STEPS - STOPPED_AT)
    return loop.end()
