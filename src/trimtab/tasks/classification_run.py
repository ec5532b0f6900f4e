"""Runs of PyTorch classifiers whose inputs all lie in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from trimtab.core.hyperparameters import Hyperparameter
from trimtab.tasks.classification import classification_scores
from trimtab.tasks.randomness import RunSeeds, ShuffledBatches
from trimtab.tasks.torch_run import (
    ParameterGroups,
    TorchRun,
    TorchSetup,
    adamw,
)

__all__ = ["LabelledData", "classification_run"]


@dataclass(frozen=True)
class LabelledData:
    """Examples in memory and who may see them.

    Attributes:
        inputs: (n, ...) what the model is given, row by row.
        labels: (n,) int64, class of each.
        splits: For each split its rows, (n_split,) int64.
    """

    inputs: torch.Tensor
    labels: torch.Tensor
    splits: Mapping[str, np.ndarray]


def classification_run(
    model: nn.Module,
    data: LabelledData,
    *,
    batch_size: int,
    hyperparameters: Sequence[Hyperparameter],
    seeds: RunSeeds,
    optimizer: Callable[[ParameterGroups], torch.optim.Optimizer] = adamw,
    evaluated_together: int = 256,
) -> TorchRun:
    """Return a run that minimises cross-entropy, with ``label_smoothing`` where it is steered.

    Args:
        model: Returns logits (n, n_classes) of rows of ``data.inputs``; the run's from now on.
        data: Stays as it is.
        batch_size: Training examples a step.
        hyperparameters: What can be steered, at the values that hold where nothing steers.
        seeds: Of the order of data and of dropout.
        optimizer: Makes the optimiser from the parameter groups.
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
        parts = [model(data.inputs[some]) for some in rows.split(evaluated_together)]
        return classification_scores(torch.cat(parts).numpy(), data.labels[rows].numpy())

    return TorchRun(
        TorchSetup(
            model=model,
            loss=loss,
            batches=ShuffledBatches(len(train), batch_size, seed=seeds.order),
            evaluate=evaluate,
            defaults={item.name: item.default for item in hyperparameters},
            optimizer=optimizer,
            seed=seeds.noise,
        )
    )
