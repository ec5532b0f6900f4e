"""Schedulers and parameter groups of other libraries are followed as their own loops do."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from trimtab.adapters.torch import TorchController
from trimtab.adapters.torch.followed_rates import FollowedRates
from trimtab.adapters.torch.schedules import make_rates
from trimtab.core.errors import AdapterError, SpecError, TrimtabWarning

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


# Counted in epochs.

PER_EPOCH = 12


def run_in_epochs(loop: Any, scheduler: Any) -> None:
    """Step a scheduler at the end of each epoch, as its own loop does."""
    loop.begin()
    for step, loss in enumerate(loop.losses(), start=1):
        loss.backward()
        loop.optimizer.step()
        loop.optimizer.zero_grad()
        if step % PER_EPOCH == 0:
            told = (step // PER_EPOCH,) if hasattr(scheduler, "step_update") else ()
            scheduler.step(*told)


@pytest.mark.parametrize(
    "make",
    [
        lambda o: lr_scheduler.StepLR(o, 2),
        lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
        lambda o: EpochCosine(o, 5, epochs=True),
    ],
)
def test_a_scheduler_of_epochs_gives_the_plain_loops_weights(
    loop: Any, equal: Any, make: Any
) -> None:
    plain, steered = layered(loop), layered(loop)
    run_in_epochs(plain, make(plain.optimizer))
    steered.run_steered(reference=make(steered.optimizer), reference_every=PER_EPOCH, **OFF)
    assert equal(steered.state(), plain.state())
    assert steered.rates() == plain.rates()


def test_what_a_scheduler_of_epochs_will_do_is_known_ahead() -> None:
    optimizer = two_groups({}, {})
    rates = make_rates(optimizer, lr_scheduler.StepLR(optimizer, 1), 7, 3)
    assert rates.multipliers == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.01])


@pytest.mark.parametrize(
    "make",
    [
        lambda o: lr_scheduler.StepLR(o, 10),
        lambda o: lr_scheduler.CosineAnnealingLR(o, 30),
        lambda o: EpochCosine(o, 30, epochs=True),
        lambda o: lr_scheduler.LambdaLR(o, lambda step: max(0.0, 1 - step / 100)),
    ],
)
def test_a_rate_that_vanishes_in_the_first_half_is_told(make: Any) -> None:
    optimizer = two_groups({}, {})
    with pytest.warns(TrimtabWarning, match="pass reference_every="):
        make_rates(optimizer, make(optimizer), 480)


def test_a_trainers_scheduler_that_vanishes_is_told() -> None:
    optimizer = two_groups({})
    with pytest.warns(TrimtabWarning, match="make it for 480 optimiser steps"):
        FollowedRates(
            optimizer, [lr_scheduler.StepLR(optimizer, 10)], reference=None, total_steps=480
        )


@pytest.mark.parametrize(
    ("make", "total_steps"),
    [
        (lambda o: lr_scheduler.StepLR(o, 100), 480),
        (lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=2000), 5000),
        (lambda o: lr_scheduler.LambdaLR(o, lambda step: min(step / 500, 1.0)), 5000),
        (lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=5000), 5000),
        (lambda o: lr_scheduler.LambdaLR(o, [lambda step: float(step > 9), lambda step: 0.0]), 99),
    ],
)
def test_a_rate_that_lasts_is_not_told(make: Any, total_steps: int) -> None:
    optimizer = two_groups({}, {"lr": 0.2})
    rates = make_rates(optimizer, make(optimizer), total_steps)
    assert len(rates.multipliers) == total_steps


@pytest.mark.parametrize("every", [0, -1, 1.5, True, "16", None])
def test_steps_between_two_of_a_scheduler_are_a_whole_number(loop: Any, every: Any) -> None:
    with pytest.raises(AdapterError, match=f"reference_every: {every!r} is not a whole number"):
        loop().controller(reference_every=every)


def test_only_a_scheduler_that_counts_has_steps() -> None:
    optimizer = two_groups({}, {})
    with pytest.raises(AdapterError, match="reference_every=4: only a scheduler has steps"):
        make_rates(optimizer, "cosine", 8, 4)
    plateau = lr_scheduler.ReduceLROnPlateau(optimizer)
    with pytest.raises(AdapterError, match="ReduceLROnPlateau goes by the metric"):
        make_rates(optimizer, plateau, 8, 4)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda progress: None, "None at step 0 of 8"),
        (lambda progress: "0.1", None),
        (lambda progress: [progress], r"\[0.0\] at step 0"),
        (lambda progress: 1j, "1j at step 0"),
        (lambda progress: 0.5 - progress, "-0.125 at step 5"),
        (lambda progress: float("nan"), "nan at step 0"),
        (lambda progress, more: 1.0, "TypeError"),
        (lr_scheduler.StepLR, "TypeError"),
        (lambda progress: 1 / progress, "ZeroDivisionError .* at step 0 of 8"),
    ],
)
def test_a_function_that_gives_no_number_is_refused_when_made(
    loop: Any, function: Any, said: str | None
) -> None:
    if said is None:
        loop(steps=8).controller(reference=function)
        return
    with pytest.raises(SpecError, match=f"reference: {said}"):
        loop(steps=8).controller(reference=function)


def test_a_scheduler_without_a_state_is_refused_by_name() -> None:
    class Own:
        def step(self) -> None:
            pass

    with pytest.raises(AdapterError, match=r"Own has a step\(\) and no state_dict"):
        make_rates(two_groups({}), Own(), 4)


class Called:
    """What ignite's schedulers offer: called before each step, without a ``step``."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer, self.event_index = optimizer, 0

    def get_param(self) -> float:
        return 1e-2 * 0.9**self.event_index

    def __call__(self, engine: Any, name: str | None = None) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.get_param()
        self.event_index += 1

    def state_dict(self) -> dict[str, Any]:
        return {"event_index": self.event_index}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.event_index = state["event_index"]


