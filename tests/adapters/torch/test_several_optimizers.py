"""Several optimisers in one loop are one run: one multiplier, one validation, one snapshot."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from tests.adapters.tiny_training import Still
from trimtab.adapters.torch import TorchController
from trimtab.core.errors import AdapterError

OFF: dict[str, Any] = {"policy": None, "keep_best": False}


class Two:
    """A loop's model under two optimisers: matrices, and the rest."""

    def __init__(self, loop: Any, first: str = "muon", **settings: Any) -> None:
        self.loop = loop(**settings)
        weights = list(self.loop.model.parameters())
        matrices = [weight for weight in weights if weight.ndim == 2]
        rest = [weight for weight in weights if weight.ndim != 2]
        if first == "muon":
            self.first = torch.optim.Muon(matrices, lr=1e-2, weight_decay=0.1)
        else:
            self.first = torch.optim.SGD(matrices, lr=1e-2, momentum=0.9)
        self.second = torch.optim.AdamW(rest, lr=1e-3, weight_decay=0.0)

    def controller(self, **settings: Any) -> TorchController:
        loop = self.loop
        usual = {"validate": loop.validate, "total_steps": loop.steps, "decisions": 10}
        return TorchController(
            [self.first, self.second], model=loop.model, **(usual | OFF | settings)
        )

    def run(self, *, after: Any = None, train_for: int | None = None, **settings: Any) -> Any:
        self.loop.begin()
        with self.controller(**settings) as controller:
            for step, loss in enumerate(self.loop.losses(train_for)):
                scaler = settings.get("scaler")
                (loss if scaler is None else scaler.scale(loss)).backward()
                controller.step(loss)
                if after is not None:
                    after(step)
        return controller

    def run_plainly(self, schedulers: Any = (), *, clip: float | None = None) -> None:
        self.loop.begin()
        for loss in self.loop.losses():
            loss.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(self.loop.model.parameters(), clip)
            for optimizer in (self.first, self.second):
                optimizer.step()
                optimizer.zero_grad()
            for scheduler in schedulers:
                scheduler.step()

    def state(self) -> list[torch.Tensor]:
        kept = [tensor.clone() for tensor in self.loop.model.state_dict().values()]
        for optimizer in (self.first, self.second):
            for state in optimizer.state.values():
                kept += [v.clone() for v in state.values() if isinstance(v, torch.Tensor)]
        return kept


def two(loop: Any, **settings: Any) -> Two:
    return Two(loop, **settings)


@pytest.mark.parametrize("clip", [None, 0.1])
def test_with_the_policy_off_it_is_the_plain_loop(loop: Any, equal: Any, clip: Any) -> None:
    plain, steered = two(loop), two(loop)
    plain.run_plainly(clip=clip)
    controller = steered.run(reference="constant", clip=clip)
    assert equal(steered.state(), plain.state())
    assert controller.summary.finished
    assert steered.loop.validations == 11


def test_a_list_of_one_is_the_optimiser_alone(loop: Any, equal: Any) -> None:
    settings = {"policy": "random", "hyperparameters": ("lr", "weight_decay")}
    alone, listed = loop(), loop()
    alone.run_steered(**settings)
    listed.begin()
    with TorchController(
        [listed.optimizer],
        total_steps=60,
        validate=listed.validate,
        model=listed.model,
        **settings,
    ) as controller:
        for loss in listed.losses():
            loss.backward()
            controller.step(loss)
    assert controller.optimizer is listed.optimizer
    assert equal(listed.state(), alone.state())


def test_one_multiplier_moves_each_from_its_own_peak(loop: Any) -> None:
    one = two(loop)
    seen: list[tuple[float, float]] = []
    one.second.register_step_pre_hook(
        lambda *_: seen.append((one.first.param_groups[0]["lr"], one.second.param_groups[0]["lr"]))
    )
    one.run(policy="random", reference="cosine")
    assert all(first == pytest.approx(10 * second) for first, second in seen)
    assert len(seen) == 60


