"""Optuna: a trial that is steered inside."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.trainers.claims import CLAIMS, WARNINGS
from tests.trainers.probe import STEPS, Probe

optuna = pytest.importorskip("optuna")

from trimtab import TorchController  # noqa: E402
from trimtab.adapters.optuna import SteeredTrial  # noqa: E402

pytestmark = [pytest.mark.framework, *WARNINGS]


def objective(trial: Any, probe: Probe, found: list[Any]) -> float:
    torch.manual_seed(0)
    x, y = torch.randn(STEPS, 8, 6), torch.arange(STEPS * 8).reshape(STEPS, 8) % 2
    loss_fn = torch.nn.CrossEntropyLoss()
    model = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    probe.look_into(model, optimizer)
    validate = probe.loss_on(model, loss_fn, x[0], y[0])

    # lines to write
    controller = TorchController(
        optimizer, total_steps=STEPS, validate=validate, model=model, **probe.options
    )
    probe.resume(controller)  # test
    with SteeredTrial(trial, controller) as run:
        for step in probe.steps():  # loop
            loss = loss_fn(model(x[step]), y[step])  # loop
            loss.backward()  # loop
            run.step(loss)  # instead of optimizer.step() and zero_grad()
    # end of lines
    found.append(controller.summary)
    return float(run.value)


def train(probe: Probe) -> Any:
    found: list[Any] = []
    study = optuna.create_study()
    study.optimize(lambda trial: objective(trial, probe, found), n_trials=1)
    return found[0]


@pytest.mark.parametrize("claim", CLAIMS)
def test_optuna(claim: str) -> None:
    CLAIMS[claim](train)
