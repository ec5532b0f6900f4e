"""Window statistics against a direct computation in NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from trimtab.adapters.torch.statistics import SAMPLED_ENTRIES, Sample, WindowStatistics
from trimtab.core.errors import SpecError
from trimtab.core.metrics import Metrics


def two_tensors(seed: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(5, 3, generator=generator).to(dtype).requires_grad_(),
        torch.randn(4, generator=generator).to(dtype).requires_grad_(),
    ]


def flat(tensors: list[torch.Tensor]) -> np.ndarray:
    return np.concatenate([item.detach().double().numpy().ravel() for item in tensors])


def run_window(
    losses: list[float], *, lr: float = 0.1, window: int | None = None
) -> tuple[Metrics, list[np.ndarray], list[np.ndarray]]:
    """Return the metrics, and each step's gradients and weights before it, as flat vectors."""
    weights = two_tensors(0)
    statistics = WindowStatistics()
    statistics.begin(window or len(losses))
    gradients, before = [], []
    for step, loss in enumerate(losses):
        for weight, gradient in zip(weights, two_tensors(step + 1), strict=True):
            weight.grad = gradient.detach()
        gradients.append(flat([weight.grad for weight in weights if weight.grad is not None]))
        before.append(flat(weights))
        if not statistics.before_step(torch.tensor(loss), weights):
            break
        with torch.no_grad():
            for weight in weights:
                weight -= lr * weight.grad
        statistics.after_step(weights)
    before.append(flat(weights))
    return statistics.finish(), gradients, before


def test_losses_are_summarised_as_numpy_does() -> None:
    losses = [3.0, 2.5, 2.75, 2.0, 1.5]
    metrics, _, _ = run_window(losses)

    assert metrics.train_loss == np.mean(losses)
    assert metrics.train_loss_first == 3.0
    assert metrics.train_loss_std == np.std(losses)
    assert metrics.train_loss_change == np.mean([2.0, 1.5]) - np.mean([3.0, 2.5])
    assert (metrics.steps, metrics.finite) == (5.0, 1.0)


def test_gradients_and_updates_of_the_last_steps_are_measured() -> None:
    metrics, gradients, weights = run_window([1.0, 1.0, 1.0])
    a, b = gradients[-2:]

    assert metrics.grad_norm == pytest.approx(np.linalg.norm(b), rel=1e-6)
    cosine = a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
    assert metrics.grad_cosine == pytest.approx(cosine, rel=1e-5)
    ratio = np.linalg.norm(weights[-1] - weights[-2]) / np.linalg.norm(weights[-2])
    assert metrics.update_ratio == pytest.approx(ratio, rel=1e-5)


def test_one_step_has_no_cosine_and_no_change() -> None:
    metrics, gradients, _ = run_window([2.0])

    assert metrics.grad_norm == pytest.approx(np.linalg.norm(gradients[0]), rel=1e-6)
    assert metrics.update_ratio > 0
    assert math.isnan(metrics.grad_cosine)
    assert math.isnan(metrics.train_loss_change)


def test_windows_do_not_leak_into_each_other() -> None:
    weights = two_tensors(0)
    statistics = WindowStatistics()
    for _ in range(2):
        statistics.begin(1)
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        assert statistics.before_step(1.0, weights)
        statistics.after_step(weights)
        metrics = statistics.finish()

    assert metrics.steps == 1.0
    assert math.isnan(metrics.grad_cosine)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_ends_the_window_at_once(bad: float) -> None:
    metrics, gradients, _ = run_window([1.0, bad, 1.0])

    assert len(gradients) == 2
    assert (metrics.finite, metrics.steps) == (0.0, 2.0)
    assert not math.isfinite(metrics.train_loss)
    assert math.isnan(metrics.grad_norm)


def test_an_unfinished_window_reports_its_losses_only() -> None:
    metrics, _, _ = run_window([2.0, 1.0], window=5)

    assert (metrics.train_loss, metrics.steps, metrics.finite) == (1.5, 2.0, 1.0)
    assert math.isnan(metrics.grad_norm)
    assert math.isnan(metrics.update_ratio)


def test_frozen_weights_without_gradient_count_as_zero() -> None:
    weight, idle = two_tensors(0)
    weight.grad = torch.full_like(weight, 2.0)
    statistics = WindowStatistics()
    statistics.begin(1)
    statistics.before_step(1.0, [weight, idle])
    statistics.after_step([weight, idle])

    assert statistics.finish().grad_norm == pytest.approx(2.0 * math.sqrt(15))


def test_half_precision_gradients_do_not_overflow() -> None:
    (weight, _) = two_tensors(0, torch.float16)
    weight.grad = torch.full_like(weight, 6e4)
    statistics = WindowStatistics()
    statistics.begin(2)
    for _ in range(2):
        statistics.before_step(1.0, [weight])
        statistics.after_step([weight])
    metrics = statistics.finish()

    assert metrics.grad_norm == pytest.approx(6e4 * math.sqrt(15), rel=1e-3)
    assert metrics.grad_cosine == pytest.approx(1.0)


