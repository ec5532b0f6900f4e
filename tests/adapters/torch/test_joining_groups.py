"""Groups that join the optimiser in mid-run are scheduled, steered, kept and clipped at once."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from tests.adapters.tiny_training import Still
from trimtab.adapters.torch import TorchController
from trimtab.adapters.torch.followed_rates import FollowedRates
from trimtab.adapters.torch.schedules import make_rates
from trimtab.core.references import reference_multipliers

JOINS = 17  # in the middle of a window


def frozen(loop: Any, **options: Any) -> Any:
    """Return a loop whose first layer is frozen and outside the optimiser."""
    one = loop()
    for weight in one.model[0].parameters():
        weight.requires_grad_(False)
    rest = [weight for weight in one.model.parameters() if weight.requires_grad]
    one.optimizer = torch.optim.AdamW(rest, lr=1e-2, weight_decay=0.1, **options)
    return one


def unfreeze(loop: Any, **group: Any) -> None:
    for weight in loop.model[0].parameters():
        weight.requires_grad_(True)
    loop.optimizer.add_param_group({"params": list(loop.model[0].parameters()), **group})


def run(loop: Any, *, at: int = JOINS, group: Any = (), **settings: Any) -> Any:
    """Steer a run that unfreezes before step ``at``; return controller and each step's groups."""
    used: list[list[tuple[float, float]]] = []
    loop.optimizer.register_step_pre_hook(
        lambda o, *_: used.append([(g["lr"], g["weight_decay"]) for g in o.param_groups])
    )
    controller = loop.run_steered(
        after=lambda step: unfreeze(loop, **dict(group)) if step == at - 1 else None, **settings
    )
    return controller, used


@pytest.mark.parametrize("policy", [None, "random"])
def test_a_group_that_joins_is_scheduled_from_its_first_step(loop: Any, policy: Any) -> None:
    group = {"lr": 1e-3}
    _, used = run(frozen(loop), group=group, policy=policy, reference="cosine", keep_best=False)
    assert [len(step) for step in used] == [1] * JOINS + [2] * (60 - JOINS)
    for first, second in used[JOINS:]:
        assert second[0] == pytest.approx(0.1 * first[0])
    table = reference_multipliers("cosine", 60)
    if policy is None:
        assert [step[1][0] for step in used[JOINS:]] == pytest.approx(1e-3 * table[JOINS:])


def test_a_group_that_joins_brings_its_lr_scale(loop: Any) -> None:
    _, used = run(frozen(loop), group={"lr_scale": 0.25}, policy="random", reference="constant")
    for first, second in used[JOINS:]:
        assert second[0] == pytest.approx(0.25 * first[0])


def test_a_group_that_joins_is_multiplied_under_a_scheduler(loop: Any) -> None:
    one = frozen(loop)
    scheduler = lr_scheduler.ExponentialLR(one.optimizer, 0.98)  # others refuse a further group
    used = run(one, group={"lr": 1e-3}, policy="random", reference=scheduler)[1]
    for step, (first, second) in enumerate(used[JOINS:], start=JOINS):
        multiplier = first[0] / (1e-2 * 0.98**step)
        assert second[0] == pytest.approx(1e-3 * 0.98 ** (step - JOINS) * multiplier)


def test_weight_decay_of_a_group_that_joins_is_steered_at_once(loop: Any) -> None:
    settings = {"hyperparameters": ("lr", "weight_decay"), "policy": "random"}
    _, used = run(frozen(loop), **settings)
    assert all(first[1] == pytest.approx(second[1]) for first, second in used[JOINS:])
    assert used[JOINS][0][1] != 0.1, "it was never moved; the test proves nothing"


@pytest.mark.parametrize("snapshots", ["memory", "cpu", "disk"])
def test_a_rollback_takes_weights_back_that_were_frozen_then(loop: Any, snapshots: str) -> None:
    one = frozen(loop)
    before = [weight.detach().clone() for weight in one.model[0].parameters()]
    one.wrecked = {JOINS + 2: float("nan")}
    seen: list[bool] = []

    def after(step: int) -> None:
        if step == JOINS - 1:
            unfreeze(one, lr=10.0)
        if step in (JOINS, JOINS + 2):
            now = one.model[0].parameters()
            seen.append(all(torch.equal(a, b) for a, b in zip(now, before, strict=True)))

    summary = one.run_steered(
        after=after, policy=Still(), snapshots=snapshots, decisions=5, keep_best=False
    ).summary
    assert seen == [False, True]
    assert summary.rollbacks == 1


def test_a_group_that_joins_is_clipped_with_the_rest(loop: Any, equal: Any) -> None:
    plain, steered = frozen(loop), frozen(loop)
    plain.begin()
    for step, loss in enumerate(plain.losses()):
        loss.backward()
        nn.utils.clip_grad_norm_(plain.model.parameters(), 0.1)
        plain.optimizer.step()
        plain.optimizer.zero_grad()
        if step == JOINS - 1:
            unfreeze(plain)
    run(steered, policy=None, reference="constant", clip=0.1, keep_best=False)
    assert equal(steered.state(), plain.state())


def test_a_run_with_a_group_that_joined_goes_on_in_another_process(loop: Any) -> None:
    settings = {
        "policy": "random",
        "hyperparameters": ("lr", "weight_decay"),
        "decisions": 6,
        "keep_best": False,
    }
    whole = frozen(loop)
    kept: dict[str, Any] = {}
    whole.begin()
    with whole.controller(**settings) as controller:
        for step, loss in enumerate(whole.losses()):
            loss.backward()
            controller.step(loss)
            if step == JOINS - 1:
                unfreeze(whole, lr=1e-3)
            if step == 30:
                kept = {
                    "steering": controller.state_dict(),
                    "model": {k: v.clone() for k, v in whole.model.state_dict().items()},
                    "optimizer": copy.deepcopy(whole.optimizer.state_dict()),
                }
    again = frozen(loop)
    unfreeze(again, lr=1e-3)
    again.model.load_state_dict(kept["model"])
    again.optimizer.load_state_dict(kept["optimizer"])
    other = again.controller(**settings)
    other.load_state_dict(kept["steering"])
    with other:
        for step, loss in enumerate(again.losses()):
            if step > 28:
                break
            loss.backward()
            other.step(loss)
    row = other.summary.schedule[31]
    assert row == controller.summary.schedule[31]
    assert again.rates()[1] == pytest.approx(0.1 * again.rates()[0])


def test_a_trainers_named_reference_schedules_a_group_that_joins() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    rates = FollowedRates(optimizer, [], reference="cosine", total_steps=8)
    rates.begin(2, 0.5)
    rates.write()
    optimizer.add_param_group({"params": [torch.zeros(1)], "lr": 0.01})
    rates.write()
    held = [group["lr"] for group in optimizer.param_groups]
    share = reference_multipliers("cosine", 8)[2]
    assert held == pytest.approx([0.05 * share, 0.005 * share])
    rates.put_back()
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.01]


def test_groups_may_join_before_the_block_is_entered(loop: Any) -> None:
    one = frozen(loop)
    controller = one.controller(reference="constant", policy=None)
    unfreeze(one, lr=1e-3)
    with controller:
        assert one.rates()[1] == pytest.approx(0.1 * one.rates()[0])
    assert isinstance(controller, TorchController)
    assert make_rates(one.optimizer, "constant", 2).starts[1] > 0