def ignite_cosine(optimizer: torch.optim.Optimizer) -> Any:
    handlers = pytest.importorskip("ignite.handlers.param_scheduler", exc_type=ImportError)
    cosine = handlers.CosineAnnealingScheduler(optimizer, "lr", 1e-2, 1e-4, 120)
    return handlers.create_lr_scheduler_with_warmup(
        cosine, warmup_start_value=1e-4, warmup_end_value=1e-2, warmup_duration=6
    )


def ignite_exponential(optimizer: torch.optim.Optimizer) -> Any:
    handlers = pytest.importorskip("ignite.handlers.param_scheduler", exc_type=ImportError)
    return handlers.LRScheduler(lr_scheduler.ExponentialLR(optimizer, 0.97))


@pytest.mark.parametrize(
    "make",
    [
        Called,
        pytest.param(ignite_cosine, marks=pytest.mark.framework),
        pytest.param(ignite_exponential, marks=pytest.mark.framework),
    ],
)
def test_a_scheduler_that_is_called_gives_the_plain_loops_weights(
    loop: Any, equal: Any, make: Any
) -> None:
    plain, steered = loop(), loop()
    scheduler = make(plain.optimizer)
    plain.begin()
    for loss in plain.losses():
        scheduler(None)
        loss.backward()
        plain.optimizer.step()
        plain.optimizer.zero_grad()
    steered.run_steered(reference=make(steered.optimizer), **OFF)
    assert equal(steered.state(), plain.state())


# Wrapped by Accelerate and Fabric.