def test_a_kind_acts_where_it_exists(loop: Any) -> None:
    one = two(loop)
    kinds = ("lr", "weight_decay", "momentum", "beta1")
    one.run(policy="random", hyperparameters=kinds)
    first, second = one.first.param_groups[0], one.second.param_groups[0]
    assert first["weight_decay"] != 0.1
    assert first["momentum"] != 0.95
    assert second["weight_decay"] == 0.0
    assert second["betas"][0] != 0.9
    assert second["betas"][1] == 0.999


class DeafToDecay(torch.optim.SGD):
    """Has a weight decay in its groups, and makes no use of it."""

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.data.add_(weight.grad, alpha=-float(group["lr"]))


def test_each_optimiser_is_proven_to_use_a_value(loop: Any) -> None:
    one = two(loop)
    rest = one.second.param_groups[0]["params"]
    one.second = DeafToDecay(rest, lr=1e-2, weight_decay=0.1)
    with pytest.raises(AdapterError, match="weight_decay: DeafToDecay makes the same update"):
        one.controller(hyperparameters=("lr", "weight_decay"))
    one.second = DeafToDecay(rest, lr=1e-2)
    one.controller(hyperparameters=("lr", "weight_decay"))


@pytest.mark.parametrize("snapshots", ["memory", "cpu", "disk"])
def test_a_rollback_takes_all_of_them_back(loop: Any, equal: Any, snapshots: str) -> None:
    one = two(loop, first="sgd")
    one.loop.wrecked = {20: float("nan")}
    states: dict[int, list[torch.Tensor]] = {}

    def after(step: int) -> None:
        states[step] = one.state()

    controller = one.run(policy=Still(), snapshots=snapshots, after=after, decisions=6)
    assert controller.summary.rollbacks == 1
    kept = [step for step in range(20) if equal(states[step], states[20])]
    assert kept, "the state after the rollback was never there before"


def test_layers_are_divided_in_all_of_them(loop: Any) -> None:
    one = two(loop)
    one.run(policy="random", hyperparameters=("lr", "layer_decay", "frozen_depth"))
    assert [len(o.param_groups) for o in (one.first, one.second)] == [1, 1]


def test_the_run_goes_on_in_another_process(loop: Any, equal: Any) -> None:
    settings = {"policy": "random", "hyperparameters": ("lr", "weight_decay"), "keep_best": True}
    whole = two(loop, first="sgd")
    kept: dict[str, Any] = {}

    def after(step: int) -> None:
        if step == 33:
            kept.update(
                steering=controller.state_dict(),
                model=copy.deepcopy(whole.loop.model.state_dict()),
                first=copy.deepcopy(whole.first.state_dict()),
                second=copy.deepcopy(whole.second.state_dict()),
                random=torch.get_rng_state(),
            )

    settings["hyperparameters"] = ("lr", "momentum")
    whole.loop.begin()
    with whole.controller(**settings) as controller:
        for step, loss in enumerate(whole.loop.losses()):
            loss.backward()
            controller.step(loss)
            after(step)
    again = two(loop, first="sgd")
    again.loop.model.load_state_dict(kept["model"])
    again.first.load_state_dict(kept["first"])
    again.second.load_state_dict(kept["second"])
    other = again.controller(**settings)
    other.load_state_dict(kept["steering"])
    again.loop.model.train()
    with other:
        torch.set_rng_state(kept["random"])
        for loss in again.loop.losses(26):
            loss.backward()
            other.step(loss)
    assert equal(again.state(), whole.state())
    assert other.summary.schedule == controller.summary.schedule


