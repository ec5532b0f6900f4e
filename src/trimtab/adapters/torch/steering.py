"""What drives a steered run from a PyTorch loop: what it tells of each step of its optimiser."""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from trimtab.adapters.actuators import Actuator
from trimtab.adapters.steering import SteeredRun
from trimtab.adapters.torch.actuators import join_groups
from trimtab.adapters.torch.bad_batches import BadBatches
from trimtab.adapters.torch.depth import DepthRates
from trimtab.adapters.torch.first_steps import FirstSteps
from trimtab.adapters.torch.guarded_training import Batch
from trimtab.adapters.torch.proofs import Proofs
from trimtab.adapters.torch.schedules import Rates
from trimtab.adapters.torch.statistics import (
    CHECK_EVERY,
    WindowStatistics,
    is_elsewhere,
    kept_for_later,
    read_together,
)
from trimtab.adapters.torch.step_guard import StepGuard
from trimtab.adapters.torch.stepper import Stepper
from trimtab.rescue.events import Event


class TorchDriver:
    """Drives a run by a loop that tells of each optimiser step, before and after it.

    Args:
        run: The run, not yet begun.
        stepper: The optimiser, its weights, clipping and scaler.
        rates: Writes the learning rates.
        proofs: What is still to be proven before the first update, or None.
        depth: Divides the optimiser's groups by depth for its step, or None.
        actuators: What writes other hyperparameters; those of groups are told of groups that join.
        guard: Rescues the loop from its accidents, or None.
        first: Watches the first steps, or None.
        alone: Whether one process trains; several would leave out batches each by itself.

    Attributes:
        guard: The same.
        run: The run.
        statistics: What the open window tells; it says which steps are ordinary.
        at_window_start: Whether the coming step is the first after a decision.
    """

    def __init__(
        self,
        run: SteeredRun,
        *,
        stepper: Stepper,
        rates: Rates,
        proofs: Proofs | None = None,
        depth: DepthRates | None = None,
        actuators: Sequence[Actuator | None] = (),
        guard: StepGuard | None = None,
        first: FirstSteps | None = None,
        alone: bool = True,
    ) -> None:
        # Weak, so that a controller that is deleted lets go of its model at once.
        run.driver = itself = weakref.proxy(self)
        rates.joined = lambda: itself.groups_joined()
        self.run = run
        self._actuators, self._known_groups = actuators, len(stepper.optimizer.param_groups)
        self.statistics = WindowStatistics(travels=run.spec.version > 1)  # 1 shows none of it
        self.at_window_start = True
        self._stepper, self._rates = stepper, rates
        self._proofs, self._depth, self.guard = proofs, depth, guard
        self._first = first
        self._leaves_out_batches = guard is None and run.guarded and alone
        self._bad_batches: BadBatches | None = None  # made with the first window
        self._batch: Batch | None = None
        self._done = True  # the step's update, with a guard
        self._cut_short = False  # the open window ends now: its loss was not finite
        self._beyond = False  # all announced steps are done
        self._free_losses: list[torch.Tensor] = []  # of steps after that, on an accelerator

    # What a loop asks and tells.

    @property
    def looks_at_gradients(self) -> bool:
        """Whether gradients have to be unscaled before `before_update` of the coming step."""
        stepper = self._stepper
        if stepper.scaler is None:
            return False
        return stepper.clip is not None or self.measures_gradients or self.guard is not None

    @property
    def measures_gradients(self) -> bool:
        """Whether the coming step's gradients are measured, which has to be before clipping."""
        run = self.run
        return not run.after_last_decision and self.statistics.steps + 2 >= run.window_steps

    @property
    def validates_next(self) -> bool:
        """Whether the coming `after_update` ends a window, and calls ``validate()``."""
        run = self.run
        if run.after_last_decision or self._cut_short:
            return False
        return self.statistics.steps == run.window_steps

    def before_update(self, loss: torch.Tensor | float) -> bool:
        """Take in a step's loss and gradients; return whether its update may be done.

        Raises:
            AdapterError: Before the first update: a value that is steered is used by nobody.
        """
        if self._proofs is not None:
            proofs, self._proofs = self._proofs, None
            proofs.finish()
        if self._first is not None:
            self._first.before(loss, self._stepper.weights)
        if self.guard is not None:
            if not self._rates.intact():  # before a guard lowers them for this step
                self.tell_overwritten()
            self._done = self.guard.before(loss)
            loss = self.guard.loss  # the window is told of the steps that were done
        if self.run.after_last_decision:
            return self._before_free_step(loss)
        if self._leaves_out(loss):
            return False
        self.at_window_start = False
        if not self.statistics.before_step(loss, self._stepper.weights) and self.run.guarded:
            self._cut_short = True
            return False
        if self._first is not None:
            self.statistics.ordinary_until = 0  # the next step comes here as well
        if self.guard is None and not self._rates.intact():
            self.tell_overwritten()
        return self._done

    @property
    def events(self) -> list[Event]:
        """What was rescued so far."""
        if self.guard is not None:
            return self.guard.engine.events
        return [] if self._bad_batches is None else self._bad_batches.events

    def note_batch(self, batch: Batch) -> None:
        """Remember the batch whose forward pass comes, to name what in it is bad."""
        self._batch = batch
        if self.guard is not None:
            self.guard.note_batch(batch)

    def _leaves_out(self, loss: torch.Tensor | float) -> bool:
        """Leave a step out of a steered run whose loss is not finite for its batch alone."""
        if self._bad_batches is None:
            return False
        step = self.run.session_now.steps_done + self.statistics.steps
        if not self._bad_batches.leaves_out(loss, step, lambda: self._batch):
            return False
        self.at_window_start = False
        return True

    def tell_overwritten(self) -> None:
        """Say that something else set a learning rate that was written here; once, or an event."""
        if self.guard is None:
            self.run.warn("lr overwritten", _OVERWRITTEN)
        else:
            self.guard.tell_overwritten()

    def divide_groups(self) -> None:
        """Give each layer its own rate, right before the optimiser's step."""
        if self._depth is not None:
            self._depth.divide()

    def rejoin_groups(self) -> None:
        """Give the optimiser its own groups back, after its step or in its place."""
        if self._depth is not None:
            self._depth.rejoin()

    def after_update(self) -> None:
        """Go on to the next step's values; at the end of a window validate and decide."""
        run, self._batch = self.run, None
        if self.guard is not None:
            self.guard.after(self._done)
        if self._first is not None:
            self._first.after()
            if not self._first.watching:
                self._first = None
                self.statistics.expect_ordinary_steps()
        if run.after_last_decision:
            run.session_now.count_steps(1)
            if not self._beyond:
                self._rates.advance()
            return
        ends = self.statistics.steps == run.window_steps
        if ends and not self._cut_short:
            self.statistics.after_step(self._stepper.weights)
        self._rates.advance()
        if ends or self._cut_short:
            self._note_rescued()
            metrics = self.statistics.finish()
            if self._bad_batches is not None:
                self._bad_batches.end_window(float(metrics.train_loss))
            if self._stepper.scaler is not None and metrics.update_ratio == 0:
                # The scaler left the last step out.
                metrics = metrics._replace(update_ratio=math.nan)
            self._record_events()  # before the last window closes the record
            run.end_window(metrics)

    def _record_events(self) -> None:
        if self.events:
            self.run.record_events(self.events)

    def finish(self, status: str | None = None) -> None:
        """Finish the run; without a status, put the best weights back if that is wanted."""
        self.rejoin_groups()
        if self._first is not None:
            self._first.end()
        if status is None:
            self._free_steps_went_well()
        self._note_rescued()
        self._record_events()
        self.run.finish(status)
        for guard in (self.guard, self._bad_batches):
            if guard is not None:
                guard.close()
        self.at_window_start, self.statistics.ordinary_until = True, 0

    # What the run asks and tells.

    @property
    def steps(self) -> int:
        """Steps of the open window that are done."""
        return 0 if self.run.after_last_decision else self.statistics.steps

    def begin_window(self, multiplier: float, state: Mapping[str, Any] | None) -> None:
        """Write the learning rates of the coming steps, and look for the trainable weights."""
        session, position = self.run.session_now, 0
        self.statistics.begin(max(self.run.window_steps, 1))
        if self._first is not None:
            self._first.begin()
        if state is not None:
            position = int(state["position"])
            self._rates.load_state_dict(state["rates"])
            self.statistics.load_state_dict(state["statistics"])
        if self._leaves_out_batches:
            self._begin_for_bad_batches(state)
        self._stepper.look_again()
        self._cut_short, self.at_window_start = False, position == 0
        if session.steps_done < session.total_steps:
            self._rates.begin(session.steps_done + position, multiplier)
            if not self._rates.intact():
                optimizer = type(self._stepper.optimizer).__name__
                self.run.warn("lr not taken", _NOT_TAKEN.format(optimizer=optimizer))

    def _begin_for_bad_batches(self, state: Mapping[str, Any] | None) -> None:
        if self._bad_batches is None:
            self._bad_batches = BadBatches(self._stepper, self.statistics)
        self._bad_batches.begin_window()
        if state is not None:
            self._bad_batches.load_state_dict(state.get("bad_batches"))

    def _note_rescued(self) -> None:
        """Look at the state before it is validated, and let the summary go by the rescue."""
        if self.guard is not None and self.run.session is not None:
            self.guard.look()
            mended = self.guard.engine.gave_up is None
            self.run.session.rescued = None if self.guard.failed else mended

    def groups_joined(self) -> None:
        """Steer in all respects the groups that joined the optimiser, before its next step."""
        optimizer = self._stepper.optimizer
        known, self._known_groups = self._known_groups, len(optimizer.param_groups)
        join_groups(self._actuators, optimizer, known)
        self._stepper.look_for_clipped()
        if self.run.session is not None:
            self.run.groups_joined()

    def validated(self, monitored: float, step: int) -> None:
        """Let a scheduler that goes by the metric step, and tell the session what is ahead."""
        self._rates.validated(monitored)
        if not self._rates.known_ahead:
            session = self.run.session_now
            now = float(self._rates.multipliers[min(step, session.total_steps - 1)])
            ahead = np.array(session.carry.reference_at)
            ahead[session.decisions_made :] = math.log10(max(now, 1e-3)) * session.carry.is_lr
            session.carry = session.carry._replace(reference_at=ahead)

    @torch.no_grad()
    def is_sound(self) -> bool:
        """Return whether all weights and buffers are finite, once a guard has looked at them."""
        if self.guard is not None:
            self.guard.look()
        model = self._stepper.model
        held = [*self._stepper.weights, *model.buffers()]
        return all(bool(torch.isfinite(one).all()) for one in held if one.is_floating_point())

    def state_dict(self) -> dict[str, Any]:
        """Return the open window and the learning rates: tensors and plain values."""
        return {
            "rates": self._rates.state_dict(),
            "position": self.steps,
            "statistics": self.statistics.state_dict(),
            "bad_batches": None if self._bad_batches is None else self._bad_batches.state_dict(),
        }

    def _before_free_step(self, loss: torch.Tensor | float) -> bool:
        """Take in a step that no decision follows: after the last one, or after giving up."""
        if not self._beyond and self.run.is_beyond():
            self._beyond = True
            self._rates.hold()
        elif self.guard is None and not self._rates.intact():
            self.tell_overwritten()
        if not self.run.guarded:
            return self._done
        if isinstance(loss, torch.Tensor) and is_elsewhere(loss):
            self._free_losses.append(kept_for_later(loss))
            return len(self._free_losses) < CHECK_EVERY or self._free_steps_went_well()
        with torch.no_grad():
            return self._done and math.isfinite(float(loss))

    def _free_steps_went_well(self) -> bool:
        """Read the losses that wait; put the best state back if one was not finite."""
        losses, self._free_losses = self._free_losses, []
        finite = not losses or all(map(math.isfinite, read_together(losses)))
        if not finite:
            self.run.restore()
        return finite


_NOT_TAKEN = (
    "lr: {optimizer} does not hold the learning rate that was written into its parameter groups; "
    "steer the optimiser that owns them, not a wrapper"
)
_OVERWRITTEN = (
    "lr: something else set the learning rate after it was written, and was overruled; if a "
    "scheduler is stepped in the loop, pass it as reference= and do not step it"
)
