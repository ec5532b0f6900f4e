"""Guarding each update of a PyTorch loop, whatever schedules it."""

from __future__ import annotations

import functools
import logging
import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import torch
from torch import nn

from trimtab.adapters.torch.guarded_training import (
    Batch,
    GuardedTorchTraining,
    tensors_in,
    total_norm,
)
from trimtab.adapters.torch.stepper import Stepper
from trimtab.core.errors import AdapterError, RescueError
from trimtab.core.notices import tell
from trimtab.rescue.engine import RescueEngine
from trimtab.rescue.events import Event, Fault, Treatment

ON_GIVING_UP = ("stop", "raise", "go-on")
_ENTRIES = 64  # of a tensor of a batch
_BATCH_EVERY = 4  # steps between two looks at what is loaded
_OF_BATCH = frozenset(
    {
        Fault.LOSS_NOT_FINITE,
        Fault.GRADIENT_NOT_FINITE,
        Fault.INPUT_NOT_FINITE,
        Fault.LOSS_SPIKE,
        Fault.GRADIENT_SPIKE,
        Fault.EVERY_BATCH,
    }
)
_ALOUD = 3  # events of one kind; later ones go to the log
_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


def _contained(
    otherwise: _Result,
) -> Callable[
    [Callable[Concatenate[StepGuard, _Given], _Result]],
    Callable[Concatenate[StepGuard, _Given], _Result],
]:
    """Let an error of the guard's own switch it off, and return this in its place."""

    def contain(
        method: Callable[Concatenate[StepGuard, _Given], _Result],
    ) -> Callable[Concatenate[StepGuard, _Given], _Result]:
        @functools.wraps(method)
        def call(self: StepGuard, *args: _Given.args, **kwargs: _Given.kwargs) -> _Result:
            if self.failed:
                return otherwise
            try:
                return method(self, *args, **kwargs)
            except RescueError:
                raise
            except Exception as error:  # noqa: BLE001 - a guard must never stop a user's run
                self._fail(error)
                return otherwise

        return cast("Callable[Concatenate[StepGuard, _Given], _Result]", call)

    return contain