def test_copies_are_gone_after_the_window() -> None:
    statistics = WindowStatistics()
    weights = two_tensors(0)
    statistics.begin(3)
    for _ in range(3):
        statistics.before_step(1.0, weights)
        statistics.after_step(weights)
        held = [statistics._gradients, statistics._weights]
        assert sum(item is not None for item in held) <= 1
    statistics.finish()

    assert statistics._gradients is None
    assert statistics._weights is None


def test_a_window_is_the_same_if_a_loop_notes_the_losses_of_its_ordinary_steps() -> None:
    def window(noted: bool) -> tuple[list[bool], Metrics]:
        statistics, ordinary = WindowStatistics(), []
        statistics.begin(5)
        for step in range(5):
            weights = two_tensors(step)
            ordinary.append(len(statistics.losses) < statistics.ordinary_until)
            if noted and ordinary[-1]:
                statistics.losses.append(float(step))
            else:
                statistics.before_step(torch.tensor(float(step)), weights)
                statistics.after_step(weights)
        return ordinary, statistics.finish()

    ordinary, metrics = window(noted=True)

    assert ordinary == [False, True, True, False, False]
    assert metrics.steps == 5
    assert metrics == window(noted=False)[1]


def test_a_window_without_steps_is_refused() -> None:
    with pytest.raises(SpecError, match="window_steps: 0 is below 1"):
        WindowStatistics().begin(0)


def many_weights(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(300, 400), (400,), (1, 5, 20000), (64, 32, 3, 3)]
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def test_of_a_large_model_a_fixed_sample_is_looked_at() -> None:
    weights = many_weights(0)
    sample, again = Sample(weights), Sample(many_weights(1))
    room, other = sample.room(), again.room()

    assert not sample.is_whole
    assert SAMPLED_ENTRIES <= sample.entries < 2 * SAMPLED_ENTRIES
    assert torch.equal(room.take(weights), other.take(weights))
    assert float(sample.weighted(torch.ones(sample.entries)).sum()) == pytest.approx(
        sum(weight.numel() for weight in weights)
    )


def test_a_sample_estimates_what_all_entries_give() -> None:
    weights = many_weights(0)
    statistics = WindowStatistics()
    statistics.begin(2)
    noise, gradients = torch.Generator().manual_seed(7), many_weights(1)
    for _ in range(2):
        before = flat(weights)
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient.detach() + torch.randn(weight.shape, generator=noise)
        seen = flat([weight.grad for weight in weights if weight.grad is not None])
        statistics.before_step(1.0, weights)
        with torch.no_grad():
            for weight in weights:
                weight -= 0.1 * weight.grad
        statistics.after_step(weights)
    metrics = statistics.finish()

    # 32,768 independent normal entries: a relative error of 0.4 % is one standard deviation.
    assert metrics.grad_norm == pytest.approx(np.linalg.norm(seen), rel=0.015)
    assert metrics.grad_cosine == pytest.approx(0.5, abs=0.015)
    ratio = np.linalg.norm(flat(weights) - before) / np.linalg.norm(before)
    assert metrics.update_ratio == pytest.approx(ratio, rel=0.02)


@pytest.mark.parametrize("update", ["in place", "new memory", "both"])
def test_an_update_is_measured_wherever_the_optimiser_puts_the_weights(update: str) -> None:
    weights = many_weights(0)
    statistics = WindowStatistics()
    statistics.begin(1)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    before = flat(weights)
    statistics.before_step(1.0, weights)
    with torch.no_grad():
        for index, weight in enumerate(weights):
            if update == "in place" or (update == "both" and index % 2):
                weight *= 1.25
            else:
                weight.data = weight.data * 1.25
    statistics.after_step(weights)

    assert statistics.finish().update_ratio == pytest.approx(0.25, rel=1e-5)
    assert flat(weights) == pytest.approx(1.25 * before)


def test_an_update_of_weights_without_memory_of_their_own_is_measured() -> None:
    weight = torch.eye(3).to_sparse()  # its dense form is a copy
    weight.grad = torch.ones(3, 3).to_sparse()
    statistics = WindowStatistics()
    statistics.begin(1)
    statistics.before_step(1.0, [weight])
    weight *= 1.25
    statistics.after_step([weight])

    assert statistics.finish().update_ratio == pytest.approx(0.25, rel=1e-5)


def test_a_window_goes_on_from_its_state_on_a_large_model() -> None:
    cosines = []
    for interrupted in (False, True):
        weights, statistics = many_weights(0), WindowStatistics()
        statistics.begin(2)
        for step in range(2):
            for weight, gradient in zip(weights, many_weights(step + 1), strict=True):
                weight.grad = gradient.detach()
            if interrupted and step == 1:
                state = statistics.state_dict()
                statistics = WindowStatistics()
                statistics.load_state_dict(state)
            statistics.before_step(1.0, weights)
            statistics.after_step(weights)
        cosines.append(statistics.finish().grad_cosine)

    assert cosines[0] == cosines[1]
    assert cosines[0] == pytest.approx(0.0, abs=0.02)


def test_complex_and_frozen_entries_are_counted() -> None:
    weight = torch.tensor([3.0 + 4.0j], requires_grad=True)
    weight.grad = torch.tensor([0.0 + 2.0j])
    statistics = WindowStatistics()
    statistics.begin(1)
    statistics.before_step(1.0, [weight])
    statistics.after_step([weight])

    assert statistics.finish().grad_norm == 2.0