def batches(steps: int = 24) -> list[tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(3)
    inputs = torch.randn(steps, 8, 6)
    return [(x, (x[:, 0] > 0).long()) for x in inputs]


def small_model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Linear(6, 2)


def accelerated(model: torch.nn.Module, scaler: Any = None, **keywords: Any) -> Any:
    """Return Accelerate's accelerator, optimiser and scheduler."""
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()
    accelerator = accelerate.Accelerator(cpu=True, **keywords)
    inner = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = lr_scheduler.LambdaLR(inner, lambda step: 0.95**step)
    if scaler is None:
        return accelerator, *accelerator.prepare(inner, scheduler)
    optimizer = accelerate.optimizer.AcceleratedOptimizer(inner, scaler=scaler)
    return accelerator, optimizer, accelerate.scheduler.AcceleratedScheduler(scheduler, optimizer)


def train_accelerated(
    *, steered: bool, given: str = "prepared", scaler: Any = None, gather: int = 1, factor: Any = ()
) -> tuple[Any, Any, list[torch.Tensor]]:
    """Train plainly or steered; return controller, optimiser and weights."""
    model, cross_entropy = small_model(), torch.nn.functional.cross_entropy
    accelerator, optimizer, scheduler = accelerated(
        model, scaler, gradient_accumulation_steps=gather
    )
    controller = None
    if steered:
        controller = TorchController(
            optimizer if given == "prepared" else optimizer.optimizer,
            total_steps=24 // gather,
            validate=lambda: 1.0,
            model=model,
            reference=scheduler,
            decisions=4,
            **OFF,
        )
    for step, (x, y) in enumerate(batches()):
        with accelerator.accumulate(model):
            loss = cross_entropy(model(x), y)
            scaled = loss if scaler is None else scaler.scale(loss)
            accelerator.backward(scaled * (float("inf") if step in factor else 1.0))
            if controller is None:
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            else:
                controller.step(loss)
    return controller, optimizer, [w.detach().clone() for w in model.parameters()]


@pytest.mark.framework
@pytest.mark.parametrize(("given", "gather"), [("prepared", 1), ("prepared", 4), ("inner", 1)])
def test_what_accelerate_prepared_gives_its_own_loops_weights(
    equal: Any, given: str, gather: int
) -> None:
    _, _, plain = train_accelerated(steered=False, gather=gather)
    controller, _, weights = train_accelerated(steered=True, gather=gather, given=given)
    assert equal(weights, plain)
    assert controller.summary.finished
    assert controller.summary.spent_steps == 24 // gather
    assert controller.summary.schedule[3]["lr"] == pytest.approx(1e-2 * 0.95**3)


@pytest.mark.framework
def test_a_step_that_accelerates_scaler_leaves_out_is_one_of_its_own_loop(equal: Any) -> None:
    def scaler() -> Any:
        return torch.amp.GradScaler("cpu", init_scale=64.0)

    _, plain_optimizer, plain = train_accelerated(steered=False, scaler=scaler(), factor=(5,))
    _, optimizer, weights = train_accelerated(steered=True, scaler=scaler(), factor=(5,))
    assert equal(weights, plain)
    assert optimizer.scaler.get_scale() == plain_optimizer.scaler.get_scale() == 32.0
    assert optimizer.param_groups[0]["lr"] == plain_optimizer.param_groups[0]["lr"]


@pytest.mark.framework
def test_a_prepared_scheduler_is_forecast_for_all_processes() -> None:
    _, optimizer, scheduler = accelerated(small_model())
    optimizer.accelerator_state._shared_state["num_processes"] = 2
    rates = make_rates(optimizer.optimizer, scheduler, 4)
    optimizer.accelerator_state._shared_state["num_processes"] = 1
    assert rates.multipliers == pytest.approx([0.95 ** (2 * step) for step in range(4)])


@pytest.mark.framework
@pytest.mark.parametrize("owner", ["inner", "wrapped"])
def test_what_fabric_sets_up_is_steered(equal: Any, owner: str) -> None:
    lightning = pytest.importorskip("lightning")

    def train(*, steered: bool) -> list[torch.Tensor]:
        fabric = lightning.Fabric(accelerator="cpu", devices=1)
        model = small_model()
        inner = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
        model, optimizer = fabric.setup(model, inner)
        scheduler = lr_scheduler.ExponentialLR(inner if owner == "inner" else optimizer, 0.95)
        controller = None
        if steered:
            controller = TorchController(
                optimizer,
                total_steps=24,
                validate=lambda: 1.0,
                model=model,
                reference=scheduler,
                hyperparameters=("lr", "weight_decay", "beta1"),
                decisions=4,
                **OFF,
            )
            assert controller._rates.known_ahead
        for x, y in batches():
            loss = torch.nn.functional.cross_entropy(model(x), y)
            fabric.backward(loss)
            if controller is None:
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            else:
                controller.step(loss)
        return [weight.detach().clone() for weight in model.parameters()]

    assert equal(train(steered=True), train(steered=False))
