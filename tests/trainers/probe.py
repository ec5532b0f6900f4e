"""What is asked of each trainer, and what is seen from inside its model and its optimiser."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

STEPS = 24
DECISIONS = 6
FAULT_AT = 13  # the step whose loss is not a number
STOP_AT = 11  # steps done when a run is interrupted, in the middle of a window
# With these put in the place of what was measured, the third validation is the best one.
RIGGED = (2.0, 1.7, 1.4, 1.5, 1.6, 1.7, 1.8)
BEST = 2

Weights = dict[str, torch.Tensor]


class InterruptedRun(Exception):  # noqa: N818 (no error: it stands for a process that was killed)
    """Ends a training in the middle."""


@dataclass
class Probe:
    """Looks into one training, and puts faults into it.

    A forward pass in training mode is a step (``forwards`` of them, where a trainer does several).
    """

    policy: str | None = "random"
    fault_at: int | None = None
    stop_at: int | None = None
    rigged: bool = False
    saved: Mapping[str, Any] | None = None
    folder: Path | None = None  # where a trainer writes checkpoints of its own
    forwards: int = 1
    rates: list[list[float]] = field(default_factory=list)  # used, of each step and group
    validated: list[tuple[float, Weights]] = field(default_factory=list)
    after_fault: Weights | None = None
    passes: int = 0
    controller: Any = None
    model: Any = None
    optimizer: Any = None

    @property
    def options(self) -> dict[str, Any]:
        """What the tests tell a controller beside what a user would."""
        return {"policy": self.policy, "decisions": DECISIONS, "seed": 3}

    @property
    def start(self) -> int:
        """Steps that were done before."""
        return 0 if self.saved is None else int(self.saved["step"])

    @property
    def checkpoint(self) -> str | None:
        """What a trainer goes on from that writes its own checkpoints."""
        return None if self.saved is None else str(self.saved["checkpoint"])

    def steps(self) -> Iterator[int]:
        """Yield the numbers of the steps that are left."""
        yield from range(self.start, STEPS)

    def look_into(self, model: nn.Module, optimizer: Any) -> None:
        """Watch a training from inside; go on where another one was interrupted."""
        self.model, self.optimizer = model, optimizer
        self.passes = self.start * self.forwards
        if self.saved is not None and "model" in self.saved:
            model.load_state_dict(self.saved["model"])
            if optimizer is not None:
                optimizer.load_state_dict(self.saved["optimizer"])
        model.register_forward_pre_hook(self._before_forward)
        model.register_forward_hook(self._after_forward)
        if optimizer is not None:
            self.look_at_steps(optimizer)

    def look_at_steps(self, optimizer: torch.optim.Optimizer) -> None:
        """Note the rates that each update uses."""
        optimizer.register_step_post_hook(
            lambda one, *_: self.rates.append([float(g["lr"]) for g in one.param_groups])
        )

    def resume(self, controller: Any) -> None:
        """Hand over what the interrupted run left."""
        self.controller = controller
        if self.saved is not None:
            controller.load_state_dict(self.saved["controller"])

    def validation(self, validate: Callable[[], float]) -> Callable[[], float]:
        """Return a validation that is watched, and perhaps says what it should."""

        def watched() -> float:
            return self.measured(float(validate()))

        return watched

    def loss_on(
        self, model: nn.Module, loss_fn: Callable[..., Any], x: Any, y: Any
    ) -> Callable[[], float]:
        """Return a validation by the loss of one batch."""

        @self.validation
        @torch.no_grad()
        def validate() -> float:
            model.eval()
            return float(loss_fn(model(x), y))

        return validate

    def measured(self, loss: float) -> float:
        """Note a validation loss and the weights that it was measured with."""
        value = RIGGED[len(self.validated)] if self.rigged else loss
        self.validated.append((value, weights(self.model)))
        return value

    def _before_forward(self, model: nn.Module, inputs: Any) -> None:
        if not (model.training and torch.is_grad_enabled()):
            return
        step, part = divmod(self.passes, self.forwards)
        if part:
            return
        if self.fault_at is not None and step == self.fault_at + 1:
            self.after_fault = weights(model)
        if step == self.stop_at and self.folder is not None:
            self.saved = {"step": step, "checkpoint": str(self.folder / f"checkpoint-{step}")}
            raise InterruptedRun
        if step == self.stop_at:
            self.saved = {
                "step": step,
                "model": copy.deepcopy(model.state_dict()),
                "optimizer": copy.deepcopy(self.optimizer.state_dict()),
                "controller": copy.deepcopy(self.controller.state_dict()),
            }
            raise InterruptedRun

    def _after_forward(self, model: nn.Module, inputs: Any, output: Any) -> Any:
        if not (model.training and torch.is_grad_enabled()):
            return None
        step = self.passes // self.forwards
        self.passes += 1
        if step != self.fault_at:
            return None
        # A batch that alone is to blame would be skipped; the model is damaged as well.
        next(w for w in self.model.parameters() if w.requires_grad).data.fill_(torch.nan)
        return spoilt(output)


def spoilt(output: Any) -> Any:
    """Return a model's output with nothing but NaN in it, attached to the same gradients."""
    if isinstance(output, torch.Tensor):
        return output * torch.nan if output.is_floating_point() else output
    if isinstance(output, list | tuple):
        return type(output)(spoilt(one) for one in output)
    for name, value in output.items() if isinstance(output, Mapping) else ():
        if isinstance(value, torch.Tensor):
            output[name] = spoilt(value)
    return output


def weights(model: nn.Module) -> Weights:
    """Return what a model has learned, copied."""
    return {name: one.detach().clone() for name, one in model.named_parameters()}


def are_equal(one: Weights, other: Weights) -> bool:
    """Whether two models are alike bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)
