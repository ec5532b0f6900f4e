"""What the tests of trainers share: a network, data, a controller, all tiny."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from trimtab.core.control import no_action
from trimtab.core.spec import ControlSpec

FEATURES = 6


class Net(nn.Module):
    """A classifier that returns its loss, as models of Transformers do."""

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Linear(FEATURES, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 2)
        )

    def forward(
        self, inputs: torch.Tensor, labels: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        logits = self.body(inputs)
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def examples(n: int, seed: int, nan_at: int | None = None) -> list[dict[str, torch.Tensor]]:
    """Return n examples of a learnable task; the one at ``nan_at`` holds a NaN."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n, FEATURES, generator=generator)
    labels = (inputs[:, 0] + inputs[:, 1] > 0).long()
    if nan_at is not None:
        inputs[nan_at, 0] = float("nan")
    return [{"inputs": x, "labels": y} for x, y in zip(inputs, labels, strict=True)]


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def are_equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


class Still:
    """Moves nothing, under the guard."""

    name = "still"
    guarded = True

    def reset(self, *, seed: int) -> None:
        pass

    def act(self, observation: np.ndarray) -> np.ndarray:
        return no_action(ControlSpec())

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass
