"""A text encoder with a classifier on it, from the first layer on or from a later one (PyTorch).

The encoder is one of Transformers' layout of BERT.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import nn

PADDING = 0
"""Index of [PAD]."""

_TOGETHER = 32


class TextNetwork(nn.Module):
    """A sentence encoder, the mean over its tokens, dropout and a new linear head."""

    def __init__(self, encoder: nn.Module, n_hidden: int, n_classes: int, *, seed: int) -> None:
        """Put a head on an encoder.

        Args:
            encoder: Returns ``last_hidden_state`` (n, length, n_hidden) like Transformers' models.
            n_hidden: Width of the encoder.
            n_classes: Outputs.
            seed: Draws the head near zero.
        """
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(n_hidden, n_classes)
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(self.head.weight, std=0.02, generator=generator)
        nn.init.zeros_(self.head.bias)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return logits (n, n_classes).

        Padding that all texts of a batch share is cut off, which changes no logit.

        Args:
            inputs: Token indices (n, length) int64, `PADDING` behind each text; or what
                `first_layers` made of them, (n, length, n_hidden) float32.
        """
        are_tokens = inputs.ndim == 2
        mask = inputs != PADDING if are_tokens else (inputs != 0.0).any(-1)
        longest = int(mask.sum(1).max())
        inputs, mask = inputs[:, :longest], mask[:, :longest]
        given = {"input_ids" if are_tokens else "inputs_embeds": inputs}
        hidden = self.encoder(**given, attention_mask=mask.long()).last_hidden_state
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * weights).sum(1) / weights.sum(1)
        logits: torch.Tensor = self.head(self.dropout(pooled))
        return logits


@torch.no_grad()
def first_layers(encoder: Any, tokens: np.ndarray, n_layers: int) -> np.ndarray:
    """Return what the embedding and the first layers make of texts, and 0 at padding.

    Args:
        encoder: The whole encoder, in evaluation mode; stays as it is.
        tokens: (n, length) int64, `PADDING` behind each text.
        n_layers: How many layers.

    Returns:
        (n, length, n_hidden) float16.
    """
    lower = copy.deepcopy(encoder)
    lower.encoder.layer = lower.encoder.layer[:n_layers]
    parts = []
    for some in torch.from_numpy(tokens).split(_TOGETHER):
        mask = some != PADDING
        hidden = lower(input_ids=some, attention_mask=mask.long()).last_hidden_state
        parts.append((hidden * mask.unsqueeze(-1)).half().numpy())
    return np.concatenate(parts)


def last_layers(encoder: Any, n_layers: int) -> Any:
    """Return a copy of an encoder that goes on from what `first_layers` returns.

    Args:
        encoder: The whole encoder; stays as it is.
        n_layers: How many layers come before.
    """
    upper = copy.deepcopy(encoder)
    upper.embeddings = _Passed()
    upper.encoder.layer = upper.encoder.layer[n_layers:]
    return upper


class _Passed(nn.Module):
    """Stands where an embedding was."""

    def forward(self, inputs_embeds: torch.Tensor, **_: Any) -> torch.Tensor:
        return inputs_embeds
