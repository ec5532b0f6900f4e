"""Compiled models and compiled optimiser steps: more than the learning rate reaches them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from trimtab.adapters.torch import TorchController
from trimtab.core.errors import AdapterError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile itself


@pytest.fixture(autouse=True)
def _compile_anew() -> Any:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def test_dropout_in_a_compiled_model_is_proven_and_steered(loop: Any) -> None:
    it = loop()
    inner, seen = it.model, []
    it.model = torch.compile(inner, backend="eager")
    it.optimizer.register_step_pre_hook(lambda *_: seen.append(inner[3].p))
    run = it.run_steered(policy="random", hyperparameters=("lr", "dropout"), seed=2, decisions=4)
    assert seen == [row["dropout"] for row in run.summary.schedule]
    assert len(set(seen)) > 1


def test_a_float_that_a_compiled_model_hides_is_refused(loop: Any) -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention_dropout = 0.2

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.dropout(x, self.attention_dropout, self.training)

    it = loop()
    it.model[3] = Attention()
    it.model = torch.compile(it.model, backend="eager")
    with pytest.raises(AdapterError, match="dropout: nothing that holds it was called"):
        it.run_steered(policy="random", hyperparameters=("dropout",), decisions=4)


@pytest.mark.parametrize("kind", ["weight_decay", "layer_decay"])
def test_a_compiled_optimiser_step_uses_what_is_written(loop: Any, kind: str) -> None:
    ends = []
    for is_compiled in (False, True):
        it = loop()
        if is_compiled:
            it.optimizer.step = torch.compile(it.optimizer.step, backend="eager")
        it.begin()
        with TorchController(
            it.optimizer,
            total_steps=12,
            validate=it.validate,
            model=it.model,
            hyperparameters=("lr", kind),
            policy="random",
            seed=2,
            decisions=4,
            keep_best=False,
        ) as run:
            for loss in it.losses(12):
                loss.backward()
                run.step(loss)
        assert len({row[kind] for row in run.summary.schedule}) > 1
        named = dict(it.model.named_parameters())
        del named["0.bias"]  # before BatchNorm its gradient is rounding alone, which Adam magnifies
        ends.append([weight.detach().clone() for weight in named.values()])
    far = max(float((a - b).abs().max()) for a, b in zip(*ends, strict=True))
    assert far < 1e-4, far  # the compiled step rounds otherwise
