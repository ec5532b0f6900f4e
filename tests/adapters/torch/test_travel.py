"""How far a run has come: the statistics against a computation by hand."""

from __future__ import annotations

import math

import pytest
import torch

from tests.adapters.tiny_training import Still
from trimtab.adapters.torch import TorchController
from trimtab.adapters.torch.statistics import WindowStatistics
from trimtab.core.metrics import Metrics
from trimtab.core.spec import ControlSpec

_START = torch.tensor([3.0, -2.0, 1.0, 0.5])
_SCALE = torch.tensor([1.0, 2.0, 0.5, 3.0])


def _train(
    windows: list[int], lr: float, statistics: WindowStatistics, weight: torch.Tensor
) -> tuple[list[Metrics], list[list[tuple[torch.Tensor, torch.Tensor]]]]:
    """Return metrics of the windows, and of each step gradient and weights before it."""
    optimizer = torch.optim.SGD([weight], lr=lr)
    found, steps = [], []
    for n in windows:
        statistics.begin(n)
        steps.append([])
        for _ in range(n):
            optimizer.zero_grad()
            loss = 0.5 * (_SCALE * weight.square()).sum()
            loss.backward()
            assert weight.grad is not None
            steps[-1].append((weight.grad.clone(), weight.detach().clone()))
            assert statistics.before_step(loss, [weight])
            optimizer.step()
            statistics.after_step([weight])
        found.append(statistics.finish())
    return found, steps


@pytest.mark.parametrize("windows", [[2, 2, 5], [1, 3], [4, 4, 4]])
@pytest.mark.parametrize("lr", [0.01, 0.3])
def test_it_is_what_the_formulas_say(windows: list[int], lr: float) -> None:
    weight = _START.clone().requires_grad_()
    found, steps = _train(windows, lr, WindowStatistics(), weight)
    pull = most = path = 0.0
    summed = torch.zeros(4)
    for n, metrics, done in zip(windows, found, steps, strict=True):
        h = done[-1][0] + (done[-2][0] if n > 1 else 0.0)
        y, u = _START - done[-1][1], lr * done[-1][0]
        unit, step = h / h.norm(), u.norm()
        pull, most = pull + n * step * unit.dot(y), most + n * step * y.norm()
        path, summed = path + n * step, summed + n * step * unit
        if y.norm() == 0:
            assert math.isnan(metrics.alignment)
            continue
        assert metrics.alignment == pytest.approx(float(unit.dot(y) / y.norm()), rel=1e-4)
        assert metrics.alignment_mean == pytest.approx(float(pull / most), rel=1e-4)
        ratio = pull / summed.abs().sum() / (step / 2.0)
        assert metrics.distance_ratio == pytest.approx(float(ratio), rel=1e-4)
        assert metrics.straightness == pytest.approx(float(y.norm() / path), rel=1e-4)


def test_its_sign_tells_too_low_from_too_high() -> None:
    def mean(lr: float) -> float:
        found, _ = _train([2] * 6, lr, WindowStatistics(), _START.clone().requires_grad_())
        return float(found[-1].alignment_mean)

    assert mean(0.01) > 0.9
    assert mean(0.9) < 0  # the steepest weight is thrown farther at each step


def test_a_run_that_goes_on_tells_the_same() -> None:
    weight = _START.clone().requires_grad_()
    first = WindowStatistics()
    _train([3, 3], 0.05, first, weight)
    state, at = first.state_dict(), weight.detach().clone()
    expected, _ = _train([3], 0.05, first, weight)
    later, again = WindowStatistics(), at.clone().requires_grad_()
    later.load_state_dict(state)
    found, _ = _train([3], 0.05, later, again)
    assert found == expected


def test_a_state_of_before_tells_nothing_rather_than_something_else() -> None:
    weight = _START.clone().requires_grad_()
    first = WindowStatistics()
    _train([3], 0.05, first, weight)
    state = first.state_dict()
    del state["travel"]
    later = WindowStatistics()
    later.load_state_dict(state)
    found, _ = _train([3], 0.05, later, weight)
    assert math.isnan(found[0].alignment_mean)
    assert found[0].grad_norm > 0


def test_a_sample_says_about_what_all_weights_say() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(400, 300, generator=generator)
    target = start + torch.randn(400, 300, generator=generator)

    def run(entries: int, monkeypatch: pytest.MonkeyPatch) -> Metrics:
        from trimtab.adapters.torch import statistics as module

        given = module.Sample
        monkeypatch.setattr(module, "Sample", lambda tensors: given(tensors, entries))
        weight = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([weight], lr=1e-2)
        statistics = WindowStatistics()
        for _ in range(4):
            statistics.begin(2)
            for _ in range(2):
                optimizer.zero_grad()
                loss = 0.5 * (weight - target).square().sum()
                loss.backward()
                statistics.before_step(loss, [weight])
                optimizer.step()
                statistics.after_step([weight])
            metrics = statistics.finish()
        return metrics

    with pytest.MonkeyPatch.context() as patch:
        whole = run(1_000_000, patch)
    with pytest.MonkeyPatch.context() as patch:
        part = run(4_000, patch)
    for name in ("alignment", "alignment_mean", "distance_ratio", "straightness"):
        assert getattr(part, name) == pytest.approx(getattr(whole, name), rel=0.1), name


@pytest.mark.parametrize(("version", "known"), [(1, False), (2, True)])
def test_the_way_is_measured_where_the_policy_reads_it(version: int, known: bool) -> None:
    model, x = torch.nn.Linear(3, 1), torch.randn(8, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    policy = Still()
    policy.spec = ControlSpec(version=version)  # type: ignore[attr-defined]

    def loss() -> torch.Tensor:
        return model(x).square().mean()

    with TorchController(
        optimizer, total_steps=80, validate=lambda: loss().item(), model=model, policy=policy
    ) as controller:
        for _ in range(80):
            value = loss()
            value.backward()
            controller.step(value)
        state = controller._statistics.state_dict()
    assert (state["travel"] is not None) is known
