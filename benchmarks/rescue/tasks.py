"""Three small fine-tuning tasks into which faults are put: rows, words and images.

Each is a network that was trained on one rule and goes on with another one near it, on data drawn
from a seed; a step takes a millisecond or two. A batch is ``(inputs, labels, weights)``, and the
loss the weighted mean over its examples.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

__all__ = ["STEPS", "TASKS", "WARM_UP", "Batch", "Run", "start"]

STEPS = 160
WARM_UP = 8
CLASSES = 6
_PRETRAINING = 150
_TRAIN = 1600
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Rows(nn.Module):
    """A perceptron with batch normalisation over 16 numbers."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(16, 48), nn.BatchNorm1d(48)
        self.middle, self.drop = nn.Linear(48, 48), nn.Dropout(dropout)
        self.head = nn.Linear(48, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the scores of rows."""
        h = functional.relu(self.norm(self.first(x)))
        scores: torch.Tensor = self.head(self.drop(functional.relu(self.middle(h))))
        return scores


class Words(nn.Module):
    """One transformer block over 12 words of a vocabulary of 60."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.first = nn.Embedding(60, 24)
        self.middle = nn.TransformerEncoderLayer(24, 2, 48, dropout=dropout, batch_first=True)
        self.norm, self.head = nn.BatchNorm1d(24), nn.Linear(24, CLASSES)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        """Return the scores of texts."""
        scores: torch.Tensor = self.head(self.norm(self.middle(self.first(words)).mean(1)))
        return scores


class Images(nn.Module):
    """Two convolutions over images of 10 by 10 points."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.middle, self.drop = nn.Conv2d(12, 24, 3, stride=2), nn.Dropout(dropout)
        self.head = nn.Linear(24 * 4, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the scores of images."""
        h = functional.relu(self.norm(self.first(x)))
        h = functional.adaptive_avg_pool2d(functional.relu(self.middle(h)), 2)
        scores: torch.Tensor = self.head(self.drop(h.flatten(1)))
        return scores


def _rows(n: int, drawn: torch.Generator) -> torch.Tensor:
    return torch.randn(n, 16, generator=drawn)


def _words(n: int, drawn: torch.Generator) -> torch.Tensor:
    often = 1.0 / torch.arange(1, 61).float()
    return torch.multinomial(often, n * 12, True, generator=drawn).view(n, 12)


def _images(n: int, drawn: torch.Generator) -> torch.Tensor:
    coarse = torch.randn(n, 1, 5, 5, generator=drawn)
    fine = functional.interpolate(coarse, size=(10, 10), mode="bilinear")
    return fine + 0.1 * torch.randn(n, 1, 10, 10, generator=drawn)


def _numbers(inputs: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Return what a rule sees of inputs: rows and images as they are, words by a table."""
    if inputs.is_floating_point():
        return inputs.flatten(1)
    return table[inputs].mean(1) * 3.0


_NETS: dict[str, tuple[Callable[[float], nn.Module], Any, int, float]] = {
    "rows": (Rows, _rows, 16, 4e-3),
    "words": (Words, _words, 16, 4e-3),
    "images": (Images, _images, 100, 4e-3),
}
TASKS = tuple(_NETS)


@dataclass
class Run:
    """A fine-tuning run before its first step.

    Attributes:
        model: The pretrained network, in training mode.
        optimizer: AdamW.
        train: All examples for training.
        validation: For validation.
        test: For the final loss.
        order: Indices of the examples, batch after batch.
        batch_size: Examples a batch.
        step: Of the loop now, for a fault in the validation.
    """

    model: Any
    optimizer: torch.optim.Optimizer
    train: Batch
    validation: Batch
    test: Batch
    order: torch.Tensor
    batch_size: int
    step: int = 0

    def batch(self, step: int) -> Batch:
        """Return the batch of a step."""
        rows = self.order[step * self.batch_size : (step + 1) * self.batch_size]
        x, y, w = (part[rows] for part in self.train)
        return x, y, w

    def loss_of(self, batch: Batch) -> torch.Tensor:
        """Return the loss of a batch."""
        return weighted_loss(self.model, batch)

    def measured(self, batch: Batch) -> float:
        """Return the loss in evaluation mode."""
        was = self.model.training
        self.model.eval()
        with torch.no_grad():
            loss = float(weighted_loss(self.model, batch))
        self.model.train(was)
        return loss


def weighted_loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Return the weighted mean loss of a batch."""
    losses = functional.cross_entropy(model(batch[0]), batch[1], reduction="none")
    return (losses * batch[2]).mean()


def _drawn(name: str, n: int, rule: list[torch.Tensor], drawn: torch.Generator) -> Batch:
    inputs = _NETS[name][1](n, drawn)
    table, inner, outer = rule
    labels = (torch.tanh(_numbers(inputs, table) @ inner) @ outer).argmax(1)
    wrong = torch.rand(n, generator=drawn) < 0.05
    labels = torch.where(wrong, torch.randint(0, CLASSES, (n,), generator=drawn), labels)
    return inputs, labels, torch.ones(n)


@functools.lru_cache(maxsize=64)
def _prepared(name: str, seed: int) -> tuple[Any, list[torch.Tensor], list[Batch]]:
    """Return weights after the first rule, the second rule, and data by it."""
    drawn = torch.Generator().manual_seed(7000 + seed)
    wide = _NETS[name][2]
    shapes = ((60, 16), (wide, 24), (24, CLASSES))
    rule = [torch.randn(shape, generator=drawn) / shape[0] ** 0.5 for shape in shapes]
    moved = [one + 0.5 * one.std() * torch.randn(one.shape, generator=drawn) for one in rule]
    rule[0] *= 60**0.5
    moved[0] *= 60**0.5
    before = _drawn(name, _TRAIN, rule, drawn)
    data = [_drawn(name, n, moved, drawn) for n in (_TRAIN, 400, 1500)]
    torch.manual_seed(seed)
    model = _NETS[name][0](0.1)
    optimizer = torch.optim.AdamW(model.parameters(), 4e-3)
    for _ in range(_PRETRAINING):
        rows = torch.randint(0, _TRAIN, (48,), generator=drawn)
        weighted_loss(model, tuple(part[rows] for part in before)).backward()  # type: ignore[arg-type, no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    return copy.deepcopy(model.state_dict()), moved, data


def start(name: str, seed: int, *, noisy: bool = False) -> Run:
    """Return a run of a task.

    Args:
        name: One of `TASKS`.
        seed: Of its data, weights and order.
        noisy: With 4 examples a batch, dropout of a half and 32 for validation.
    """
    weights, _, (train, validation, test) = _prepared(name, seed)
    make, _, _, rate = _NETS[name]
    torch.manual_seed(1000 + seed)
    model = make(0.5 if noisy else 0.1)
    model.load_state_dict(weights)
    size = 4 if noisy else 32
    if noisy:
        x, y, w = (part[:32] for part in validation)
        validation = x, y, w
    optimizer = torch.optim.AdamW(model.parameters(), rate / 4 if noisy else rate)
    drawn = torch.Generator().manual_seed(9000 + seed)
    rounds = -(-STEPS * size // _TRAIN)
    order = torch.cat([torch.randperm(_TRAIN, generator=drawn) for _ in range(rounds)])
    return Run(model.train(), optimizer, train, validation, test, order, size)


def rates(step: int) -> float:
    """Return the learning rate at a step over its peak: a warm-up, then linearly to zero."""
    return min(1.0, (step + 1) / WARM_UP) * max(0.0, 1.0 - step / STEPS)


def loader(run: Run, batch_at: Callable[[int, Batch], Batch]) -> Iterator[tuple[int, Batch]]:
    """Yield each step's number and batch; an error while loading goes on with the next."""
    return _Loader(run, batch_at)


class _Loader:
    def __init__(self, run: Run, batch_at: Callable[[int, Batch], Batch]) -> None:
        self._run, self._batch_at, self._step = run, batch_at, -1

    def __iter__(self) -> _Loader:
        return self

    def __next__(self) -> tuple[int, Batch]:
        self._step += 1
        if self._step >= STEPS:
            raise StopIteration
        self._run.step = self._step
        return self._step, self._batch_at(self._step, self._run.batch(self._step))
