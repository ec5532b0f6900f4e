"""Optimisers by name: the one that was asked for is used, and a study may choose it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from trimtab.core.errors import SpecError, UnknownNameError
from trimtab.search.study.samplers import propose_choices
from trimtab.search.study.spaces import space_of
from trimtab.search.study.tune import tune
from trimtab.tasks.data.batches import RunSeeds
from trimtab.tasks.torch.task import RunParts, TorchTask, optimizer_maker
from trimtab.tasks.variants import Variant, recipe


class LineTask(TorchTask):
    """A line through noise."""

    name, kind, licence = "test/line", "regression", "none"
    manual = recipe("made up", lr=1e-2)
    variants: Mapping[str, Variant] = {"default": Variant(24, 8, 0.1, 1e-2)}

    def _parts(self, seeds: RunSeeds) -> RunParts:
        generator = torch.Generator().manual_seed(7)
        x = torch.randn(64, 3, generator=generator)
        y = x @ torch.tensor([[1.0], [-2.0], [0.5]]) + 0.1 * torch.randn(64, 1, generator=generator)
        with torch.random.fork_rng():
            torch.manual_seed(seeds.weights)
            model = nn.Linear(3, 1)

        def loss(model: nn.Module, rows: np.ndarray, values: Mapping[str, float]) -> torch.Tensor:
            return nn.functional.mse_loss(model(x[rows]), y[rows])

        def evaluate(model: nn.Module, split: str) -> dict[str, float]:
            return {"loss": nn.functional.mse_loss(model(x), y).item(), "examples": 64.0}

        return RunParts(model, 64, loss, evaluate)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({}, torch.optim.AdamW),
        ({"optimizer": "adamw"}, torch.optim.AdamW),
        ({"optimizer": "adam"}, torch.optim.Adam),
        ({"optimizer": "sgd", "momentum": 0.7}, torch.optim.SGD),
        ({"optimizer": torch.optim.RAdam}, torch.optim.RAdam),
    ],
)
def test_a_run_steps_with_the_optimiser_that_was_asked_for(options: Any, kind: type) -> None:
    run = LineTask().start(seed=0, **options)
    assert type(run.optimizer) is kind
    metrics = run.advance({"lr": np.full(10, 0.01)}, 10)
    assert metrics.finite == 1.0
    group = run.optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (0.01, 0.01)
    assert group.get("momentum", 0.7) == 0.7


def test_the_usual_optimiser_is_what_it_was_without_a_name() -> None:
    one, two = (LineTask().start(seed=3, **given) for given in ({}, {"optimizer": "adamw"}))
    values = {"lr": np.full(20, 0.01)}
    assert one.advance(values, 20).val_loss == two.advance(values, 20).val_loss


def test_what_an_optimiser_lacks_is_refused() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown optimizer 'sdg'; did you mean 'sgd'"):
        LineTask().start(seed=0, optimizer="sdg")
    with pytest.raises(SpecError, match=r"momentum: 0\.9 is for optimizer='sgd', not 'adam'"):
        LineTask().start(seed=0, optimizer="adam", momentum=0.9)
    with pytest.raises(SpecError, match=r"momentum: 1\.5 is not in \[0, 1\)"):
        optimizer_maker("sgd", 1.5)
    run = LineTask().start(seed=0, optimizer="sgd")
    with pytest.raises(UnknownNameError, match="unknown hyperparameter 'beta1'"):
        run.advance({"beta1": np.full(2, 0.5)}, 2)


def test_a_study_chooses_optimisers_and_a_momentum_for_sgd_only() -> None:
    space = space_of(LineTask(), {}, ("optimizer",))
    drawn = [
        propose_choices(space, [], sampler="random", seed=4, number=number) for number in range(12)
    ]
    assert {choices["optimizer"] for choices in drawn} == {"adamw", "adam", "sgd"}
    for choices in drawn:
        assert ("momentum" in choices) == (choices["optimizer"] == "sgd")
        rate = choices.pop("lr")
        run = LineTask().start(seed=0, **choices)
        assert run.advance({"lr": np.full(2, rate)}, 2).finite == 1.0


def test_restarts_of_a_study_train_with_what_was_chosen() -> None:
    settings: dict[str, Any] = {"sampler": "random", "policy": "trimtab-0", "seed": 4}
    result = tune(LineTask(), budget=6, vary=("optimizer",), decisions=6, **settings)
    restarts = [row for row in result.runs if row["kind"] == "restart"]
    assert any("optimizer" in row["choices"] for row in restarts)
    assert [row["error"] for row in restarts] == [None] * len(restarts)
    with pytest.raises(SpecError, match="vary: optimizer can be varied by the method trimtab only"):
        tune(LineTask(), method="random", budget=2, vary=("optimizer",), seed=4)


def test_a_task_lists_what_it_offers() -> None:
    offers = LineTask().describe()["offers"]
    assert offers[0] == {"name": "optimizer", "options": ["adamw", "adam", "sgd"]}
    assert offers[1]["if"] == {"optimizer": ["sgd"]}
