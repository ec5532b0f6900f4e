"""PyTorch classifiers whose inputs all lie in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from trimtab.tasks.data.scores import classification_scores
from trimtab.tasks.torch.task import RunParts

__all__ = ["LabelledData", "classification_parts"]


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


def classification_parts(
    model: nn.Module, data: LabelledData, *, evaluated_together: int
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
        parts = [model(data.inputs[some]) for some in rows.split(evaluated_together)]
        return classification_scores(torch.cat(parts).numpy(), data.labels[rows].numpy())

    return RunParts(model, len(train), loss, evaluate)
