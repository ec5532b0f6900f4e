"""Optimisers with habits of their own: steered, or refused in one clear line."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from tests.adapters.tiny_training import Still
from trimtab.adapters.torch import TorchController
from trimtab.adapters.torch.followed_rates import FollowedRates
from trimtab.core.errors import AdapterError

OFF: dict[str, Any] = {"policy": None, "keep_best": False}


class Sam(torch.optim.Optimizer):
    """Sharpness-aware minimisation as its repositories write it."""

    def __init__(self, params: Any, lr: float, rho: float = 0.05) -> None:
        super().__init__(params, {"lr": lr, "rho": rho})
        self.base_optimizer = torch.optim.SGD(self.param_groups, lr=lr, momentum=0.9)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self, zero_grad: bool = False) -> None:
        weights = [w for group in self.param_groups for w in group["params"] if w.grad is not None]
        norm = torch.stack([weight.grad.norm() for weight in weights]).norm() + 1e-12
        for weight in weights:
            self.state[weight]["old_p"] = weight.clone()
            weight.add_(weight.grad, alpha=0.05 / float(norm))
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def second_step(self, zero_grad: bool = False) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.copy_(self.state[weight]["old_p"])
        self.base_optimizer.step()
        if zero_grad:
            self.zero_grad()

    def step(self, closure: Any = None) -> None:
        raise RuntimeError("give a closure")


def pytorch_optimizers_sam(params: Any, lr: float) -> Any:
    module = pytest.importorskip("pytorch_optimizer", exc_type=ImportError)
    return module.SAM(params, base_optimizer=torch.optim.SGD, lr=lr, momentum=0.9)


def train_by_sam(loop: Any, make: Any, *, steered: bool, **settings: Any) -> Any:
    one = loop(make_optimizer=make)
    for module in one.model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.Dropout):
            module.eval()
    sam = one.optimizer
    torch.manual_seed(1)
    batches = [torch.randint(0, 200, (16,)) for _ in range(60)]
    controller = one.controller(**(OFF | settings)) if steered else None
    for step, chosen in enumerate(batches):

        def loss_of(chosen: torch.Tensor = chosen, step: int = step) -> torch.Tensor:
            loss = one.loss_fn(one.model(one.inputs[chosen]), one.labels[chosen])
            return loss * one.wrecked.get(step, 1.0)

        loss_of().backward()
        sam.first_step(zero_grad=True)
        loss = loss_of()
        loss.backward()
        if controller is None:
            sam.second_step(zero_grad=True)
        else:
            controller.step(loss)
    return one, controller


@pytest.mark.parametrize(
    "make", [Sam, pytest.param(pytorch_optimizers_sam, marks=pytest.mark.framework)]
)
def test_sam_in_two_steps_is_the_plain_loop_with_the_policy_off(
    loop: Any, equal: Any, make: Any
) -> None:
    plain, _ = train_by_sam(loop, make, steered=False)
    steered, controller = train_by_sam(loop, make, steered=True, reference="constant")
    assert equal(list(steered.model.state_dict().values()), list(plain.model.state_dict().values()))
    assert controller.summary.finished


def test_sam_is_steered_and_goes_back(loop: Any) -> None:
    _, controller = train_by_sam(
        loop, Sam, steered=True, policy="random", hyperparameters=("lr", "momentum")
    )
    assert len({row["momentum"] for row in controller.summary.schedule}) > 2
    one = loop(make_optimizer=Sam)
    with one.controller(policy=Still()) as controller:
        one.begin()
        for step, loss in enumerate(one.losses(30)):
            (loss * (float("nan") if step == 20 else 1.0)).backward()
            one.optimizer.first_step()
            controller.step(loss * (float("nan") if step == 20 else 1.0))
    assert controller.summary.rollbacks == 1
    assert all(torch.isfinite(weight).all() for weight in one.model.parameters())


def test_sam_without_its_first_step_is_told_the_two_step_form(loop: Any) -> None:
    with pytest.raises(AdapterError, match=r"Sam .* first_step was not called.*first_step\("):
        loop(make_optimizer=Sam).run_steered()


def test_sam_is_not_scaled(loop: Any) -> None:
    with pytest.raises(AdapterError, match="scaler: Sam looks at two gradients"):
        loop(make_optimizer=Sam).controller(scaler=torch.amp.GradScaler("cpu"))


def test_a_scheduler_of_sam_is_adopted(loop: Any) -> None:
    one = loop(make_optimizer=Sam)
    controller = one.controller(reference=lr_scheduler.StepLR(one.optimizer, 40))
    assert controller._rates.multipliers[50] == pytest.approx(0.1)


# Rates.


@pytest.mark.parametrize("rate", [None, "auto", float, [0.1]])
def test_a_rate_that_is_no_number_is_refused(loop: Any, rate: Any) -> None:
    one = loop()
    one.optimizer.param_groups[0]["lr"] = rate
    with pytest.raises(AdapterError, match=r"^lr: .* in parameter group 0 of AdamW") as error:
        one.controller()
    assert "\n" not in str(error.value)
    with pytest.raises(AdapterError, match=r"^lr: .* in parameter group 0"):
        FollowedRates(one.optimizer, [], reference=None, total_steps=4)


@pytest.mark.framework
@pytest.mark.parametrize("with_schedule", [False, True])
def test_adafactor_that_finds_its_rate_is_told_how_to_take_one(
    loop: Any, with_schedule: bool
) -> None:
    optimization = pytest.importorskip("transformers.optimization")

    def adafactor(params: Any, lr: Any) -> Any:
        del lr
        return optimization.Adafactor(params, lr=None, relative_step=True, warmup_init=True)

    one = loop(make_optimizer=adafactor)
    schedule = optimization.AdafactorSchedule(one.optimizer) if with_schedule else "constant"
    with pytest.raises(AdapterError, match="lr=1e-3, relative_step=False"):
        one.controller(reference=schedule)
    told = loop(make_optimizer=lambda p, lr: optimization.Adafactor(p, lr=lr, relative_step=False))
    assert told.run_steered().summary.finished


def test_torchs_adafactor_is_steered(loop: Any) -> None:
    assert loop(make_optimizer=torch.optim.Adafactor).run_steered(policy="random").summary.finished


# Optimisers that are no torch.optim.Optimizer.


class Plain:
    """Has what is needed, and neither ``defaults`` nor hooks."""

    def __init__(self, params: Any, lr: float) -> None:
        self.param_groups: Any = [{"params": list(params), "lr": lr}]
        self.state: dict[Any, Any] = {}

    def step(self) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.data.add_(weight.grad, alpha=-group["lr"])

    def zero_grad(self) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                weight.grad = None


def test_an_optimiser_without_defaults_is_steered(loop: Any) -> None:
    one = loop(make_optimizer=Plain)
    assert one.run_steered(policy="random").summary.finished
    one = loop(make_optimizer=Plain)
    halved = lr_scheduler_of(one.optimizer)
    assert one.controller(reference=halved)._rates.multipliers[1] == 0.5


def lr_scheduler_of(optimizer: Any) -> Any:
    class Halving:
        def __init__(self) -> None:
            self.optimizer = optimizer

        def step(self) -> None:
            for group in self.optimizer.param_groups:
                group["lr"] *= 0.5 if group["lr"] > 1e-3 else 1.0

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            pass

    return Halving()


@pytest.mark.parametrize("group", ["weights", ["params", "lr"], {"lr": 0.1}, 3])
def test_groups_of_another_form_are_refused(loop: Any, group: Any) -> None:
    one = loop(make_optimizer=Plain)
    one.optimizer.param_groups = [group]
    with pytest.raises(AdapterError, match="optimizer: parameter group 0 of Plain is"):
        one.controller()


def test_attach_steers_several(loop: Any, equal: Any) -> None:
    ends = []
    for attached in (False, True):
        one = loop()
        weights = list(one.model.parameters())
        optimizers = [torch.optim.SGD(weights[:3], lr=0.1), torch.optim.AdamW(weights[3:], lr=0.01)]
        make = TorchController.attach if attached else TorchController
        one.begin()
        with make(
            optimizers, total_steps=60, validate=one.validate, model=one.model, policy="random"
        ) as controller:
            for loss in one.losses():
                loss.backward()
                if not attached:
                    controller.step(loss)
                    continue
                controller.tell(loss)
                for optimizer in optimizers:
                    optimizer.step()
                for optimizer in optimizers:
                    optimizer.zero_grad()
        ends.append([weight.detach().clone() for weight in weights])
    assert equal(*ends)
