"""Tasks whose runs step in PyTorch: what a run is made of, and with which optimiser it starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from trimtab.core.errors import SpecError, unknown_name
from trimtab.core.static_choice import StaticChoice
from trimtab.tasks.data.batches import RunSeeds, ShuffledBatches, run_seeds
from trimtab.tasks.data.packages import require_packages
from trimtab.tasks.data.scores import classification_scores
from trimtab.tasks.data.splits import LabelledData
from trimtab.tasks.torch.run import ParameterGroups, TorchRun, TorchSetup, adamw
from trimtab.tasks.variants import SizedTask

OptimizerMaker = Callable[[ParameterGroups], torch.optim.Optimizer]
"""Makes an optimiser from parameter groups."""

_USUAL_MOMENTUM = 0.9


def _adam(groups: ParameterGroups) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, fused=True)


_PLAIN: Mapping[str, OptimizerMaker] = {"adamw": adamw, "adam": _adam}
_NAMES = (*_PLAIN, "sgd")

OFFERED_OPTIMIZERS = (
    StaticChoice("optimizer", options=_NAMES),
    StaticChoice("momentum", 0.5, 0.99, parent="optimizer", parent_options=("sgd",)),
)
"""What tasks offer: AdamW, Adam (decay in the gradient), or SGD with a momentum of its own."""


def optimizer_maker(
    optimizer: str | OptimizerMaker, momentum: float | None = None
) -> OptimizerMaker:
    """Return what makes the optimiser that was asked for.

    Args:
        optimizer: ``"adamw"``, ``"adam"``, ``"sgd"``, or what makes another one.
        momentum: Of SGD, in [0, 1); None for 0.9.

    Raises:
        UnknownNameError: There is no optimiser of that name.
        SpecError: A momentum was given for another optimiser than SGD, or is out of range.
    """
    if isinstance(optimizer, str) and optimizer not in _NAMES:
        raise unknown_name("optimizer", optimizer, _NAMES)
    if momentum is not None and optimizer != "sgd":
        raise SpecError(
            f"momentum: {momentum!r} is for optimizer='sgd', not {optimizer!r}; leave it out, or "
            "choose sgd"
        )
    if not isinstance(optimizer, str):
        return optimizer
    if optimizer in _PLAIN:
        return _PLAIN[optimizer]
    chosen = _USUAL_MOMENTUM if momentum is None else momentum
    if not 0 <= chosen < 1:
        raise SpecError(f"momentum: {chosen!r} is not in [0, 1); give a number such as 0.9")

    def sgd(groups: ParameterGroups) -> torch.optim.Optimizer:
        settings: dict[str, Any] = {"momentum": chosen, "fused": True}
        return torch.optim.SGD(groups, **settings)

    return sgd


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


def outputs_of(
    model: nn.Module,
    inputs: Callable[[torch.Tensor], Any],
    rows: torch.Tensor,
    *,
    together: int,
) -> torch.Tensor:
    """Return what a model makes of some rows, (n, ...), so many of them at a time."""
    return torch.cat([model(inputs(some)) for some in rows.split(together)])


def classification_parts(
    model: nn.Module, data: LabelledData[torch.Tensor], *, evaluated_together: int
) -> RunParts:
    """Return a run's parts: cross-entropy, with ``label_smoothing`` where it is steered.

    Args:
        model: Returns logits (n, n_classes) of rows of ``data.inputs``; the run's from now on.
        data: Stays as it is.
        evaluated_together: Examples of one forward pass in evaluation.
    """
    train = data.splits["train"]

    def loss(model: nn.Module, indices: np.ndarray, values: Mapping[str, float]) -> torch.Tensor:
        rows = torch.from_numpy(train[indices])
        return nn.functional.cross_entropy(
            model(data.inputs[rows]),
            data.labels[rows],
            label_smoothing=values.get("label_smoothing", 0.0),
        )

    def evaluate(model: nn.Module, split: str) -> dict[str, float]:
        rows = torch.from_numpy(data.splits[split])
        logits = outputs_of(model, data.inputs.__getitem__, rows, together=evaluated_together)
        return classification_scores(logits.numpy(), data.labels[rows].numpy())

    return RunParts(model, len(train), loss, evaluate)
