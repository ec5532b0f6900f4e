"""Rivals that measure a batch's loss at several learning rates now and then: GeN and polling."""

from __future__ import annotations

import contextlib
import inspect
import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from trimtab.core.metrics import FORWARD_CHARGE
from trimtab.core.protocols import Task
from trimtab.search.methods.base import Assignment, Method, Outcome
from trimtab.search.methods.starts import Start
from trimtab.search.methods.trial import Trial

if TYPE_CHECKING:
    import torch
    from torch import nn

_GEN_START, _GEN_EVERY = 1e-4, 4  # as in its README


class _Batches:
    """The training batches of a PyTorch run, and their losses at the weights as they are.

    Attributes:
        forward: Training examples that were evaluated beside the steps, without a gradient.
        loss: Of the latest batch before its step.

    Args:
        run: Its loss is listened to from now on.
    """

    def __init__(self, run: Any) -> None:
        self._run, self._loss = run, run.setup.loss
        self._rows: np.ndarray = np.zeros(0, np.int64)
        self._values: Mapping[str, float] = {}
        self.forward, self.loss = 0, math.nan
        run.setup = replace(run.setup, loss=self._listen)

    def latest(self) -> torch.Tensor:
        """Return the loss of the batch that is being stepped on, at the weights as they are."""
        return self._again(self._rows)

    def fresh(self) -> Callable[[], torch.Tensor]:
        """Take a batch for itself, and return what gives its loss."""
        rows = next(self._run.setup.batches)
        return lambda: self._again(rows)

    def _again(self, rows: np.ndarray) -> torch.Tensor:
        self.forward += len(rows)
        loss: torch.Tensor = self._loss(self._run.model, rows, self._values)
        return loss

    def _listen(
        self, model: nn.Module, rows: np.ndarray, values: Mapping[str, float]
    ) -> torch.Tensor:
        self._rows, self._values = rows, values
        loss: torch.Tensor = self._loss(model, rows, values)
        self.loss = float(loss.detach())
        return loss


@dataclass
class _Loss:
    loss: torch.Tensor


class _AsNetwork:
    """A run in the form in which GeN takes networks and batches of text: both are asked for a loss.

    Args:
        parameters: What is trained.
        batches: Of the run.
    """

    def __init__(self, parameters: Callable[[], Any], batches: _Batches) -> None:
        self.parameters, self._batches = parameters, batches

    def __iter__(self) -> _AsNetwork:
        return self

    def __next__(self) -> _AsNetwork:
        self._loss = self._batches.fresh()
        return self

    def __len__(self) -> int:
        return 1  # a batch that has two parts would be taken for images and labels

    def to(self, device: object) -> Mapping[str, Any]:
        """Return the batch as keywords of the network: it is known already."""
        del device
        return {}

    def __call__(self) -> _Loss:
        return _Loss(self._loss())


class _Steps:
    """Steps of an optimiser that a rival takes, in the place of its own; rates are kept between.

    Args:
        optimizer: Its method ``step`` is replaced.
        rate: Where all groups begin.
        take: Told of each step; takes steps by ``optimizer.step()`` and leaves the new rates.
    """

    def __init__(self, optimizer: Any, rate: float, take: Callable[[int], None]) -> None:
        self._optimizer, self._own, self._take = optimizer, optimizer.step, take
        self._rates, self._done = [rate] * len(optimizer.param_groups), 0
        optimizer.step = self._step

    def _step(self) -> None:
        self._done += 1
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate  # the run has set its own
        self._optimizer.step = self._own
        self._take(self._done)
        self._optimizer.step = self._step
        self._rates = [float(group["lr"]) for group in self._optimizer.param_groups]


def _follow(trial: Trial, batches: _Batches, rate: str, lr: float, length: int) -> None:
    """Train until the steps are done or a whole run's charge is spent, measurements included."""
    while not trial.finished and trial.steps < length and trial.spent < 1:
        steps = min(trial.next_end(), length) - trial.steps
        before = batches.forward
        trial.train({rate: np.full(steps, lr)}, steps)
        trial.pay(FORWARD_CHARGE * (batches.forward - before))


def _gen(assignment: Assignment) -> Outcome:
    """Train the task's optimiser with GeN's parabola every fourth step, from its README's rate.

    Three batches are evaluated for a parabola, so the run is shorter by what that costs.
    """
    from GeN import lr_parabola

    task, rate = assignment.task, assignment.starts.rate
    trial = Trial(task, seed=assignment.seed, windows=assignment.windows)
    run: Any = trial.run
    batches, optimizer = _Batches(run), run.optimizer
    network = _AsNetwork(run.model.parameters, batches)
    length = max(1, int(task.total_steps / (1 + 3 * FORWARD_CHARGE / _GEN_EVERY)))

    def take(step: int) -> None:
        if step % _GEN_EVERY == 0:
            decay = max(0.0, 1 - step / length)
            with contextlib.redirect_stdout(io.StringIO()):  # it prints what it cannot fit
                lr_parabola(network, optimizer, tr_iter=network, task="NLU", scale=decay)
        optimizer.step()

    _Steps(optimizer, _GEN_START, take)
    _follow(trial, batches, rate, _GEN_START, length)
    return Outcome((trial.result(Start({rate: _GEN_START}, math.nan)),), 0)


def _polling(assignment: Assignment) -> Outcome:
    """Train the task's optimiser with efficient relative polling around the start's rate."""
    import torch
    from efficient_polling_lr_scheduler import EfficientRelativePollingOptimizer

    task, starts = assignment.task, assignment.starts
    rate = float(assignment.start.values[starts.rate])
    trial = Trial(task, seed=assignment.seed, windows=assignment.windows)
    run: Any = trial.run
    batches, optimizer = _Batches(run), run.optimizer
    for group in optimizer.param_groups:
        group["lr"] = rate
    polling = EfficientRelativePollingOptimizer(optimizer, run.model)

    def closure() -> tuple[torch.Tensor, float]:
        # The run has the gradient, clipped, and the loss that is asked for first.
        if torch.is_grad_enabled():
            return torch.tensor(batches.loss, requires_grad=True), -batches.loss
        loss = batches.latest()
        return loss, -float(loss)

    def take(step: int) -> None:
        del step
        optimizer.zero_grad = lambda set_to_none=True: None  # noqa: ARG005 - the run's gradient
        try:
            polling.step(closure)
        finally:
            del optimizer.zero_grad

    _Steps(optimizer, rate, take)
    _follow(trial, batches, starts.rate, rate, task.total_steps)
    return Outcome((trial.result(assignment.start),), 0)


def _no_loss_to_measure(task: Task) -> str | None:
    """Say why a batch's loss cannot be measured anew in the middle of a run, if it cannot."""
    if "optimizer" not in inspect.signature(task.start).parameters:
        return "the task's start() takes no optimizer=, so its runs are none of PyTorch's"
    return None


GEN = Method(
    "gen-optim",
    "the task's optimiser, its rate by GeN's parabola through three losses",
    _gen,
    uses_start=False,
    requires=("torch", "GeN", "scipy", "sklearn"),
    refuses=_no_loss_to_measure,
)
POLLING = Method(
    "efficient-polling-lr-scheduler",
    "the task's optimiser, its rate polled among three by a batch's loss",
    _polling,
    requires=("torch", "efficient_polling_lr_scheduler"),
    refuses=_no_loss_to_measure,
)