class StepGuard:
    """Does each update of a loop, unless something broke; then what mends it.

    An error of its own is told once, and switches it off; the loop goes on as without it.

    Args:
        stepper: The optimiser, its weights, clipping and scaler.
        model: The model.
        act: False for a dry run.
        on_giving_up: ``"stop"``, ``"raise"`` or ``"go-on"``.
        snapshots: Where recent states are kept.

    Attributes:
        engine: What judges each step.
        training: The state that it looks at.
        loss: Of the last step that was done; 0 before the first.
        failed: Whether an error of its own switched it off.
        keep: Called with an event that a batch is blamed for, before it is told; or None.

    Raises:
        AdapterError: There is no such way of giving up.
        UnknownNameError: There is no such place for snapshots.
    """

    def __init__(
        self, stepper: Stepper, model: nn.Module, *, act: bool, on_giving_up: str, snapshots: str
    ) -> None:
        if on_giving_up not in ON_GIVING_UP:
            raise AdapterError(f"on_giving_up={on_giving_up!r}: one of {', '.join(ON_GIVING_UP)}")
        self._stepper, self._acts, self._on_giving_up = stepper, act, on_giving_up
        self.training = GuardedTorchTraining(model, stepper.optimizer, snapshots)
        itself = weakref.proxy(self)  # so that a run that is deleted lets go of its model at once
        self.engine = RescueEngine(self.training, act=act, told=lambda event: itself._tell(event))
        self.loss = 0.0
        self.keep: Callable[[Event], None] | None = None
        self._last_entries: list[torch.Tensor] = []
        self._same: list[torch.Tensor] | None = None  # the batch before, where it may be repeated
        self._begun = self._off = self.failed = False
        self._uncut: list[Any] = []  # learning rates to put back after the step
        scaler = stepper.scaler
        self._scale = 0.0 if scaler is None else float(scaler.get_scale())

    @property
    def stopped(self) -> bool:
        """Whether no update is done any more."""
        gave_up = self.engine.gave_up is not None and self._on_giving_up == "stop"
        return self._acts and gave_up and not self.failed

    @_contained(None)
    def begin(self) -> None:
        """Take the first snapshot; later calls do nothing."""
        if not self._begun:
            self._begun = True
            self.engine.begin()

    def update(self, loss: torch.Tensor | float) -> bool:
        """Do the update of a step, or what mends it; return whether it was done.

        Raises:
            RescueError: Nothing helps, and the user wants to be stopped then.
        """
        self._stepper.unscale()
        done = self.before(loss)
        if done:
            self._stepper.update()
        else:
            self._stepper.skip()
        self.after(done)
        return done

    @_contained(True)
    def before(self, loss: torch.Tensor | float) -> bool:
        """Return whether a step's update is to be done; its gradients are unscaled.

        Learning rates that were cut are written for this step, and put back by `after`.
        """
        self.begin()
        engine, training = self.engine, self.training
        if self._off:
            return True
        if self.stopped:
            training.undo_forward()
            return False
        value, norm = self._read(loss)
        training.gradient_sums[0] += norm
        training.gradient_sums[1] += norm * norm
        self._note_batch()
        done = engine.before_update(value, norm, scaled=self._stepper.scaler is not None)
        if done:
            self.loss = value if math.isfinite(value) else self.loss
            training.remember(value)
            training.updates += 1
            self._cut_rates()
        return done

    def after(self, done: bool) -> None:
        """Look at the state after a step, and put cut learning rates back.

        Raises:
            RescueError: Nothing helps, and the user wants to be stopped then.
        """
        self._put_rates_back()
        self._look_after(done)

    @_contained(None)
    def _look_after(self, done: bool) -> None:
        if self._off:
            return
        if not self.stopped:
            self._mend_scale()
        self.engine.after_update(done)
        self.training.batch = None
        self._give_up()

    def _put_rates_back(self) -> None:
        groups, rates, self._uncut = self._stepper.optimizer.param_groups, self._uncut, []
        for group, rate in zip(groups, rates, strict=False):
            _write(group, rate)

    def _fail(self, error: Exception) -> None:
        self.failed = self._off = True
        self._put_rates_back()
        tell(
            f"the guard failed ({type(error).__name__}: {error}) and is off; the run goes on "
            "without it, so please report this"
        )

    @_contained(None)
    def begin_window(self) -> None:
        """Keep what a bad forward pass may poison, of a run whose guard keeps the snapshots."""
        self.training.keep_statistics()

    @_contained(False)
    def leaves_out(self, loss: float, step: int, before: Sequence[float]) -> bool:
        """Return whether a batch alone is to blame for a loss that is not finite, and tell so.

        For a run whose guard goes back to its best state where more is broken.

        Args:
            loss: Of the step.
            step: How many were done before.
            before: Losses of the steps before it.
        """
        engine, training = self.engine, self.training
        if self._off or engine.gave_up is not None:
            return False
        training.look_anew()
        if training.not_finite(forward=True) is not None:
            return False
        engine.go_on_at(step, before)
        left_out = not engine.before_update(loss, math.nan)
        training.batch = None
        return left_out

    def streak(self) -> dict[str, Any]:
        """Return how many batches in a row were left out, and what begun windows kept."""
        bad, step = self.engine.streak
        return {
            "bad": bad,
            "step": step,
            "gave_up": self.engine.gave_up is not None,
            "statistics": self.training.kept_statistics(),
        }

    @_contained(None)
    def load_streak(self, state: Mapping[str, Any]) -> None:
        """Go on from `streak`."""
        self.engine.streak = int(state["bad"]), int(state["step"])
        self._off = bool(state["gave_up"])
        self.training.load_statistics(state["statistics"])

    @_contained(None)
    def look(self, *, last: bool = False) -> None:
        """Look at the state now, and put a good one back if it is damaged.

        Args:
            last: The loop has ended: no batch is run again.
        """
        if not self._off and not self.stopped:
            self.engine.look(last=last)

    @_contained(None)
    def check_rates(self, expected: Sequence[float]) -> None:
        """Overrule a learning rate that is not the one expected."""
        groups = self._stepper.optimizer.param_groups
        found = [float(group["lr"]) for group in groups]
        if found != list(expected) and len(found) == len(expected):
            self.tell_overwritten(f"{found} where the schedule says {list(expected)}")
            if self._acts:
                for group, rate in zip(groups, expected, strict=True):
                    _write(group, rate)

    @_contained(None)
    def tell_overwritten(self, evidence: str = "it was not the schedule's") -> None:
        """Record that a learning rate was overruled."""
        self.engine.tell(Fault.RATE_OVERWRITTEN, evidence, "", Treatment.OVERRULE)

    @_contained(None)
    def tell(self, fault: Fault, evidence: str, treatment: Treatment) -> None:
        """Record what was done about a fault outside of the steps."""
        if not self._off:
            self.engine.tell(fault, evidence, "", treatment)

    @_contained(None)
    def note_batch(self, batch: Batch | None) -> None:
        """Remember the batch whose forward pass comes; None where it is not known."""
        self.training.batch = batch

    @_contained(None)
    def undo_forward(self) -> None:
        """Put back the buffers that a forward pass moved, which is done again."""
        self.training.undo_forward()

    @_contained(None)
    def close(self) -> None:
        """Let go of the snapshots, and say if the rescue gave up."""
        self.training.close()
        if self.engine.gave_up is not None:
            tell(f"the rescue gave up: {self.engine.gave_up.sentence()}")

    def _read(self, loss: torch.Tensor | float) -> tuple[float, float]:
        """Return the loss and the norm of all gradients."""
        norm = self._stepper.clipping_norm()
        if norm is None:
            norm = total_norm([w.grad for w in self._stepper.weights if w.grad is not None])
        if norm.device.type != "cpu" and isinstance(loss, torch.Tensor):
            pair = torch.stack([loss.detach().reshape(()).float(), norm])  # one wait, not two
            value, norm_value = pair.tolist()
            return value, norm_value
        value = loss.item() if isinstance(loss, torch.Tensor) else float(loss)
        return value, norm.item()

    def _cut_rates(self) -> None:
        """Write lower learning rates for one step, where that was decided."""
        groups = self._stepper.optimizer.param_groups
        rate = max(float(group["lr"]) for group in groups)
        factor = self.engine.factor(rate)
        self.training.rate_sum += rate * factor
        if factor != 1.0:
            self._uncut = [_multiplied(group, factor) for group in groups]

    def _note_batch(self) -> None:
        """Tell the engine whether the batch is the one before again.

        Every fourth step a few of its entries are compared with those of four steps ago; where
        they are equal, whole batches are compared from step to step.
        """
        batch = self.training.batch
        if batch is None or (self._same is None and self.engine.step % _BATCH_EVERY):
            return
        tensors = [one for one in tensors_in(batch.data) if one.device.type == "cpu"]
        if self._same is not None:
            equal = _equal(tensors, self._same)
            self._same = [one.clone() for one in tensors] if equal else None
            self.engine.note_batch(equal)
        else:
            entries, before = [_some(one) for one in tensors], self._last_entries
            self._last_entries = entries
            if entries and _equal(entries, before):
                self._same = [one.clone() for one in tensors]

    def _mend_scale(self) -> None:
        """Put a gradient scaler's scale back where overflows drove it below 1."""
        scaler = self._stepper.scaler
        if scaler is None:
            return
        scale = float(scaler.get_scale())
        if scale >= 1.0:
            self._scale = max(scale, 1.0)
        elif self._acts and self._scale > 0:
            scaler.update(self._scale)

    def _give_up(self) -> None:
        if self.engine.gave_up is None or not self._acts:
            return
        if self._on_giving_up == "raise":
            raise RescueError(self.engine.gave_up.sentence())
        self._off = self._on_giving_up == "go-on"

    def _tell(self, event: Event) -> None:
        if self.keep is not None and event.fault in _OF_BATCH and self.training.batch is not None:
            self.keep(event)
        same = sum(one.fault is event.fault for one in self.engine.events)
        if same <= _ALOUD:
            tell(event.sentence())
        else:
            logging.getLogger("trimtab").warning(event.sentence())


def _some(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy of some entries of a tensor, from all of it."""
    flat = tensor.detach().reshape(-1) if tensor.layout is torch.strided else tensor.new_zeros(0)
    return flat[:: max(1, len(flat) // _ENTRIES)].clone()


def _equal(some: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> bool:
    same_kind = len(some) == len(others) and all(map(_same_kind, some, others))
    return same_kind and all(map(torch.equal, some, others))


def _same_kind(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and one.layout == other.layout


def _multiplied(group: dict[str, Any], factor: float) -> Any:
    """Multiply a group's learning rate and return what it was."""
    rate = group["lr"]
    if isinstance(rate, torch.Tensor):
        before = rate.clone()
        rate.mul_(factor)
        return before
    group["lr"] = rate * factor
    return rate


def _write(group: dict[str, Any], rate: Any) -> None:
    if isinstance(group["lr"], torch.Tensor):
        group["lr"].fill_(rate) if isinstance(rate, float) else group["lr"].copy_(rate)
    else:
        group["lr"] = rate
