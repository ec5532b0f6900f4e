"""`trimtab replay`: the batch of an event again, in the user's own training."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")

TRAINING = """
import torch

def make():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    return model, lambda batch: model(batch).square().mean()

def wrong():
    return 3
"""


@pytest.fixture
def event(tmp_path, monkeypatch):
    import trimtab

    (tmp_path / "training.py").write_text(TRAINING)
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    monkeypatch.setattr("trimtab.adapters.torch.step_guard.tell", lambda words: None)
    with trimtab.Rescue(optimizer, model=model, save_batch=tmp_path / "kept") as rescue:
        for step in range(3):
            batch = torch.full((4, 3), float("nan") if step == 1 else 1.0)
            rescue.backward(lambda b: model(b).square().mean(), batch)
            rescue.step()
    return rescue.events[0].saved


def test_the_batch_is_run_again_and_the_first_bad_output_named(trimtab, event, tmp_path):
    code, out, _ = trimtab("replay", event, f"{tmp_path / 'training.py'}:make")
    assert code == 0
    assert "step 1: input not finite" in out
    assert "again: loss nan, gradient norm nan; first not finite in the output of the model" in out
    code, out, _ = trimtab("replay", event, f"{tmp_path / 'training.py'}:make", "--json")
    assert json.loads(out)["event"]["step"] == 1


def test_a_factory_of_something_else_says_what_to_return(trimtab, event, tmp_path):
    code, _, err = trimtab("replay", event, f"{tmp_path / 'training.py'}:wrong")
    assert code == 2
    assert "returned int; return (model, loss_of)" in err
    code, _, err = trimtab("replay", event, "training")
    assert code == 2
    assert "write file.py:make or module:make" in err
