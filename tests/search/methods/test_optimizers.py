"""An optimiser whose average is shown, kept and put back."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")
dog = pytest.importorskip("dog")

from trimtab.search.methods.optimizers import averaged  # noqa: E402 - after what it needs


def steps(weight, optimizer, n):
    for _ in range(n):
        optimizer.zero_grad()
        (weight**2).sum().backward()
        optimizer.step()


def make():
    weight = torch.nn.Parameter(torch.tensor([3.0, -2.0]))
    groups = [{"params": [weight]}]
    return weight, averaged(dog.DoG(groups, init_eta=0.1), dog.PolynomialDecayAverager)


def test_evaluation_shows_the_average_and_training_goes_on_from_the_weights():
    weight, optimizer = make()
    untouched = torch.nn.Parameter(weight.detach().clone())
    plain = dog.DoG([{"params": [untouched]}], init_eta=0.1)
    steps(weight, optimizer, 5)
    steps(untouched, plain, 5)
    optimizer.eval()
    shown = weight.detach().clone()
    optimizer.train()
    assert not torch.equal(shown, weight)
    assert torch.equal(weight, untouched)
    steps(weight, optimizer, 3)
    steps(untouched, plain, 3)
    assert torch.equal(weight, untouched)


def test_before_the_first_step_the_average_is_the_weights():
    weight, optimizer = make()
    optimizer.eval()
    optimizer.train()
    assert weight.tolist() == [3.0, -2.0]


def test_what_was_kept_shows_the_same_average_again():
    weight, optimizer = make()
    steps(weight, optimizer, 4)
    kept, state = weight.detach().clone(), copy.deepcopy(optimizer.state_dict())
    optimizer.eval()
    shown = weight.detach().clone()
    optimizer.train()
    steps(weight, optimizer, 4)
    with torch.no_grad():
        weight.copy_(kept)
    optimizer.load_state_dict(state)
    optimizer.eval()
    assert torch.equal(weight, shown)
