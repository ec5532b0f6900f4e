"""Faults that befall a training run, put into it from outside.

A fault acts before a step, on a batch, on a loss, on gradients, on the schedule or on validation;
nothing of the library is patched. The thresholds of the rescue were set on other faults and other
tasks than these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.rescue.tasks import CLASSES, Batch, Run
from trimtab.rescue.events import Fault as Name

__all__ = ["FAULTS", "FREQUENT", "Fault"]


def _unchanged(_age: int, given: Any) -> Any:
    return given


def _nothing(_age: int, _run: Run) -> None:
    return None


@dataclass(frozen=True)
class Fault:
    """One kind of fault; each function is given how many steps ago it began.

    Attributes:
        about: What happens, in words.
        names: What a rescue may call it.
        state: Acts on model and optimiser before a step.
        batch: Returns the batch that is loaded in place of a good one; may raise.
        loss: Returns the loss in place of the true one.
        gradients: Acts on the gradients of a step.
        rate: Returns what the schedule's learning rate is multiplied by.
        validation: Returns what validation gives; may raise.
        most_examples: How many examples fit into memory from then on.
        scaled: Whether the run uses a gradient scaler.
        mendable: Whether a rescue can undo it; what it cannot has to be told.
        needs: Steps after which it can be known.
    """

    about: str
    names: frozenset[Name] = frozenset()
    state: Callable[[int, Run], None] = _nothing
    batch: Callable[[int, Batch], Batch] = _unchanged
    loss: Callable[[int, torch.Tensor], torch.Tensor] = _unchanged
    gradients: Callable[[int, Run], None] = _nothing
    rate: Callable[[int], float] = lambda _age: 1.0
    validation: Callable[[int, float], float] = _unchanged
    most_examples: Callable[[int], int] = lambda _age: 10**9
    scaled: bool = False
    mendable: bool = True
    needs: int = 1


# Batches.


def _with_number(value: float, ages: Callable[[int], bool], rows: slice = slice(0, 1)) -> Any:
    """Return what puts a number into the inputs, or, where those are words, the weights."""

    def change(age: int, batch: Batch) -> Batch:
        if not ages(age):
            return batch
        x, y, w = batch[0].clone(), batch[1], batch[2].clone()
        (x if x.is_floating_point() else w)[rows] = value
        return x, y, w

    return change


def _outlier(age: int, batch: Batch) -> Batch:
    if age != 0:
        return batch
    weights = batch[2].clone()
    weights[1] = 1e5
    return batch[0], batch[1], weights


def _labels(of: Callable[[torch.Tensor, int], torch.Tensor], steps: int) -> Any:
    def change(age: int, batch: Batch) -> Batch:
        return (batch[0], of(batch[1], age), batch[2]) if 0 <= age < steps else batch

    return change


def _raises(steps: int) -> Any:
    def change(age: int, batch: Batch) -> Batch:
        if 0 <= age < steps:
            raise OSError(f"truncated file part-{age}.bin")
        return batch

    return change


def _stuck() -> Any:
    kept: dict[int, Batch] = {}

    def change(age: int, batch: Batch) -> Batch:
        if age < 0:
            kept.clear()
        return kept.setdefault(0, batch) if age >= 0 else batch

    return change


# Losses and gradients.


def _number_as_loss(value: float, steps: int) -> Any:
    def change(age: int, loss: torch.Tensor) -> torch.Tensor:
        return loss * value if 0 <= age < steps else loss

    return change


def _gradients(act: Callable[[Any], None], steps: int) -> Any:
    def change(age: int, run: Run) -> None:
        if 0 <= age < steps:
            act(run.model)

    return change


def _first_entry(weight: str, value: float) -> Callable[[Any], None]:
    def act(model: Any) -> None:
        model.get_parameter(weight).grad.view(-1)[0] = value

    return act


def _all_times(factor: float) -> Callable[[Any], None]:
    def act(model: Any) -> None:
        for weight in model.parameters():
            if weight.grad is not None:
                weight.grad.mul_(factor)

    return act


# State.


def _once(act: Callable[[Run], Any]) -> Any:
    def change(age: int, run: Run) -> None:
        if age == 0:
            with torch.no_grad():
                act(run)

    return change


def _middle(run: Run) -> torch.Tensor:
    """Return the largest weight of the block in the middle."""
    weights: list[torch.Tensor] = list(run.model.middle.parameters())
    return max(weights, key=torch.Tensor.numel)


def _flip_bit(run: Run) -> None:
    """Flip the highest bit of an exponent, as a fault of memory does."""
    _middle(run).view(-1)[:1].view(torch.int32).bitwise_xor_(1 << 30)


def _moments(run: Run, name: str, act: Callable[[torch.Tensor], Any]) -> None:
    for held in run.optimizer.state.values():
        act(held[name])


def _overwritten(factor: float, steps: int) -> Any:
    def change(age: int, run: Run) -> None:
        if 0 <= age < steps:
            for group in run.optimizer.param_groups:
                group["lr"] *= factor

    return change


# Validation.


def _bad_validation(answer: Callable[[], float]) -> Any:
    seen: list[bool] = []

    def change(age: int, value: float) -> float:
        if age < 0:
            seen.clear()
        if age < 0 or seen:
            return value
        seen.append(True)
        return answer()

    return change


def _refuse() -> float:
    raise RuntimeError("validation file is corrupt")


def _named(*names: Name) -> frozenset[Name]:
    return frozenset(names)


_NOT_FINITE = _named(Name.INPUT_NOT_FINITE, Name.LOSS_NOT_FINITE, Name.GRADIENT_NOT_FINITE)
_SPIKE = _named(Name.LOSS_SPIKE, Name.GRADIENT_SPIKE, Name.MODEL_DAMAGED)
_BROKEN = _named(
    Name.WEIGHTS_NOT_FINITE, Name.WEIGHTS_JUMPED, Name.MODEL_DAMAGED, Name.OPTIMIZER_JUMPED
)
_BUFFERS = _named(Name.BUFFERS_NOT_FINITE, Name.BUFFERS_JUMPED)
_OPTIMIZER = _named(Name.OPTIMIZER_NOT_FINITE, Name.OPTIMIZER_JUMPED) | _BROKEN
_DIVERGED = _named(Name.DIVERGED, Name.RATE_OVERWRITTEN, Name.MODEL_DAMAGED, Name.DATA_CHANGED)

FAULTS: Mapping[str, Fault] = {
    "nan in a row": Fault(
        "one row of one batch is NaN",
        _NOT_FINITE,
        batch=_with_number(float("nan"), lambda a: a == 0),
    ),
    "inf in a row": Fault(
        "one row of one batch is infinite",
        _NOT_FINITE,
        batch=_with_number(float("inf"), lambda a: a == 0),
    ),
    "nan rows, 3 batches": Fault(
        "half of the rows of three batches in a row are NaN",
        _NOT_FINITE,
        batch=_with_number(float("nan"), lambda a: 0 <= a < 3, slice(0, 16)),
    ),
    "bad row comes back": Fault(
        "a NaN row every 23 steps",
        _NOT_FINITE,
        batch=_with_number(float("nan"), lambda a: a >= 0 and a % 23 == 0),
    ),
    "every batch nan": Fault(
        "a NaN row in every batch from then on",
        _NOT_FINITE | {Name.EVERY_BATCH},
        batch=_with_number(float("nan"), lambda a: a >= 0),
        mendable=False,
    ),
    "huge row": Fault(
        "one row of one batch is 1e4", _SPIKE | _BUFFERS, batch=_with_number(1e4, lambda a: a == 0)
    ),
    "huge rows, 4 batches": Fault(
        "half of the rows of four batches are 1e3",
        _SPIKE | _BUFFERS | {Name.DATA_CHANGED},
        batch=_with_number(1e3, lambda a: 0 <= a < 4, slice(0, 16)),
    ),
    "outlier": Fault("one example weighs 100,000 times", _SPIKE, batch=_outlier),
    "labels rotated": Fault(
        "labels are those of another class for 40 batches",
        _named(Name.DATA_CHANGED),
        batch=_labels(lambda y, age: (y + 1 + age) % CLASSES, 40),
        mendable=False,
        needs=20,
    ),
    "labels random": Fault(
        "labels are drawn by chance for 40 batches",
        _named(Name.DATA_CHANGED),
        batch=_labels(lambda y, age: (y * (age * 7 + 3) + torch.arange(len(y))) % CLASSES, 40),
        mendable=False,
        needs=20,
    ),
    "loader raises": Fault("a file cannot be read", _named(Name.LOADER_RAISED), batch=_raises(1)),
    "loader raises 5 times": Fault(
        "five files in a row cannot be read", _named(Name.LOADER_RAISED), batch=_raises(5)
    ),
    "loader stuck": Fault(
        "the same batch from then on",
        _named(Name.STUCK_LOADER),
        batch=_stuck(),
        mendable=False,
        needs=14,
    ),
    "loss inf": Fault(
        "the loss is infinite once", _NOT_FINITE, loss=_number_as_loss(float("inf"), 1)
    ),
    "loss nan twice": Fault(
        "the loss is NaN at two steps", _NOT_FINITE, loss=_number_as_loss(float("nan"), 2)
    ),
    "loss times 1e6": Fault(
        "the loss overflows its scale once", _SPIKE, loss=_number_as_loss(1e6, 1)
    ),
    "gradient nan": Fault(
        "one entry of the head's gradient is NaN",
        _NOT_FINITE,
        gradients=_gradients(_first_entry("head.weight", float("nan")), 1),
    ),
    "gradient -inf": Fault(
        "one entry of a bias' gradient is minus infinity",
        _NOT_FINITE,
        gradients=_gradients(_first_entry("head.bias", -float("inf")), 1),
    ),
    "gradients times 1e6": Fault(
        "all gradients are a million times too large at three steps",
        _SPIKE,
        gradients=_gradients(_all_times(1e6), 3),
    ),
    "gradients negated": Fault(
        "all gradients point uphill for 15 steps",
        _DIVERGED | _SPIKE,
        gradients=_gradients(_all_times(-1.0), 15),
        needs=12,
    ),
    "gradients zero": Fault(
        "all gradients are zero from then on",
        _named(Name.ZERO_GRADIENTS),
        gradients=_gradients(_all_times(0.0), 10**9),
        mendable=False,
        needs=12,
    ),
    "bias nan": Fault(
        "one bias becomes NaN",
        _BROKEN,
        state=_once(lambda run: run.model.head.bias[:1].fill_(float("nan"))),
    ),
    "input weight inf": Fault(
        "one weight of the first layer becomes infinite",
        _BROKEN,
        state=_once(lambda run: run.model.first.weight.view(-1)[-1:].fill_(float("inf"))),
    ),
    "bit flip": Fault("one bit of an exponent flips", _BROKEN, state=_once(_flip_bit)),
    "layer zeroed": Fault(
        "the head's weights become zero",
        _BROKEN,
        state=_once(lambda run: run.model.head.weight.zero_()),
    ),
    "layer redrawn": Fault(
        "a layer's weights become noise three times as large",
        _BROKEN,
        state=_once(lambda run: _middle(run).normal_(0.0, 3.0 * float(_middle(run).std()))),
    ),
    "layer times 30": Fault(
        "a layer's weights become 30 times as large",
        _BROKEN,
        state=_once(lambda run: _middle(run).mul_(30.0)),
    ),
    "layer negated": Fault(
        "the head's weights change their sign",
        _BROKEN,
        state=_once(lambda run: run.model.head.weight.mul_(-1.0)),
    ),
    "running mean shifted": Fault(
        "BatchNorm's running mean becomes 1e6",
        _BUFFERS,
        state=_once(lambda run: run.model.norm.running_mean.fill_(1e6)),
        needs=10,
    ),
    "running variance nan": Fault(
        "one running variance of BatchNorm becomes NaN",
        _BUFFERS,
        state=_once(lambda run: run.model.norm.running_var[:1].fill_(float("nan"))),
        needs=10,
    ),
    "moment nan": Fault(
        "one first moment of Adam becomes NaN",
        _OPTIMIZER,
        state=_once(
            lambda run: run.optimizer.state[run.model.head.weight]["exp_avg"][0].fill_(float("nan"))
        ),
    ),
    "moments times 1e5": Fault(
        "Adam's first moments become 100,000 times as large",
        _OPTIMIZER | _SPIKE,
        state=_once(lambda run: _moments(run, "exp_avg", lambda held: held.mul_(1e5))),
    ),
    "second moments lost": Fault(
        "Adam's second moments become zero",
        _OPTIMIZER | _SPIKE | _DIVERGED,
        state=_once(lambda run: _moments(run, "exp_avg_sq", torch.Tensor.zero_)),
    ),
    "second moments inf": Fault(
        "Adam's second moments become infinite: nothing learns any more",
        _OPTIMIZER,
        state=_once(lambda run: _moments(run, "exp_avg_sq", lambda held: held.fill_(float("inf")))),
        needs=10,
    ),
    "rate times 300": Fault(
        "something multiplies the learning rate by 300 at three steps",
        _named(Name.RATE_OVERWRITTEN),
        state=_overwritten(300.0, 3),
    ),
    "rate zero": Fault(
        "something sets the learning rate to zero from then on",
        _named(Name.RATE_OVERWRITTEN),
        state=_overwritten(0.0, 10**9),
    ),
    "schedule runs away": Fault(
        "the schedule grows by 8 % a step from then on",
        _DIVERGED,
        rate=lambda age: 1.08 ** max(0, age),
        needs=40,
    ),
    "schedule jumps": Fault(
        "the schedule is 100 times too high from then on",
        _DIVERGED | _BROKEN | _SPIKE,
        rate=lambda age: 100.0 if age >= 0 else 1.0,
        needs=12,
    ),
    "scaler dies": Fault(
        "a layer overflows in half precision for 40 steps",
        _named(Name.DEAD_SCALER),
        mendable=False,
        gradients=_gradients(_first_entry("head.weight", float("inf")), 40),
        scaled=True,
        needs=20,
    ),
    "memory runs out": Fault(
        "more than 12 examples do not fit from then on",
        _named(Name.OUT_OF_MEMORY),
        most_examples=lambda age: 12 if age >= 0 else 10**9,
    ),
    "memory runs out once": Fault(
        "more than 20 examples do not fit at one step",
        _named(Name.OUT_OF_MEMORY),
        most_examples=lambda age: 20 if age == 0 else 10**9,
    ),
    "validation nan": Fault(
        "validation gives NaN once; the model is sound",
        validation=_bad_validation(lambda: float("nan")),
    ),
    "validation raises": Fault("validation raises once", validation=_bad_validation(_refuse)),
}

FREQUENT = (
    "nan in a row",
    "loss nan twice",
    "gradient nan",
    "gradients times 1e6",
    "bias nan",
    "outlier",
    "layer times 30",
    "moments times 1e5",
    "rate times 300",
    "every batch nan",
)
"""The ten kinds that public issue trackers tell of most, for the other frameworks."""
