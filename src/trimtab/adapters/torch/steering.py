"""What drives a steered run from a PyTorch loop: what it tells of each step of its optimiser."""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import nn

from trimtab.adapters.actuators import Actuator
from trimtab.adapters.steering import SteeredRun
from trimtab.adapters.torch.actuators import Place, join_groups
from trimtab.adapters.torch.checks import check_clip, check_scaler
from trimtab.adapters.torch.depth import DepthRates
from trimtab.adapters.torch.proofs import Proofs, Replay
from trimtab.adapters.torch.schedules import Rates
from trimtab.adapters.torch.several import parts_of
from trimtab.adapters.torch.statistics import WindowStatistics
from trimtab.adapters.torch.wrappers import scaler_of


class Stepper:
    """Does with the gradients what a loop does between ``backward()`` and ``zero_grad()``.

    Args:
        optimizer: The optimiser.
        model: Whose gradients are clipped together with those of weights outside it.
        clip: Norm at which gradients are clipped; None for no clipping.
        scaler: A ``torch.amp.GradScaler``, or None.
        stepped: What is stepped: the optimiser as the loop has it, which may be wrapped; None for
            the optimiser itself. A wrapper that has a scaler steps that as well.

    Attributes:
        optimizer: The optimiser.
        weights: The optimiser's trainable weights, in the order of its groups.
        clip: The norm now in force.
        scaler: The scaler.

    Raises:
        AdapterError: ``clip`` or ``scaler`` cannot be used.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: nn.Module,
        *,
        clip: float | None = None,
        scaler: Any = None,
        stepped: Any = None,
    ) -> None:
        self._stepped = optimizer if stepped is None else stepped
        inside = scaler_of(self._stepped)
        scaler = inside if scaler is None else scaler
        self._steps_scaler = scaler is not None and scaler is not inside
        check_scaler(scaler)
        self.optimizer, self._model = optimizer, model
        self.clip, self.scaler = check_clip(clip), scaler
        self.weights: list[torch.Tensor] = []
        self._clipped: list[torch.Tensor] = []
        self.look_again()

    def look_again(self) -> None:
        """Find the trainable weights again, for a loop may freeze, unfreeze and add groups."""
        groups = self.optimizer.param_groups
        self.weights = [w for group in groups for w in group["params"] if w.requires_grad]
        self.look_for_clipped()

    def look_for_clipped(self) -> None:
        """Find what is clipped again: every weight, for one may be unfrozen at any step."""
        if self.clip is None:
            return
        # In the model's order, as clip_grad_norm_(model.parameters()) adds the norms up.
        clipped = {id(w): w for w in self._model.parameters()}
        clipped |= {id(w): w for group in self.optimizer.param_groups for w in group["params"]}
        self._clipped = list(clipped.values())

    def clipping(self) -> Place | None:
        """Return where the clipping norm is kept; None if nothing is clipped."""
        if self.clip is None:
            return None
        replay = Replay(None)
        replay.remember(self._clipped_ten)
        return Place(self.clip, lambda: float(self.clip or 0.0), self._set_clip, owner=replay)

    def unscale(self) -> None:
        """Divide the gradients by the scaler's factor, unless the loop did so itself."""
        if self.scaler is None:
            return
        for part in parts_of(self.optimizer):
            try:
                self.scaler.unscale_(part)
            except RuntimeError as error:
                if "already been called" not in str(error):
                    raise

    def update(self) -> None:
        """Clip, step, and update the scaler, which may leave the step out."""
        self.clip_now()
        if not self._steps_scaler:
            self._stepped.step()
        else:
            for part in parts_of(self.optimizer):
                self.scaler.step(part)
            self.scaler.update()

    def clip_now(self) -> None:
        """Clip the gradients, if there is a norm to clip at."""
        if self.clip is not None:
            self._clip(self._clipped)

    def skip(self) -> None:
        """Leave the weights alone, and let the scaler take note."""
        if self.scaler is not None:
            self.unscale()
            with suppress(AssertionError):  # there was no gradient at all
                self.scaler.update()

    def _clip(self, weights: list[torch.Tensor]) -> None:
        nn.utils.clip_grad_norm_(weights, float(self.clip or 0.0))

    def _clipped_ten(self) -> torch.Tensor:
        """Return a gradient of norm 10 as a step clips it, for the proof that it does."""
        weight = torch.zeros(4, requires_grad=True)
        weight.grad = torch.full((4,), 5.0)
        self._clip([weight])
        return weight.grad

    def _set_clip(self, value: float) -> None:
        self.clip = value


