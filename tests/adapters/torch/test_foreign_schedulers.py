"""Schedulers and parameter groups of other libraries are followed as their own loops do."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from trimtab.adapters.torch.schedules import FollowedRates, make_rates

OFF: dict[str, Any] = {"policy": None, "keep_best": False}


class EpochCosine:
    """What timm's schedulers offer: told the count, they multiply by ``lr_scale`` themselves."""

    def __init__(self, optimizer: torch.optim.Optimizer, length: int, *, epochs: bool) -> None:
        self.optimizer, self.length, self.t_in_epochs = optimizer, length, epochs
        self.base_values = [group["lr"] for group in optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "optimizer"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)

    def step(self, epoch: int, metric: float | None = None) -> None:
        if self.t_in_epochs:
            self._put(epoch)

    def step_update(self, num_updates: int, metric: float | None = None) -> None:
        if not self.t_in_epochs:
            self._put(num_updates)

    def _put(self, count: int) -> None:
        share = 0.5 * (1 + math.cos(math.pi * min(count, self.length) / self.length))
        for group, base in zip(self.optimizer.param_groups, self.base_values, strict=True):
            group["lr"] = base * share * group.get("lr_scale", 1.0)


def groups_of(model: torch.nn.Module, *scales: float) -> list[dict[str, Any]]:
    weights = list(model.parameters())
    cut = len(weights) // 2
    parts = [weights[:cut], weights[cut:]]
    return [{"params": p, "lr_scale": s} for p, s in zip(parts, scales, strict=True)]


def two_groups(*rows: dict[str, Any]) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [torch.zeros(1)], **row} for row in rows], lr=0.1)


def layered(loop: Any) -> Any:
    """Return a loop whose first half learns at a quarter of the rate, by ``lr_scale``."""
    one = loop()
    one.optimizer = torch.optim.AdamW(groups_of(one.model, 0.25, 1.0), lr=1e-2)
    return one


@pytest.mark.parametrize(
    ("rows", "peaks"),
    [
        ([{"lr_scale": 0.25}, {"lr_scale": 1.0}], [0.025, 0.1]),
        ([{"lr_scale": 0.25}, {}], [0.025, 0.1]),
        ([{"lr_scale": 0.5}, {"lr_scale": 0.5}], [0.05, 0.05]),
        ([{"lr_scale": 0.25, "lr": 0.4}, {"lr_scale": 1.0}], [0.1, 0.1]),
        # In proportion: a scheduler multiplied by it before.
        ([{"lr_scale": 0.25, "lr": 0.025}, {"lr_scale": 1.0}], [0.025, 0.1]),
        ([{}, {"lr": 0.3}], [0.1, 0.3]),
    ],
)
def test_a_groups_peak_counts_its_lr_scale(rows: Any, peaks: list[float]) -> None:
    optimizer = two_groups(*rows)
    followed = FollowedRates(optimizer, [], reference="cosine", total_steps=4)
    assert make_rates(optimizer, "cosine", 4).starts == pytest.approx(peaks)
    assert followed.starts == pytest.approx(peaks)


def test_a_trainers_own_constant_rate_does_not_count_lr_scale() -> None:
    optimizer = two_groups({"lr_scale": 0.25}, {"lr_scale": 1.0})
    FollowedRates(optimizer, [], reference=None, total_steps=4).write()
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.1]


def test_a_run_steps_each_group_at_its_lr_scale(loop: Any) -> None:
    steered = layered(loop)
    used: list[tuple[float, float]] = []
    steered.optimizer.register_step_pre_hook(
        lambda o, *_: used.append(tuple(group["lr"] for group in o.param_groups))
    )
    steered.run_steered(policy="random", reference="cosine")
    assert len(used) == 60
    assert all(low == pytest.approx(0.25 * high) for low, high in used)


@pytest.mark.parametrize("name", ["count", pytest.param("timm", marks=pytest.mark.framework)])
def test_a_scheduler_that_is_told_updates_gives_the_plain_loops_weights(
    loop: Any, equal: Any, name: str
) -> None:
    def make(optimizer: torch.optim.Optimizer) -> Any:
        if name == "count":
            return EpochCosine(optimizer, 60, epochs=False)
        timm = pytest.importorskip("timm.scheduler", exc_type=ImportError)
        return timm.CosineLRScheduler(optimizer, 60, warmup_t=5, t_in_epochs=False)

    plain = layered(loop)
    scheduler = make(plain.optimizer)
    plain.begin()
    for count, loss in enumerate(plain.losses(), start=1):
        loss.backward()
        plain.optimizer.step()
        plain.optimizer.zero_grad()
        scheduler.step_update(count)
    steered = layered(loop)
    steered.run_steered(reference=make(steered.optimizer), **OFF)

    assert equal(steered.state(), plain.state())
    assert steered.rates() == plain.rates()


def test_a_run_goes_on_where_a_scheduler_that_is_told_updates_stood() -> None:
    first = two_groups({"lr_scale": 0.25}, {})
    rates = make_rates(first, EpochCosine(first, 8, epochs=False), 8)
    rates.begin(0, 0.5)
    for _ in range(3):
        rates.advance()
    second = two_groups({"lr_scale": 0.25}, {})
    again = make_rates(second, EpochCosine(second, 8, epochs=False), 8)
    again.load_state_dict(rates.state_dict())
    again.begin(3, 0.5)
    for _ in range(2):
        assert [g["lr"] for g in second.param_groups] == [g["lr"] for g in first.param_groups]
        rates.advance()
        again.advance()
