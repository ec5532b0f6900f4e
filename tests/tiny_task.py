"""A fine-tuning task of two weights, and every way in which a user's task can be wrong."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import numpy as np

from trimtab.core.hyperparameters import Hyperparameter, hyperparameter
from trimtab.core.metrics import Metrics


class TinyRun:
    """Least squares on noisy gradients; diverges by itself when the learning rate is too high."""

    def __init__(self, task: TinyTask, seed: int) -> None:
        self.task = task
        self.generator = np.random.default_rng(seed)
        self.weights = np.array([2.0, -1.0])
        self.velocity = np.zeros(2)
        self.advanced = 0

    def loss(self) -> float:
        with np.errstate(over="ignore", invalid="ignore"):
            return float(0.5 * np.sum([4.0, 0.3] * self.weights**2) + 0.1)

    def advance(self, values: Mapping[str, np.ndarray], steps: int) -> Metrics:
        time.sleep(self.task.seconds_a_window)
        losses = []
        for step in range(steps):
            losses.append(self.loss())
            if not math.isfinite(losses[-1]) or self.advanced == self.task.nan_at:
                self.advanced += 1
                return Metrics(val_loss=math.nan, steps=step, charge=4.0 * step, finite=0.0)
            noise = 0.05 * self.generator.standard_normal(2)
            momentum = float(values["momentum"][step]) if "momentum" in values else 0.0
            self.velocity = momentum * self.velocity + [4.0, 0.3] * self.weights + noise
            self.weights = self.weights - float(values["lr"][step]) * self.velocity
            self.advanced += 1
        return Metrics(
            train_loss=float(np.mean(losses)),
            train_loss_first=losses[0],
            val_loss=self.loss(),
            steps=steps - self.task.forgets,
            charge=4.0 * steps + 8 / 3,
        )

    def evaluate(self, split: str) -> dict[str, float]:
        if split == "test" and not self.task.has_test:
            raise KeyError(split)
        loss = self.loss()
        return {"loss": loss, "accuracy": 1 / (1 + loss), "examples": 8.0}

    def snapshot(self) -> tuple[np.ndarray, np.ndarray]:
        return self.weights.copy(), self.velocity.copy()

    def restore(self, snapshot: tuple[np.ndarray, np.ndarray]) -> None:
        self.weights, self.velocity = snapshot[0].copy(), snapshot[1].copy()


class TinyTask:
    """Takes what is to be wrong with it as attributes."""

    monitor = "loss"
    mode = "min"
    batch_size = 4
    has_test = True
    nan_at = -1
    forgets = 0
    seconds_a_window = 0.0
    total_steps = 60

    def __init__(self, **wrong: object) -> None:
        self.name = "tiny/<i>task</i>"
        self.hyperparameters: tuple[Hyperparameter, ...] = (
            hyperparameter("lr", 0.1),
            hyperparameter("momentum", 0.5),
        )
        for name, value in wrong.items():
            setattr(self, name, value)

    def start(self, *, seed: int) -> TinyRun:
        return TinyRun(self, seed)


def make() -> TinyTask:
    return TinyTask()


def slow() -> TinyTask:
    return TinyTask(seconds_a_window=0.25)


def nan_at_30() -> TinyTask:
    return TinyTask(nan_at=30)


def negative_steps() -> TinyTask:
    return TinyTask(total_steps=-5)


def bounds_the_wrong_way() -> TinyTask:
    return TinyTask(hyperparameters=(hyperparameter("lr", 0.1, low=1.0, high=0.01),))


def log_scale_with_zero() -> TinyTask:
    return TinyTask(hyperparameters=(hyperparameter("lr", 0.1, low=0.0, high=1.0),))


def unknown_monitor() -> TinyTask:
    return TinyTask(monitor="f1")


def forgetful() -> TinyTask:
    return TinyTask(forgets=1)


def raises() -> TinyTask:
    raise ZeroDivisionError("three sheep short")


class _Breaks(TinyRun):
    def evaluate(self, split: str) -> dict[str, float]:
        if self.advanced > 20:
            raise OSError("the disk with the validation images is gone")
        return super().evaluate(split)


class _NotANumber(TinyRun):
    def evaluate(self, split: str) -> dict[str, float]:
        return {"loss": "low"}  # type: ignore[dict-item]


def breaks_in_the_middle() -> TinyTask:
    return TinyTask(start=lambda *, seed: _Breaks(make(), seed))


def validates_to_text() -> TinyTask:
    return TinyTask(start=lambda *, seed: _NotANumber(make(), seed))


not_a_task = 3