class TorchDriver:
    """Drives a run by a loop that tells of each optimiser step, before and after it.

    Args:
        run: The run, not yet begun.
        stepper: The optimiser, its weights, clipping and scaler.
        rates: Writes the learning rates.
        proofs: What is still to be proven before the first update, or None.
        depth: Divides the optimiser's groups by depth for its step, or None.
        actuators: What writes other hyperparameters; those of groups are told of groups that join.

    Attributes:
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
    ) -> None:
        # Weak, so that a controller that is deleted lets go of its model at once.
        run.driver = itself = weakref.proxy(self)
        rates.joined = lambda: itself.groups_joined()
        self.run = run
        self._actuators, self._known_groups = actuators, len(stepper.optimizer.param_groups)
        self.statistics = WindowStatistics()
        self.at_window_start = True
        self._stepper, self._rates = stepper, rates
        self._proofs, self._depth = proofs, depth
        self._cut_short = False  # the open window ends now: its loss was not finite
        self._beyond = False  # all announced steps are done

    # What a loop asks and tells.

    @property
    def looks_at_gradients(self) -> bool:
        """Whether gradients have to be unscaled before `before_update` of the coming step."""
        stepper = self._stepper
        if stepper.scaler is None:
            return False
        return stepper.clip is not None or self.measures_gradients

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
        if self.run.after_last_decision:
            return self._before_free_step(loss)
        self.at_window_start = False
        if not self.statistics.before_step(loss, self._stepper.weights) and self.run.guarded:
            self._cut_short = True
            return False
        if not self._rates.intact():
            self.tell_overwritten()
        return True

    def tell_overwritten(self) -> None:
        """Say, once, that something else set a learning rate that was written here."""
        self.run.warn("lr overwritten", _OVERWRITTEN)

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
        run = self.run
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
            metrics = self.statistics.finish()
            if self._stepper.scaler is not None and metrics.update_ratio == 0:
                # The scaler left the last step out.
                metrics = metrics._replace(update_ratio=math.nan)
            run.end_window(metrics)

    def finish(self, status: str | None = None) -> None:
        """Finish the run; without a status, put the best weights back if that is wanted."""
        self.rejoin_groups()
        self.run.finish(status)
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
        if state is not None:
            position = int(state["position"])
            self._rates.load_state_dict(state["rates"])
            self.statistics.load_state_dict(state["statistics"])
        self._stepper.look_again()
        self._cut_short, self.at_window_start = False, position == 0
        if session.steps_done < session.total_steps:
            self._rates.begin(session.steps_done + position, multiplier)
            if not self._rates.intact():
                optimizer = type(self._stepper.optimizer).__name__
                self.run.warn("lr not taken", _NOT_TAKEN.format(optimizer=optimizer))

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

    def state_dict(self) -> dict[str, Any]:
        """Return the open window and the learning rates: tensors and plain values."""
        return {
            "rates": self._rates.state_dict(),
            "position": self.steps,
            "statistics": self.statistics.state_dict(),
        }

    def _before_free_step(self, loss: torch.Tensor | float) -> bool:
        """Take in a step that no decision follows: after the last one, or after giving up."""
        if not self._beyond and self.run.is_beyond():
            self._beyond = True
            self._rates.hold()
        elif not self._rates.intact():
            self.tell_overwritten()
        with torch.no_grad():
            return not self.run.guarded or math.isfinite(float(loss))


_NOT_TAKEN = (
    "lr: {optimizer} does not hold the learning rate that was written into its parameter groups; "
    "steer the optimiser that owns them, not a wrapper"
)
_OVERWRITTEN = (
    "lr: something else set the learning rate after it was written, and was overruled; if a "
    "scheduler is stepped in the loop, pass it as reference= and do not step it"
)
