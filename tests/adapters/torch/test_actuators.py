"""Each hyperparameter reaches its place, is read back, and is refused where it has none."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from trimtab.adapters.actuators import Actuator
from trimtab.adapters.torch import TorchController
from trimtab.adapters.torch.actuators import Place, find_actuators
from trimtab.core.errors import AdapterError, SpecError, TrimtabWarning, UnknownNameError
from trimtab.core.hyperparameters import Hyperparameter, hyperparameter

SGD = partial(torch.optim.SGD, momentum=0.9, weight_decay=0.01)


def reader(it: Any, kind: str) -> float:
    group = it.optimizer.param_groups[0]
    if kind == "beta1":
        return group["betas"][0]
    if kind == "dropout":
        return it.model[3].p
    return it.loss_fn.label_smoothing if kind == "label_smoothing" else group[kind]


@pytest.mark.parametrize(
    ("kind", "optimizer"),
    [
        ("weight_decay", torch.optim.AdamW),
        ("momentum", SGD),
        ("beta1", torch.optim.AdamW),
        ("dropout", torch.optim.AdamW),
        ("label_smoothing", torch.optim.AdamW),
    ],
)
def test_what_is_recorded_is_what_holds_in_the_step(loop, kind, optimizer):
    it = loop(make_optimizer=optimizer)
    it.loss_fn = nn.CrossEntropyLoss(label_smoothing=0.05)
    seen = []
    it.optimizer.register_step_pre_hook(lambda *_: seen.append(reader(it, kind)))
    summary = it.run_steered(
        policy="random", hyperparameters=("lr", kind), loss_fn=it.loss_fn, seed=2
    ).summary

    assert seen == [row[kind] for row in summary.schedule]
    assert len(set(seen)) > 2


def test_the_clipping_norm_is_steered(loop, monkeypatch):
    used = []
    clip = nn.utils.clip_grad_norm_
    monkeypatch.setattr(
        nn.utils, "clip_grad_norm_", lambda w, norm: (used.append(norm), clip(w, norm))[1]
    )
    it = loop()
    summary = it.run_steered(policy="random", hyperparameters=("clip",), clip=0.5).summary

    tried, used = used[:2], used[2:]
    assert tried == [1e-3, 1e3]  # once, before the first update
    assert used == [row["clip"] for row in summary.schedule]
    assert len(set(used)) > 2


def test_clipping_that_does_nothing_is_refused_before_the_first_update(loop, monkeypatch):
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", lambda w, norm: None)
    it = loop()
    before = [weight.clone() for weight in it.model.parameters()]

    with pytest.raises(AdapterError, match="clip: what holds it gives the same output"):
        it.run_steered(policy="random", hyperparameters=("clip",), clip=0.5)
    assert all(map(torch.equal, it.model.parameters(), before))


def test_second_beta_and_tensor_entries_are_kept(loop):
    it = loop(options={"betas": (0.9, 0.95)})
    it.run_steered(policy="random", hyperparameters=("beta1",))

    assert it.optimizer.param_groups[0]["betas"][1] == 0.95


def test_attention_and_recurrent_dropout_are_found():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 1, dropout=0.2)
            self.memory = nn.LSTM(4, 4, num_layers=2, dropout=0.3)
            self.drop = nn.Dropout2d(0.1)
            self.off = nn.Dropout(0.0)

    model = Model()
    optimizer = torch.optim.AdamW(model.parameters())
    items, (actuator,) = find_actuators(
        ["dropout"], optimizer=optimizer, model=model, learning_rate=1e-3
    )
    assert actuator is not None
    assert items[0].default == 0.2
    assert actuator.write(0.1) == ""  # a tenth of the range 0..0.7
    assert model.attention.dropout == pytest.approx(0.27)
    assert model.memory.dropout == pytest.approx(0.37)
    assert model.drop.p == pytest.approx(0.17)
    assert model.off.p == 0.0


def test_a_place_that_does_not_take_values_is_told():
    item = hyperparameter("weight_decay", 0.01)
    actuator = Actuator(item, [Place(0.01, lambda: 0.01, lambda value: None)])

    assert re.search(r"0\.1 was written and 0\.01 stands there", actuator.write(1.0))


def test_an_optimiser_that_ignores_a_value_is_refused(loop):
    class Stubborn(torch.optim.SGD):
        def add_param_group(self, param_group: dict[str, Any]) -> None:
            super().add_param_group(param_group)
            self.param_groups[-1] = Fixed(self.param_groups[-1])

    class Fixed(dict):
        def __setitem__(self, key: str, value: Any) -> None:
            if key != "weight_decay":
                super().__setitem__(key, value)

    it = loop(make_optimizer=Stubborn, options={"weight_decay": 0.01})
    with pytest.raises(AdapterError, match="weight_decay: Stubborn makes the same update at"):
        it.run_steered(policy="random", hyperparameters=("lr", "weight_decay"))


def test_an_optimiser_that_ignores_the_rate_is_told(loop):
    class Fixed(dict):
        def __setitem__(self, key: str, value: Any) -> None:
            if key != "lr":
                super().__setitem__(key, value)

    it = loop()
    it.optimizer.param_groups[0] = Fixed(it.optimizer.param_groups[0])
    with pytest.warns(TrimtabWarning) as said:
        it.run_steered()

    assert any("AdamW does not hold the learning rate" in str(w.message) for w in said)


@pytest.mark.parametrize("decisions", [5, 20])
def test_a_scheduler_that_is_stepped_in_the_loop_is_overruled_and_told(loop, decisions):
    it = loop()
    other = torch.optim.lr_scheduler.ExponentialLR(it.optimizer, gamma=0.5)
    rates = []
    it.optimizer.register_step_pre_hook(lambda *_: rates.append(it.rates()[0]))
    with pytest.warns(TrimtabWarning, match="pass it as reference=") as said:
        it.run_steered(reference="constant", decisions=decisions, after=lambda _: other.step())

    assert len(said) == 1
    assert rates == [1e-2] * 60


# What is refused, with the value seen.

MODEL = nn.Linear(2, 2)


def build(optimizer: Any = None, **settings: Any) -> TorchController:
    base: dict[str, Any] = {"total_steps": 10, "validate": lambda: 1.0, "model": MODEL}
    chosen = torch.optim.AdamW(MODEL.parameters(), lr=0.01) if optimizer is None else optimizer
    return TorchController(chosen, **(base | {"policy": None} | settings))


def sgd(**options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(MODEL.parameters(), **({"lr": 0.1} | options))


class NeedsClosure(torch.optim.SGD):
    def step(self, closure):  # type: ignore[override]
        return super().step(closure)


def cycle() -> tuple[torch.optim.Optimizer, Any]:
    optimizer = sgd(momentum=0.9)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=20)


def short() -> tuple[torch.optim.Optimizer, Any]:
    optimizer = sgd(momentum=0.9)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=7)


REFUSED: list[tuple[Any, type[Exception], str]] = [
    (lambda: build(total_steps=0), SpecError, "total_steps: 0 is not a whole number"),
    (lambda: build(total_steps=-5), SpecError, "total_steps: -5 "),
    (lambda: build(total_steps=2.5), SpecError, r"total_steps: 2\.5 "),
    (lambda: build(total_steps="many"), SpecError, "total_steps: 'many' "),
    (lambda: build(total_steps=float("nan")), SpecError, "total_steps: nan "),
    (lambda: build(decisions=0), SpecError, "decisions: 0 is "),
    (lambda: build(torch.optim.LBFGS(MODEL.parameters())), AdapterError, "LBFGS .* closure"),
    (lambda: build(NeedsClosure(MODEL.parameters(), lr=0.1)), AdapterError, "NeedsClosure .* clos"),
    (lambda: build([sgd(), sgd()]), AdapterError, r"\(2, 2\) is held by optimisers 0 and 1"),
    (lambda: build({"head": sgd(), "body": sgd()}), AdapterError, "2 optimisers in a dict"),
    (lambda: build([]), AdapterError, "an empty list"),
    (lambda: build([sgd(), None]), AdapterError, "NoneType has no param_groups"),
    (lambda: build({"a": sgd()}), AdapterError, "1 optimisers in a dict"),
    (lambda: build(MODEL), AdapterError, "Linear has no param_groups"),
    (lambda: build(model=[MODEL]), AdapterError, "list is no torch.nn.Module"),
    (lambda: build(sgd(lr=float("nan"))), AdapterError, "lr: nan in parameter group 0"),
    (lambda: build(sgd(lr=0.0)), AdapterError, r"lr: 0\.0 in every parameter group"),
    (lambda: build(clip=0.0), AdapterError, r"clip: 0\.0 is not a finite norm"),
    (lambda: build(clip=float("nan")), AdapterError, "clip: nan "),
    (lambda: build(clip="hard"), AdapterError, "clip: 'hard' "),
    (lambda: build(scaler=3), AdapterError, "scaler: int is no gradient scaler"),
    (lambda: build(mode="most"), SpecError, "mode: 'most' is neither"),
    (lambda: build(reference="cosin"), UnknownNameError, "'cosin'; did you mean 'cosine'"),
    (lambda: build(reference=3), AdapterError, "reference: 3 is neither a name"),
    (lambda: build(reference=lambda p: -1.0), SpecError, r"-1\.0 at step 0 of 10"),
    (lambda: build(reference=cycle()[1]), AdapterError, "OneCycleLR belongs to another optimiser"),
    (
        lambda: (lambda o, s: build(o, reference=s))(*short()),
        AdapterError,
        "OneCycleLR fails at step 8 of 10",
    ),
    (
        lambda: (lambda o, s: build(o, reference=s, hyperparameters=("momentum",)))(*cycle()),
        AdapterError,
        "'momentum' is changed by the adopted scheduler",
    ),
    (lambda: build(policy="trimtab-9"), UnknownNameError, "trimtab-9"),
    (lambda: build(hyperparameters=()), AdapterError, r"\(\) is empty"),
    (lambda: build(hyperparameters=("lr", "lr")), AdapterError, "'lr' is asked for twice"),
    (
        lambda: build(hyperparameters=("weight_decai",)),
        UnknownNameError,
        "'weight_decai'; did you mean 'weight_decay'",
    ),
    (lambda: build(hyperparameters=("batch_size",)), AdapterError, "'batch_size' .* choose from"),
    (
        lambda: build(sgd(), hyperparameters=("weight_decay",)),
        AdapterError,
        "no parameter group of SGD has a weight_decay above 0",
    ),
    (lambda: build(hyperparameters=("momentum",)), AdapterError, "AdamW has a momentum above 0"),
    (lambda: build(sgd(), hyperparameters=("beta1",)), AdapterError, "SGD has betas"),
    (lambda: build(hyperparameters=("dropout",)), AdapterError, "Linear has no dropout layer"),
    (lambda: build(hyperparameters=("clip",)), AdapterError, "clip=None"),
    (
        lambda: build(hyperparameters=("label_smoothing",)),
        AdapterError,
        "neither loss_fn= nor the model Linear",
    ),
    (
        lambda: build(sgd(weight_decay=30.0), hyperparameters=("weight_decay",)),
        SpecError,
        "weight_decay: 30 is above high=1",
    ),
    (
        lambda: build(hyperparameters=(Hyperparameter("lr", "lr", 1e-4, 1e-5, 1e-3),)),
        SpecError,
        r"lr: 0\.01 is above high=0\.001",
    ),
]


@pytest.mark.parametrize(("make", "error", "message"), REFUSED)
def test_what_cannot_be_steered_is_refused_before_any_step(make, error, message):
    before = [weight.detach().clone() for weight in MODEL.parameters()]
    with pytest.raises(error, match=message):
        make()

    assert all(torch.equal(old, new) for old, new in zip(before, MODEL.parameters(), strict=True))


@pytest.mark.parametrize(
    ("loss", "message"),
    [(torch.zeros(3), r"shape \(3,\)"), (None, "None is no loss"), ("low", "'low' is no loss")],
)
def test_a_loss_that_is_not_one_number_is_refused(loss, message):
    with build() as controller, pytest.raises(AdapterError, match=message):
        controller.step(loss)


def test_a_given_object_keeps_its_bounds_and_starts_where_the_optimiser_does():
    item = Hyperparameter("rate", "lr", 0.5, 1e-3, 1.0)
    spec = build(hyperparameters=(item,)).spec

    assert spec.hyperparameters == (Hyperparameter("rate", "lr", 0.01, 1e-3, 1.0),)
