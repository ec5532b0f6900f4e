"""Tasks whose runs step in PyTorch: what a run is made of, and how it is started."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from trimtab.tasks.packages import require_packages
from trimtab.tasks.randomness import RunSeeds, ShuffledBatches, run_seeds
from trimtab.tasks.torch_run import ParameterGroups, TorchRun, TorchSetup, adamw
from trimtab.tasks.variants import SizedTask

__all__ = ["OptimizerMaker", "RunParts", "TorchTask"]

OptimizerMaker = Callable[[ParameterGroups], torch.optim.Optimizer]
"""Makes an optimiser from parameter groups."""


@dataclass(frozen=True)
class RunParts:
    """What one run learns from and is scored by.

    Attributes:
        model: The run's from now on.
        n_train: Training examples.
        loss: See `trimtab.tasks.torch_run.TorchSetup`; its indices are in 0..n_train-1.
        evaluate: See there.
    """

    model: nn.Module
    n_train: int
    loss: Callable[[nn.Module, np.ndarray, Mapping[str, float]], torch.Tensor]
    evaluate: Callable[[nn.Module, str], dict[str, float]]


class TorchTask(SizedTask):
    """A task in PyTorch, which names its ``_packages`` and says by ``_parts`` what a run is."""

    _packages: ClassVar[Mapping[str, str]] = {}

    def start(self, *, seed: int, optimizer: OptimizerMaker = adamw) -> TorchRun:
        """Return a fresh run; the seed moves the new weights, the order of data and dropout.

        Args:
            seed: 0 or more.
            optimizer: Makes another optimiser than AdamW from the parameter groups.

        Raises:
            MissingDependencyError: The data, the weights or a library is not installed.
            SpecError: A package's files hold something else than they should.
        """
        require_packages(self.name, self._packages)
        seeds = run_seeds(seed)
        parts = self._parts(seeds)
        return TorchRun(
            TorchSetup(
                model=parts.model,
                loss=parts.loss,
                batches=ShuffledBatches(parts.n_train, self.batch_size, seed=seeds.order),
                evaluate=parts.evaluate,
                defaults={item.name: item.default for item in self.hyperparameters},
                optimizer=optimizer,
                seed=seeds.noise,
            )
        )

    def _parts(self, seeds: RunSeeds) -> RunParts:
        raise NotImplementedError
