"""An ordinary step never waits for the accelerator: losses stay there and are read together."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from trimtab.adapters.torch import TorchController
from trimtab.adapters.torch.trainer import unscaled

STEPS = 210
WAITS: Counter[int] = Counter()
"""How often a step waited; the current one is `step_now`."""


class OnDevice(torch.Tensor):
    """A loss that says it lies on an accelerator, and counts what would wait for it."""

    step_now = 0

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda")


def _counted(name: str) -> Callable[..., Any]:
    original = getattr(torch.Tensor, name)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        WAITS[OnDevice.step_now] += 1
        return original(self.as_subclass(torch.Tensor), *args, **kwargs)

    return call


for _name in ("item", "__bool__", "cpu", "tolist", "__float__", "__int__", "numpy", "to"):
    setattr(OnDevice, _name, _counted(_name))


def elsewhere(loss: torch.Tensor) -> torch.Tensor:
    return loss.detach().as_subclass(OnDevice)


def by_step(one: Any, controller: TorchController, loss: torch.Tensor) -> None:
    loss.backward()
    controller.step(elsewhere(loss))


def by_scaled_step(one: Any, controller: TorchController, loss: torch.Tensor) -> None:
    controller._stepper.scaler.scale(loss).backward()
    controller.step(elsewhere(loss))


def by_hooks(one: Any, controller: TorchController, loss: torch.Tensor) -> None:
    controller.tell(elsewhere(loss))
    loss.backward()
    one.optimizer.step()
    one.optimizer.zero_grad()


def run(
    one: Any,
    controller: TorchController,
    each: Callable[..., None],
    settings: dict[str, Any] | None = None,
) -> None:
    del settings
    WAITS.clear()
    one.begin()
    with controller:
        for step, loss in enumerate(one.losses()):
            OnDevice.step_now = step
            each(one, controller, loss)
        OnDevice.step_now = -1


PATHS = {
    "plain": (by_step, {}),
    "off": (by_step, {"policy": None}),
    "watched": (by_step, {"watch_only": True}),
    "clipped": (by_step, {"clip": 1.0}),
    "kinds": (by_step, {"hyperparameters": ("lr", "weight_decay", "dropout")}),
    "depth": (by_step, {"hyperparameters": ("lr", "layer_decay")}),
    "scaled": (by_scaled_step, {"scaler": True}),
    "beyond": (by_step, {"total_steps": 40}),
    "hooks": (by_hooks, {}),
}


@pytest.mark.filterwarnings("ignore:more steps than total_steps")
@pytest.mark.parametrize("name", PATHS)
def test_in_60_of_64_ordinary_steps_nothing_waits(loop, name):
    each, given = PATHS[name]
    settings = {"policy": "random", "decisions": 2, "reference": "constant"} | given
    if "scaler" in settings:
        settings["scaler"] = torch.amp.GradScaler("cpu", init_scale=2.0)
    one = loop(steps=STEPS)
    make = one.controller
    if each is by_hooks:
        make = lambda **rest: TorchController.attach(  # noqa: E731 - the same arguments
            one.optimizer, model=one.model, validate=one.validate, **rest
        )
    total_steps = settings.pop("total_steps", STEPS)
    run(one, make(total_steps=total_steps, **settings), each)

    first = 100 if name == "beyond" else 20
    assert sum(WAITS.values()), "nothing was counted; the test proves nothing"
    for begin in range(first, first + 18):  # all within one window
        waiting = [step for step in range(begin, begin + 64) if WAITS[step]]
        assert len(waiting) <= 4, waiting


def test_losses_read_late_give_the_same_bits(loop, equal):
    here, there = loop(steps=STEPS), loop(steps=STEPS)
    settings = {"policy": "random", "decisions": 6, "seed": 3}
    summary = here.run_steered(**settings).summary
    controller = there.controller(**settings)
    run(there, controller, by_step)

    assert equal(there.state(), here.state())
    assert controller.summary.schedule == summary.schedule


@pytest.mark.parametrize("each", [by_step, by_hooks])
def test_a_loss_that_is_not_finite_is_seen_a_few_steps_late(loop, each):
    one = loop(steps=STEPS, wrecked={100: math.nan})
    settings: dict[str, Any] = {"policy": "random", "decisions": 3, "total_steps": STEPS}
    if each is by_hooks:
        settings |= {"validate": one.validate, "model": one.model}
        controller = TorchController.attach(one.optimizer, **settings)
    else:
        controller = one.controller(**settings)
    run(one, controller, each)

    assert controller.summary.rollbacks == 1
    assert 101 <= controller.summary.decisions[2].step <= 117
    assert all(torch.isfinite(value).all() for value in one.state())


@pytest.mark.filterwarnings("ignore:more steps than total_steps")
@pytest.mark.parametrize("wrecked", [150, STEPS - 1])
def test_a_step_beyond_the_announced_ones_is_undone_late(loop, wrecked):
    one = loop(steps=STEPS, wrecked={wrecked: math.nan})
    controller = one.controller(policy="random", total_steps=40, keep_best=False)
    run(one, controller, by_step)

    assert all(torch.isfinite(value).all() for value in one.model.parameters())


def test_a_scalers_factor_is_taken_out_without_asking_for_it():
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.zeros(()))
    scaler.get_scale = lambda: pytest.fail("it was asked for")
    loss = torch.tensor(3.0, dtype=torch.float64)

    assert unscaled(loss * 8.0, scaler).item() == 3.0


def test_on_a_cpu_it_is_seen_at_once(loop):
    one = loop(wrecked={20: math.nan})
    seen: list[Any] = []

    def after(step: int) -> None:
        if step == 20:
            seen.extend(nn.utils.parameters_to_vector(one.model.parameters()).isfinite().tolist())

    one.run_steered(policy="random", after=after)
    assert all(seen)
