"""Networks that a task pretrains itself, once, on data that its splits do not hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from trimtab.tasks.cache import cached_arrays
from trimtab.tasks.torch_run import ShuffledBatches, adamw, decay_groups

__all__ = ["Pretraining", "pretrained_weights", "seeded", "train_classifier"]

_Network = TypeVar("_Network", bound=nn.Module)


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


def seeded(make: Callable[[], _Network], seed: int) -> _Network:
    """Return ``make()`` with weights drawn by ``seed``; torch's own random state stays."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def train_classifier(
    model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, settings: Pretraining
) -> None:
    """Train a classifier in place; the same seed gives the same weights on the same machine.

    Args:
        model: Returns logits (n, n_classes) of rows of ``inputs``; afterwards in evaluation mode.
        inputs: (n, ...) float32.
        labels: (n,) int64.
        settings: How long and how fast.
    """
    optimizer = adamw(decay_groups(model))
    batches = ShuffledBatches(len(labels), settings.batch_size, seed=settings.seed)
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        for step in range(settings.steps):
            for group in optimizer.param_groups:
                progress = step / settings.steps
                group["lr"] = settings.lr * 0.5 * (1.0 + math.cos(math.pi * progress))
            rows = torch.from_numpy(next(batches))
            optimizer.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(model(inputs[rows]), labels[rows]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    model.eval()


def pretrained_weights(
    name: str, inputs: Mapping[str, object], train: Callable[[], nn.Module]
) -> dict[str, torch.Tensor]:
    """Return the state of the network that ``train()`` gives, from the cache if it is there.

    Args:
        name: Start of the cache file's name.
        inputs: Everything that the weights depend on; PyTorch's version is added.
        train: Makes and trains the network.
    """

    def build() -> dict[str, np.ndarray]:
        return {key: value.numpy() for key, value in train().state_dict().items()}

    arrays = cached_arrays(name, {**inputs, "torch": torch.__version__}, build)
    return {key: torch.from_numpy(np.array(value)) for key, value in arrays.items()}