def test_a_scaler_steps_each(loop: Any, equal: Any) -> None:
    plain, steered = two(loop, first="sgd"), two(loop, first="sgd")
    plain.run_plainly()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1000)
    steered.run(reference="constant", scaler=scaler)
    for mine, theirs in zip(steered.state(), plain.state(), strict=True):
        assert torch.allclose(mine.float(), theirs.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("every", [1, 12])
def test_a_scheduler_for_each_gives_the_plain_loops_weights(
    loop: Any, equal: Any, every: int
) -> None:
    def schedulers(one: Two) -> list[Any]:
        return [
            lr_scheduler.CosineAnnealingLR(one.first, 60),
            lr_scheduler.LambdaLR(one.second, lambda step: 1 - step / 100),
        ]

    plain, steered = two(loop), two(loop)
    mine = schedulers(steered)
    if every == 1:
        plain.run_plainly(schedulers(plain))
        controller = steered.run(reference=mine)
        assert equal(steered.state(), plain.state())
    else:
        controller = steered.run(reference=mine, reference_every=every)
        assert [scheduler.last_epoch for scheduler in mine] == [5, 5]
    assert controller.summary.schedule[-1]["lr"] < 1e-2


def test_a_scheduler_of_one_leaves_the_others_rate(loop: Any, equal: Any) -> None:
    plain, steered = two(loop), two(loop)
    plain.run_plainly([lr_scheduler.ExponentialLR(plain.second, 0.9)])
    steered.run(reference=lr_scheduler.ExponentialLR(steered.second, 0.9))
    assert equal(steered.state(), plain.state())


def test_a_plateau_of_one_is_fed_and_a_count_of_the_other_goes_on(loop: Any) -> None:
    one = two(loop)
    plateau = lr_scheduler.ReduceLROnPlateau(one.first, patience=0, mode="max", factor=0.5)
    counting = lr_scheduler.ExponentialLR(one.second, 0.98)
    one.run(reference=[plateau, counting], policy=Still())
    assert counting.last_epoch == 60
    assert plateau.last_epoch == 10
    assert one.first.param_groups[0]["lr"] < 1e-2


def test_two_schedulers_of_one_optimiser_are_refused(loop: Any) -> None:
    one = two(loop)
    both = [lr_scheduler.ExponentialLR(one.first, 0.9), lr_scheduler.StepLR(one.first, 9)]
    with pytest.raises(AdapterError, match="StepLR is the second scheduler of one Muon"):
        one.controller(reference=both)


def test_a_group_that_joins_the_first_keeps_the_others_place(loop: Any) -> None:
    one = two(loop)
    late = nn.Parameter(torch.ones(2, 2))
    one.loop.model.register_parameter("late", late)
    seen: list[list[float]] = []
    one.second.register_step_pre_hook(
        lambda *_: seen.append([g["lr"] for o in (one.first, one.second) for g in o.param_groups])
    )

    def after(step: int) -> None:
        if step == 20:
            one.first.add_param_group({"params": [late], "lr": 5e-3})

    one.run(policy="random", reference="constant", after=after)
    for first, second, third in seen[21:]:
        assert second == pytest.approx(0.5 * first)
        assert third == pytest.approx(0.1 * first)


def test_the_size_of_a_snapshot_counts_both(loop: Any) -> None:
    one = two(loop, first="sgd")
    controller = one.controller(policy=Still())
    expected = controller.snapshot_bytes
    one.run(policy=Still())
    weights = sum(4 * weight.numel() for weight in one.loop.model.parameters())
    assert expected > 2 * weights


def trained_by_accelerate(*, steered: bool) -> list[torch.Tensor]:
    accelerate = pytest.importorskip("accelerate")
    torch.manual_seed(0)
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    inputs = torch.randn(64, 4)
    inner = [torch.optim.SGD(model[0].parameters(), 0.1), torch.optim.Adam(model[2].parameters())]
    optimizers = [accelerator.prepare(one) for one in inner]
    schedulers = [accelerator.prepare(lr_scheduler.ExponentialLR(one, 0.9)) for one in inner]
    controller = None
    if steered:
        controller = TorchController(
            optimizers,
            total_steps=8,
            validate=lambda: 1.0,
            model=model,
            reference=schedulers,
            decisions=2,
            **OFF,
        )
    for batch in inputs.split(4):
        with accelerator.accumulate(model):
            loss = nn.functional.cross_entropy(model(batch), (batch[:, 0] > 0).long())
            accelerator.backward(loss)
            if controller is not None:
                controller.step(loss)
                continue
            for one in (*optimizers, *schedulers):
                one.step()
            for one in optimizers:
                one.zero_grad()
    return [weight.detach().clone() for weight in model.parameters()]


@pytest.mark.framework
def test_several_that_accelerate_prepared_are_the_plain_loop(equal: Any) -> None:
    assert equal(trained_by_accelerate(steered=True), trained_by_accelerate(steered=False))
