"""A small network for tables of numbers, and its transfer to a new set of classes (PyTorch)."""

from __future__ import annotations

import torch
from torch import nn

from trimtab.tasks.torch.pretraining import HeadedNetwork

__all__ = ["TabularNetwork", "standardised"]


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
