"""Averages of the weights go back with them, and one that nobody named is told."""

from __future__ import annotations

import copy
import gc
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from trimtab.adapters.torch import TorchController
from trimtab.core.errors import AdapterError, TrimtabWarning

WRECKED = {30: 1e6, 31: 1e6}
STEERED: dict[str, Any] = {"policy": "random", "decisions": 12, "reference": "constant"}


@pytest.fixture(autouse=True)
def _no_average_of_another_test() -> Iterator[None]:
    gc.collect()
    yield
    gc.collect()


class ModelEma:
    """An average as a list of tensors and a count, as torch-ema keeps it."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.decay = model, 0.9
        self.shadow_params = [weight.detach().clone() for weight in model.parameters()]
        self.num_updates = 0

    @torch.no_grad()
    def update(self) -> None:
        self.num_updates += 1
        for mine, weight in zip(self.shadow_params, self.model.parameters(), strict=True):
            mine.lerp_(weight, 1 - self.decay)

    def tensors(self) -> list[torch.Tensor]:
        return self.shadow_params

    def count(self) -> int:
        return self.num_updates


class InDict:
    """New tensors at each update, in a dict that is filled at the first one."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._shadow: dict[str, torch.Tensor] = {}
        self._updates = 0

    def update(self) -> None:
        self._updates += 1
        for name, weight in self._model.named_parameters():
            before = self._shadow.get(name, weight.detach())
            self._shadow[name] = 0.9 * before + 0.1 * weight.detach()

    def tensors(self) -> list[torch.Tensor]:
        return list(self._shadow.values())

    def count(self) -> int:
        return self._updates


class OfTorch:
    """PyTorch's own."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.named = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)

    def update(self) -> None:
        self.named.update_parameters(self.model)

    def tensors(self) -> list[torch.Tensor]:
        return list(self.named.module.state_dict().values())

    def count(self) -> int:
        return int(self.named.n_averaged)


class Held:
    """A module in an object, with a count, as Ultralytics keeps it."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.ema, self.updates = model, copy.deepcopy(model).eval(), 0
        self._pairs = list(self.ema.state_dict().values()), list(model.state_dict().values())

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        for mine, theirs in zip(*self._pairs, strict=True):
            if mine.is_floating_point():
                mine.lerp_(theirs, 0.1)

    def tensors(self) -> list[torch.Tensor]:
        return list(self.ema.state_dict().values())

    def count(self) -> int:
        return self.updates


KINDS = [ModelEma, InDict, OfTorch, Held]


def wrecked(one: Any, average: Any, *, watched: list[Any], **settings: Any) -> Any:
    """Run with two losses that explode, noting the average when validating and at the end."""
    one.begin()
    validate = one.validate

    def noting() -> float:
        watched.append((average.count(), [t.clone() for t in average.tensors()]))
        return validate()["loss"]

    settings = {"validate": noting, "model": one.model} | STEERED | settings
    with TorchController(one.optimizer, total_steps=one.steps, **settings) as controller:
        for loss in one.losses():
            loss.backward()
            controller.step(loss)
            average.update()
    return controller


@pytest.mark.parametrize("snapshots", ["cpu", "memory", "disk"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_average_goes_back_with_the_weights(loop, equal, kind, snapshots):
    one = loop(wrecked=WRECKED, make_optimizer=torch.optim.SGD, learning_rate=0.5)
    average = kind(one.model)
    named = getattr(average, "named", average)
    seen: list[Any] = []
    controller = wrecked(one, average, watched=seen, averaged=named, snapshots=snapshots)

    assert controller.summary.rollbacks
    best = controller.summary.best["step"] / 5
    count, tensors = seen[int(best)]
    assert average.count() == count
    assert equal(average.tensors(), tensors)
    assert all(t.isfinite().all() and t.abs().max() < 1e3 for t in average.tensors())


def test_in_the_middle_of_a_run_the_count_goes_back_too(loop):
    one = loop(wrecked={30: math.nan})
    average = OfTorch(one.model)
    counts: list[int] = []
    one.begin()
    with one.controller(averaged=[average.named], **STEERED) as controller:
        for loss in one.losses():
            loss.backward()
            controller.step(loss)
            counts.append(average.count())
            average.update()

    assert controller.summary.rollbacks == 1
    assert counts[29] == 29
    assert counts[30] < 30


def test_an_average_is_resumed_with_the_best_state(loop, equal):
    one = loop()
    average = ModelEma(one.model)
    one.begin()
    with one.controller(averaged=average, **STEERED) as controller:
        for loss in one.losses(20):
            loss.backward()
            controller.step(loss)
            average.update()
        state = controller.state_dict()
    kept = state["best"]
    again = loop()
    resumed = ModelEma(again.model)
    controller = again.controller(averaged=resumed, **STEERED)
    controller.load_state_dict(state)
    controller._run.snapshots.restore()

    assert resumed.num_updates == kept["plain"]["averaged"]["averaged.0.num_updates"]
    tensors = [kept["tensors"][f"averaged.0.shadow_params.{i}"] for i in range(6)]
    assert equal(resumed.shadow_params, tensors)


def test_a_validation_of_the_average_leaves_it_as_it_was(loop):
    one = loop()
    average = OfTorch(one.model)
    average.named.train()

    def validate() -> float:
        average.named.train()(one.inputs[200:])  # moves BatchNorm's statistics
        average.named.eval()
        return 1.0

    one.begin()
    with one.controller(validate=validate, averaged=average.named):
        assert average.named.training
        assert int(average.named.module[1].num_batches_tracked) == 0


@pytest.mark.parametrize("kind", [ModelEma, OfTorch])
def test_an_average_that_nobody_named_is_told(loop, kind):
    one = loop(wrecked=WRECKED, make_optimizer=torch.optim.SGD, learning_rate=0.5)
    average = kind(one.model)
    with pytest.warns(TrimtabWarning, match="pass it as averaged=|rolled back to the best") as said:
        wrecked(one, average, watched=[])
    assert any("pass it as averaged=" in str(one.message) for one in said)


def test_averages_of_other_models_and_named_ones_are_not_told(loop):
    one = loop(wrecked=WRECKED, make_optimizer=torch.optim.SGD, learning_rate=0.5)
    other = AveragedModel(nn.Linear(3, 3))
    average = OfTorch(one.model)
    wrecked(one, average, watched=[], averaged=average.named)
    del average
    one = loop(wrecked=WRECKED, make_optimizer=torch.optim.SGD, learning_rate=0.5)
    average = OfTorch(one.model)
    wrecked(one, average, watched=[], model=nn.ModuleList([one.model, average.named.module]))
    assert other.n_averaged == 0


@pytest.mark.parametrize("wrong", [object(), 3.0, [object()], {"decay": 0.9}])
def test_what_holds_no_tensors_is_refused(loop, wrong):
    with pytest.raises(AdapterError, match="holds no tensors of its own"):
        loop().controller(averaged=wrong)


def test_the_model_is_no_average_of_itself(loop):
    one = loop()
    with pytest.raises(AdapterError, match="Sequential at place 0 holds no tensors of its own"):
        one.controller(averaged=one.model)
