"""Tasks whose runs step in PyTorch: what a run is made of, and how it is started."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from trimtab.core.static_choice import StaticChoice
from trimtab.tasks.data.batches import RunSeeds, ShuffledBatches, run_seeds
from trimtab.tasks.data.packages import require_packages
from trimtab.tasks.torch.optimizers import OFFERED_OPTIMIZERS, OptimizerMaker, optimizer_maker
from trimtab.tasks.torch.run import TorchRun, TorchSetup
from trimtab.tasks.variants import SizedTask

__all__ = ["OptimizerMaker", "RunParts", "TorchTask"]


@dataclass(frozen=True)
class RunParts:
    """What one run learns from and is scored by.

    Attributes:
        model: The run's from now on.
        n_train: Training examples.
        loss: See `trimtab.tasks.torch.run.TorchSetup`; its indices are in 0..n_train-1.
        evaluate: See there.
    """

    model: nn.Module
    n_train: int
    loss: Callable[[nn.Module, np.ndarray, Mapping[str, float]], torch.Tensor]
    evaluate: Callable[[nn.Module, str], dict[str, float]]


class TorchTask(SizedTask):
    """A task in PyTorch, which names its ``_packages`` and says by ``_parts`` what a run is.

    Attributes:
        offers: Static choices that a study may vary: keywords of `start`.
    """

    offers: tuple[StaticChoice, ...] = OFFERED_OPTIMIZERS
    _packages: ClassVar[Mapping[str, str]] = {}

    def start(
        self,
        *,
        seed: int,
        optimizer: str | OptimizerMaker = "adamw",
        momentum: float | None = None,
    ) -> TorchRun:
        """Return a fresh run; the seed moves the new weights, the order of data and dropout.

        Args:
            seed: 0 or more.
            optimizer: ``"adamw"``, ``"adam"``, ``"sgd"`` (which has no ``beta1`` to be steered), or
                what makes another one from the parameter groups.
            momentum: Of SGD; None for 0.9.

        Raises:
            MissingDependencyError: The data, the weights or a library is not installed.
            UnknownNameError: There is no optimiser of that name.
            SpecError: A package's files hold something else than they should, or a momentum was
                given for another optimiser than SGD.
        """
        return self._begun(seed, optimizer, momentum, self._parts)

    def _begun(
        self,
        seed: int,
        optimizer: str | OptimizerMaker,
        momentum: float | None,
        parts_of: Callable[[RunSeeds], RunParts],
    ) -> TorchRun:
        """Return a fresh run of what ``parts_of`` gives for the run's seeds."""
        made = optimizer_maker(optimizer, momentum)
        require_packages(self.name, self._packages)
        seeds = run_seeds(seed)
        parts = parts_of(seeds)
        defaults = {item.name: item.default for item in self.hyperparameters}
        if optimizer == "sgd":
            defaults.pop("beta1", None)  # it has none, so that steering it is refused
        return TorchRun(
            TorchSetup(
                model=parts.model,
                loss=parts.loss,
                batches=ShuffledBatches(parts.n_train, self.batch_size, seed=seeds.order),
                evaluate=parts.evaluate,
                defaults=defaults,
                optimizer=made,
                seed=seeds.noise,
            )
        )

    def describe(self) -> dict[str, Any]:
        """Return what a list of tasks shows, as JSON-able data."""
        return super().describe() | {"offers": [choice.to_dict() for choice in self.offers]}

    def _parts(self, seeds: RunSeeds) -> RunParts:
        raise NotImplementedError
