"""Each kind is proven to be used, at no cost to the run's state, and refused where it is not."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from trimtab.adapters.actuators import SteeredValue
from trimtab.adapters.torch import TorchController
from trimtab.adapters.torch import proofs as torch_proof
from trimtab.adapters.torch.actuators import find_actuators
from trimtab.adapters.torch.depth import DepthRates, layers_of
from trimtab.adapters.torch.proofs import Proofs
from trimtab.adapters.torch.values import TrimtabBatchSampler, averaging
from trimtab.core.errors import AdapterError

FEATURES = 6


class Attention(nn.Module):
    """Reads a float at each forward pass, as attention layers do."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_dropout = 0.2
        self.cast = nn.Linear(FEATURES, FEATURES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(self.cast(x), self.attention_dropout, self.training)


class Lora(nn.Module):
    """A layer as PEFT makes it: its second matrix begins at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(FEATURES, FEATURES)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(FEATURES, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, FEATURES, bias=False)})
        self.scaling = {"default": 2.0}
        nn.init.zeros_(self.lora_B["default"].weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        added = self.lora_B["default"](self.lora_A["default"](x))
        return self.base(x) + added * self.scaling["default"]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(FEATURES)
    return nn.Sequential(Attention(), Lora(), norm, nn.Dropout(0.1), nn.Linear(FEATURES, 3))


def optimizer_for(model: nn.Module, kind: str) -> torch.optim.Optimizer:
    if kind == "momentum":
        return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Any]:
    """Return all that a proof might disturb."""
    kept: list[Any] = [tensor.clone() for tensor in model.state_dict().values()]
    for weight in model.parameters():
        kept.append(None if weight.grad is None else weight.grad.clone())
        kept += [v.clone() for v in optimizer.state.get(weight, {}).values()]
    kept += [torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()]  # noqa: NPY002
    kept += [module.training for module in model.modules()]
    kept += [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    kept += [[id(weight) for weight in g["params"]] for g in optimizer.param_groups]
    return kept


def same(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(one, other, strict=True)
    )


KINDS = (
    "weight_decay",
    "momentum",
    "beta1",
    "dropout",
    "label_smoothing",
    "layer_decay",
    "frozen_depth",
    "adapter_scale",
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_proof_leaves_all_state_bit_for_bit(kind: str) -> None:
    model, loss_fn = network(), nn.CrossEntropyLoss(label_smoothing=0.05)
    optimizer = optimizer_for(model, kind)
    x, y = torch.randn(8, FEATURES), torch.arange(8) % 3
    for _ in range(2):  # there is optimiser state to be disturbed
        loss_fn(model(x), y).backward()
        optimizer.step()
    depth = DepthRates(optimizer, model)
    _, actuators = find_actuators(
        (kind,), optimizer=optimizer, model=model, learning_rate=0.1, loss_fn=loss_fn, depth=depth
    )
    fired: list[int] = []
    optimizer.register_step_pre_hook(lambda *_: fired.append(1))
    before = state_of(model, optimizer)
    proofs = Proofs(actuators, optimizer, depth)
    assert same(before, state_of(model, optimizer))

    loss_fn(model(x), y).backward()
    before = state_of(model, optimizer)
    proofs.finish()
    assert same(before, state_of(model, optimizer))
    assert not fired
    assert not any(m._forward_pre_hooks for m in [*model.modules(), loss_fn])


def controller(model: nn.Module, optimizer: Any, kind: Any, **settings: Any) -> TorchController:
    given = {"total_steps": 12, "validate": lambda: 1.0, "policy": None, "decisions": 3} | settings
    return TorchController(optimizer, model=model, hyperparameters=("lr", kind), **given)


def train(model: nn.Module, steered: TorchController, loss_fn: Any = None, steps: int = 12) -> None:
    loss_fn = loss_fn or nn.functional.cross_entropy
    with steered:
        for _ in range(steps):
            loss = loss_fn(model(torch.randn(8, FEATURES)), torch.arange(8) % 3)
            loss.backward()
            steered.step(loss)


class Deaf(torch.optim.SGD):
    """Takes weight decay and momentum, and uses neither."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    weight -= group["lr"] * weight.grad


@pytest.mark.parametrize("kind", ["weight_decay", "momentum"])
def test_an_optimiser_that_does_not_use_a_value_is_refused(kind: str) -> None:
    model = network()
    deaf = Deaf(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    with pytest.raises(AdapterError, match=f"{kind}: Deaf makes the same update at"):
        controller(model, deaf, kind)


@pytest.fixture
def nothing_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever other tests compiled in this process, this model is not."""
    monkeypatch.setattr(torch_proof, "_something_was_compiled", lambda: False)


@pytest.mark.usefixtures("nothing_compiled")
def test_dropout_that_is_never_called_is_refused_before_the_first_update() -> None:
    model = nn.Sequential(nn.Linear(FEATURES, 3))
    model[0].register_module("idle", nn.Dropout(0.3))
    steered = controller(model, optimizer_for(model, ""), "dropout")
    before = [weight.detach().clone() for weight in model.parameters()]
    with pytest.raises(AdapterError, match="dropout: nothing that holds it was called"):
        train(model, steered)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_float_that_is_copied_at_construction_is_refused() -> None:
    class Frozen(Attention):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.dropout(self.cast(x), 0.2, self.training)

    model = nn.Sequential(Frozen(), nn.Linear(FEATURES, 3))
    with pytest.raises(AdapterError, match="dropout: what holds it gives the same output"):
        train(model, controller(model, optimizer_for(model, ""), "dropout"))


@pytest.mark.usefixtures("nothing_compiled")
def test_another_loss_than_the_one_that_is_called_is_refused() -> None:
    model, idle = network(), nn.CrossEntropyLoss(label_smoothing=0.1)
    steered = controller(model, optimizer_for(model, ""), "label_smoothing", loss_fn=idle)
    with pytest.raises(AdapterError, match="label_smoothing: nothing that holds it was called"):
        train(model, steered)


def test_a_config_that_is_read_at_each_forward_pass_is_steered() -> None:
    class Config:
        hidden_dropout = 0.0

        def __init__(self) -> None:
            self.hidden_dropout_prob = 0.1

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config, self.head = Config(), nn.Linear(FEATURES, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(
                nn.functional.dropout(x, self.config.hidden_dropout_prob, self.training)
            )

    model = Model()
    steered = controller(model, optimizer_for(model, ""), "dropout", policy="random", seed=3)
    train(model, steered)
    assert len({row["dropout"] for row in steered.summary.schedule}) > 1
    assert model.config.hidden_dropout_prob == steered.summary.schedule[-1]["dropout"]


# Values of one's own.


def test_a_value_that_is_read_is_steered_and_one_that_is_not_is_refused() -> None:
    model, mixup = network(), SteeredValue("mixup", 0.2)
    steered = controller(model, optimizer_for(model, ""), mixup, policy="random", seed=1)
    seen = []

    def loss_fn(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen.append(mixup())
        return nn.functional.cross_entropy(logits, labels)

    train(model, steered, loss_fn)
    assert seen == [row["mixup"] for row in steered.summary.schedule]
    assert len(set(seen)) > 1

    idle = SteeredValue("augmentation", 0.2)
    with pytest.raises(AdapterError, match=r"SteeredValue\('augmentation'\) was not read before"):
        train(model, controller(model, optimizer_for(model, ""), idle))


def test_kinds_that_are_found_are_no_values_of_ones_own() -> None:
    with pytest.raises(AdapterError, match="'dropout' is found by trimtab itself"):
        SteeredValue("dropout", 0.1)


def test_the_batch_sampler_takes_up_a_new_size_at_the_next_batch() -> None:
    size = SteeredValue("batch_size", 4)
    sampler = TrimtabBatchSampler(range(16), size)
    batches = iter(sampler)
    assert len(next(batches)) == 4
    size.hold(8.0)
    assert [len(batch) for batch in batches] == [8, 4]
    assert len(sampler) == 2
    assert len(list(TrimtabBatchSampler(range(18), size, drop_last=True))) == 2


def test_averaged_weights_follow_the_decay() -> None:
    decay, model = SteeredValue("ema_decay", 0.9), nn.Linear(2, 1, bias=False)
    averaged = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=averaging(decay))
    with torch.no_grad():
        model.weight.fill_(1.0)
        averaged.update_parameters(model)
        model.weight.fill_(2.0)
        averaged.update_parameters(model)
        assert averaged.module.weight.tolist()[0] == pytest.approx([1.1, 1.1])
        decay.hold(0.5)
        averaged.update_parameters(model)
    assert averaged.module.weight.tolist()[0] == pytest.approx([1.55, 1.55])


# Depth.


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
def test_each_layer_steps_at_its_own_rate_as_groups_by_hand_do(make: Any) -> None:
    ends = []
    for by_hand in (False, True):
        model = network()
        layers = layers_of(model)
        scales = [0.0, 0.5**2, 0.5, 1.0]  # of Attention, Lora, BatchNorm, Linear
        groups = [
            {"params": list(layer.parameters()), "lr": 0.1 * scale}
            for layer, scale in zip(layers, scales, strict=True)
            if not by_hand or scale
        ]
        optimizer = make(groups if by_hand else model.parameters(), lr=0.1)
        depth = DepthRates(optimizer, model)
        assert depth.n_layers == 4
        for step in range(3):
            torch.manual_seed(step)
            model(torch.randn(8, FEATURES)).square().mean().backward()
            if not by_hand:
                depth.layer_decay, depth.frozen_depth = 0.5, 0.25
                depth.divide()
            optimizer.step()
            depth.rejoin()
            optimizer.zero_grad()
        assert by_hand or len(optimizer.param_groups) == 1
        ends.append([weight.detach().clone() for weight in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_frozen_layers_of_a_steered_run_stand_still() -> None:
    from trimtab.core.hyperparameters import hyperparameter

    model = network()
    model[0].attention_dropout = 0.0
    kind = hyperparameter("frozen_depth", 0.0, low=0.0, high=1.0)
    steered = controller(model, optimizer_for(model, ""), kind)
    depth = steered._driver._depth
    assert depth is not None
    depth.frozen_depth = 0.5
    start = [weight.detach().clone() for weight in model.parameters()]
    x = torch.randn(8, FEATURES)
    model(x).square().mean().backward()
    depth.divide()
    steered.optimizer.step()
    depth.rejoin()
    moved = [not torch.equal(a, b) for a, b in zip(start, model.parameters(), strict=True)]
    lowest = len(list(model[0].parameters())) + len(list(model[1].parameters()))
    assert not any(moved[:lowest])
    assert all(moved[lowest:])


def test_depth_that_cannot_be_inferred_is_refused() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
            self.two = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))

    model = Two()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(AdapterError, match="layers: 2 stacks of 2 layers in Two"):
        controller(model, sgd, "layer_decay")
    assert DepthRates(sgd, model, [model.one, model.two]).n_layers == 2
    with pytest.raises(AdapterError, match="may keep state of its own"):
        DepthRates(Deaf(model.parameters(), lr=0.1), model)
