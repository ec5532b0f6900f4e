"""A small training loop that is run plainly and steered, to be compared to the last bit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from trimtab.adapters.torch import TorchController
from trimtab.core.decision import Decision, Recorder, Summary

STEPS = 60


class Listener(Recorder):
    """Keeps what a store would be told."""

    def __init__(self) -> None:
        self.decisions: list[Decision] = []
        self.status = ""
        self.summary: Summary | None = None

    def decision(self, decision: Decision) -> None:
        self.decisions.append(decision)

    def finish(self, summary: Summary, status: str) -> None:
        assert not self.status, "finished twice"
        self.summary, self.status = summary, status


@dataclass
class Loop:
    """Three classes, BatchNorm and dropout; everything drawn from one seed."""

    steps: int = STEPS
    learning_rate: float = 1e-2
    make_optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW
    options: dict[str, Any] = field(default_factory=dict)
    wrecked: dict[int, float] = field(default_factory=dict)  # step -> factor of its loss
    spared: tuple[int, ...] = ()  # steps of these of which the loss alone is wrecked

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.inputs = torch.randn(240, 8)
        self.labels = (self.inputs @ torch.randn(8, 3)).argmax(1)
        self.model = nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3)
        )
        self.loss_fn = nn.CrossEntropyLoss()
        weights = self.options.pop("groups", None) or self.model.parameters()
        self.optimizer = self.make_optimizer(weights, lr=self.learning_rate, **self.options)
        self.validations = 0

    def validate(self) -> dict[str, float]:
        self.validations += 1
        self.model.eval()
        with torch.no_grad():
            logits = self.model(self.inputs[200:])
            loss = self.loss_fn(logits, self.labels[200:])
            accuracy = (logits.argmax(1) == self.labels[200:]).float().mean()
        return {"loss": float(loss), "accuracy": float(accuracy)}

    def losses(self, steps: int | None = None) -> Iterator[torch.Tensor]:
        """Yield the loss of each batch; one is drawn from the global random state."""
        for step in range(self.steps if steps is None else steps):
            chosen = torch.randint(0, 200, (16,))
            loss = self.loss_fn(self.model(self.inputs[chosen]), self.labels[chosen])
            factor = self.wrecked.get(step, 1.0)
            if not math.isfinite(factor) and step not in self.spared:  # else it would be skipped
                with torch.no_grad():
                    next(self.model.parameters()).view(-1)[0] = factor
            yield loss * factor

    def begin(self) -> None:
        torch.manual_seed(1)
        self.model.train()

    def run_plainly(self, scheduler: Any = None, *, clip: float | None = None) -> None:
        self.begin()
        for loss in self.losses():
            loss.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), clip)
            self.optimizer.step()
            self.optimizer.zero_grad()
            if scheduler is not None:
                scheduler.step()

    def controller(self, **settings: Any) -> TorchController:
        settings = {"policy": None, "validate": self.validate, "total_steps": self.steps} | settings
        return TorchController(self.optimizer, model=self.model, **settings)

    def run_steered(
        self,
        *,
        train_for: int | None = None,
        after: Callable[[int], None] = lambda step: None,
        **settings: Any,
    ) -> TorchController:
        self.begin()
        with self.controller(**settings) as controller:
            for step, loss in enumerate(self.losses(train_for)):
                loss.backward()
                controller.step(loss)
                after(step)
        return controller

    def state(self) -> list[torch.Tensor]:
        """Return all weights, buffers and optimiser state, copied."""
        kept = [tensor.clone() for tensor in self.model.state_dict().values()]
        for weight in self.model.parameters():
            state = self.optimizer.state.get(weight, {})
            kept += [v.clone() for v in state.values() if isinstance(v, torch.Tensor)]
        return kept

    def rates(self) -> list[float]:
        return [float(group["lr"]) for group in self.optimizer.param_groups]


def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a, b) for a, b in zip(left, right, strict=True)
    )


@pytest.fixture
def loop() -> type[Loop]:
    return Loop


@pytest.fixture
def equal() -> Callable[[list[torch.Tensor], list[torch.Tensor]], bool]:
    return same


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Listener:
    """Stand in the place of the store."""
    kept = Listener()
    monkeypatch.setattr("trimtab.defaults.recorder_for", lambda *_, **__: kept)
    return kept
