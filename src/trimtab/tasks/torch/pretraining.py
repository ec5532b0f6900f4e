"""Classifiers that a task pretrains itself, once, on data that its splits do not hold (PyTorch)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import torch
from torch import nn

from trimtab.tasks.data.batches import RunSeeds, ShuffledBatches
from trimtab.tasks.data.cache import cached_arrays
from trimtab.tasks.data.packages import package_versions
from trimtab.tasks.data.splits import LabelledData
from trimtab.tasks.torch.run import adamw, decay_groups
from trimtab.tasks.torch.task import RunParts, TorchTask, classification_parts
from trimtab.tasks.variants import Pretraining

_Network = TypeVar("_Network", bound=nn.Module)


class HeadedNetwork(nn.Module):
    """A network whose last layer, ``head``, is drawn anew for other classes."""

    head: nn.Linear

    def take_body(self, weights: Mapping[str, torch.Tensor], *, seed: int) -> Self:
        """Take all but the head from a state dictionary, and draw a new head near zero.

        Args:
            weights: Of a network that differs in nothing but its classes.
            seed: Draws the head.
        """
        kept = {name: value for name, value in weights.items() if not name.startswith("head.")}
        self.load_state_dict(kept, strict=False)
        draw_head(self.head, seed)
        return self


def draw_head(head: nn.Linear | nn.Conv2d, seed: int, *, deviation: float = 0.01) -> None:
    """Draw the weights of a new head near zero, its bias 0: predictions start nearly even."""
    generator = torch.Generator().manual_seed(seed)
    nn.init.normal_(head.weight, std=deviation, generator=generator)
    assert head.bias is not None, "a head has one"
    nn.init.zeros_(head.bias)


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


class PretrainedClassification(TorchTask):
    """A classifier whose network is pretrained here once; a run gives it a new head.

    A task names its ``_packages``, ``_pretraining`` and numbers of classes, and says by
    ``_network``, ``_data`` and ``_lessons`` what is trained on what; ``_depends_on`` holds all
    that moves the pretrained weights besides ``_pretraining`` and the packages' versions.
    """

    _pretraining: ClassVar[Pretraining]
    _n_classes: ClassVar[int]
    _n_pretraining_classes: ClassVar[int]
    _evaluated_together: ClassVar[int] = 256

    def _network(self, n_classes: int) -> HeadedNetwork:
        raise NotImplementedError

    @property
    def _data(self) -> LabelledData[torch.Tensor]:
        raise NotImplementedError

    def _lessons(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the inputs and labels of the pretraining."""
        raise NotImplementedError

    def _depends_on(self) -> dict[str, object]:
        raise NotImplementedError

    def _parts(self, seeds: RunSeeds) -> RunParts:
        model = self._network(self._n_classes).take_body(self._pretrained, seed=seeds.weights)
        return classification_parts(model, self._data, evaluated_together=self._evaluated_together)

    @cached_property
    def _pretrained(self) -> dict[str, torch.Tensor]:
        inputs: dict[str, Any] = {"format": 1, "pretraining": self._pretraining}
        inputs |= self._depends_on() | package_versions(self._packages)
        return pretrained_weights(self.name.rpartition("/")[2], inputs, self._taught)

    def _taught(self) -> HeadedNetwork:
        """Pretrain a network."""
        inputs, labels = self._lessons()
        model = seeded(lambda: self._network(self._n_pretraining_classes), self._pretraining.seed)
        train_classifier(model, inputs, labels, self._pretraining)
        return model


class TabularNetwork(HeadedNetwork):
    """Two hidden layers with dropout, and a linear head.

    The plain network that Gorishniy et al. (NeurIPS 2021, "Revisiting deep learning models for
    tabular data", equation 1) take as their baseline: Linear, ReLU, Dropout, twice.
    """

    def __init__(self, n_features: int, n_hidden: int, n_classes: int) -> None:
        """Draw the weights from torch's global generator, by PyTorch's usual law."""
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(n_features, n_hidden),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Linear(n_hidden, n_hidden),
            nn.ReLU(),
            nn.Dropout(0.1),
        )
        self.head = nn.Linear(n_hidden, n_classes)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return logits (n, n_classes) of standardised features (n, n_features) float32."""
        logits: torch.Tensor = self.head(self.body(features))
        return logits


def standardised(table: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return (n, d) columns less their mean, over their standard deviation, within +-10.

    The bound keeps a category that hardly occurs in ``like`` from outweighing everything else.

    Args:
        table: (n, d) float32.
        like: (m, d) float32, where mean and deviation are measured; a column that is constant
            there is only centred.
    """
    deviation = like.std(0, correction=0)
    scaled = (table - like.mean(0)) / torch.where(deviation > 0, deviation, 1.0)
    return scaled.clamp(-10.0, 10.0)
