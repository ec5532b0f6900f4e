"""The course of one steered PyTorch run: windows, validations, decisions, and its end.

One step of a PyTorch optimiser: unscaling, clipping, the step itself, the scaler's update.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import nn

from trimtab.adapters.steering import GIVEN_UP, decide_on, first_validation, resumed_spec
from trimtab.adapters.torch.actuators import Actuator, Place
from trimtab.adapters.torch.checks import check_clip, check_scaler
from trimtab.adapters.torch.depth import DepthRates
from trimtab.adapters.torch.proofs import Proofs, Replay
from trimtab.adapters.torch.schedules import Rates
from trimtab.adapters.torch.snapshots import Snapshots
from trimtab.adapters.torch.state import Validation
from trimtab.adapters.torch.statistics import WindowStatistics
from trimtab.adapters.validation import Validated
from trimtab.core.decision import RunInfo
from trimtab.core.errors import AdapterError
from trimtab.core.metrics import Metrics
from trimtab.core.notices import tell
from trimtab.core.protocols import Controller
from trimtab.core.session import Session
from trimtab.core.spec import ControlSpec


class Stepper:
    """Does with the gradients what a loop does between ``backward()`` and ``zero_grad()``.

    Args:
        optimizer: The optimiser.
        model: Whose gradients are clipped together with those of weights outside it.
        clip: Norm at which gradients are clipped; None for no clipping.
        scaler: A ``torch.amp.GradScaler``, or None.

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
    ) -> None:
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
        if self.clip is None:
            return
        # In the model's order, as clip_grad_norm_(model.parameters()) adds the norms up.
        clipped = {id(w): w for w in self._model.parameters() if w.requires_grad}
        self._clipped = list((clipped | {id(w): w for w in self.weights}).values())

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
        try:
            self.scaler.unscale_(self.optimizer)
        except RuntimeError as error:
            if "already been called" not in str(error):
                raise

    def update(self) -> None:
        """Clip, step, and update the scaler, which may leave the step out."""
        if self.clip is not None:
            self._clip(self._clipped)
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()

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


_STATE_FORMAT = 1


class Steering:
    """Drives a session from a loop that tells of each optimiser step, before and after it.

    Args:
        info: What is known of the run; its spec says what is steered.
        policy: Who chooses.
        stepper: The optimiser, its weights, clipping and scaler.
        rates: Writes the learning rates.
        actuators: Writes each hyperparameter of the spec; None where the rates do.
        validation: The user's ``validate()``.
        snapshots: Where the best state is kept.
        keep_best: Whether the best weights are put back at the end; not in a run that is watched.
        store: Where the record goes; None for nowhere.
        proofs: What is still to be proven before the first update, or None.
        depth: Divides the optimiser's groups by depth for its step, or None.

    Attributes:
        spec: What is steered.
        session: The session; None before `start`.
        snapshots: Where the best state is kept.
        statistics: What the open window tells; it says which steps are ordinary.
        at_window_start: Whether the coming step is the first after a decision.
    """

    def __init__(
        self,
        info: RunInfo,
        policy: Controller,
        *,
        stepper: Stepper,
        rates: Rates,
        actuators: Sequence[Actuator | None],
        validation: Validation,
        snapshots: Snapshots,
        keep_best: bool,
        store: str | None,
        proofs: Proofs | None = None,
        depth: DepthRates | None = None,
    ) -> None:
        self.spec: ControlSpec = info.spec
        self.session: Session | None = None
        self.snapshots = snapshots
        self.at_window_start = True
        self._info, self._policy, self._store = info, policy, store
        self._stepper, self._rates, self._actuators = stepper, rates, actuators
        self._validation = validation
        self._guarded = policy.guarded and not info.watch_only
        self._keep_best = keep_best and not info.watch_only
        kinds = [item.kind for item in info.spec.hyperparameters]
        self._lr_index = kinds.index("lr") if "lr" in kinds else None
        self.statistics = WindowStatistics()
        self._proofs, self._depth = proofs, depth
        self._warned: set[str] = set()
        self._closed = False
        self._window = 0  # optimiser steps of the open window
        self._begun_at = 0  # steps done when it was opened
        self._cut_short = False  # the open window ends now: its loss was not finite
        self._coasting = False  # no decision is due any more
        self._beyond = False  # all announced steps are done
        if not info.watch_only and (keep_best or policy.guarded):
            snapshots.announce()

    # What a loop tells.

    def start(self) -> None:
        """Validate, take the first decision and write the first values; later calls do nothing.

        Raises:
            AdapterError: The run is closed.
            MetricError: ``validate()`` fails or gives nothing to steer by.
            StoreError: The store cannot be opened.
        """
        if self._closed:
            raise AdapterError("step: the run is closed; make a new controller for another one")
        if self.session is not None:
            return
        session = self._open()
        first = first_validation(session, self._validation)
        self.session = session
        session.step(Metrics(val_loss=first.loss), first.measured)
        self._begin_window()

    @property
    def memory_retries(self) -> int:
        """How often a batch was done again because memory ran out; kept in the summary."""
        return 0 if self.session is None else self.session.summary.memory_retries

    @memory_retries.setter
    def memory_retries(self, count: int) -> None:
        if self.session is not None:
            self.session.summary.memory_retries = count

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
        return not self._coasting and self._position + 2 >= self._window

    @property
    def validates_next(self) -> bool:
        """Whether the coming `after_update` ends a window, and calls ``validate()``."""
        return not self._coasting and not self._cut_short and self._position == self._window

    def before_update(self, loss: torch.Tensor | float) -> bool:
        """Take in a step's loss and gradients; return whether its update may be done.

        Raises:
            AdapterError: Before the first update: a value that is steered is used by nobody.
        """
        if self._proofs is not None:
            proofs, self._proofs = self._proofs, None
            proofs.finish()
        if self._coasting:
            return self._before_coasting(loss)
        self.at_window_start = False
        if not self.statistics.before_step(loss, self._stepper.weights) and self._guarded:
            self._cut_short = True
            return False
        if not self._rates.intact():
            self.tell_overwritten()
        return True

    def tell_overwritten(self) -> None:
        """Say, once, that something else set a learning rate that was written here."""
        self._warn("lr overwritten", _OVERWRITTEN)

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
        if self._coasting:
            self._session_now.tally(1)
            if not self._beyond:
                self._rates.advance()
            return
        ends = self._position == self._window
        if ends and not self._cut_short:
            self.statistics.after_step(self._stepper.weights)
        self._rates.advance()
        if ends or self._cut_short:
            self._end_window()

    def finish(self, status: str | None = None) -> None:
        """Finish the record; without a status, put the best weights back if that is wanted."""
        self.rejoin_groups()
        session, self._closed, was_closed = self.session, True, self._closed
        if was_closed or session is None:
            return
        if not self._coasting and session.steps_done == self._begun_at:
            session.tally(self._position)
        session.close(status)
        if status is None and (self._keep_best or session.carry.must_restore):
            self.snapshots.restore()
        self.snapshots.close()
        self.at_window_start, self.statistics.ordinary_until = True, 0

    def values(self) -> dict[str, float]:
        """Return each hyperparameter's value at the coming step, reference included."""
        if self.session is None:
            return self._info.start_values()
        step = self.session.steps_done + self._position
        names = [item.name for item in self.spec.hyperparameters]
        return {name: self.session.value(h, step) for h, name in enumerate(names)}

    # Resuming.

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to go on in another process, as tensors and plain values.

        Raises:
            AdapterError: The run has not begun.
        """
        if self.session is None:
            raise AdapterError("state_dict: the run has not begun; call it inside the with block")
        session = self.session.state_dict()
        session["schedule"] = list(session["schedule"])  # the live one grows on
        return {
            "format": _STATE_FORMAT,
            "hyperparameters": [item.to_dict() for item in self.spec.hyperparameters],
            "session": session,
            "rates": self._rates.state_dict(),
            "actuators": [None if a is None else a.starts() for a in self._actuators],
            "position": self._position,
            "statistics": self.statistics.state_dict(),
            "last_loss": self._validation.last_loss,
            "best": self.snapshots.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`, before any step.

        Raises:
            AdapterError: Steps were done already, or the state is of other hyperparameters.
            SpecError: The state is of another spec or number of steps.
        """
        done = 0 if self.session is None else self.session.steps_done + self._position
        self.spec = resumed_spec(self.spec, state, done)
        session = self.session or self._open(run=state["session"]["recorder"].get("run"))
        session.spec = self.spec
        session.load_state_dict(state["session"])
        self.session = session
        self._rates.load_state_dict(state["rates"])
        items = self.spec.hyperparameters
        for item, actuator, starts in zip(items, self._actuators, state["actuators"], strict=True):
            if actuator is not None:
                actuator.begin_at(item, starts)
        self.snapshots.load_state_dict(state["best"])
        self._validation.last_loss = float(state["last_loss"])
        self._begin_window(int(state["position"]))
        self.statistics.load_state_dict(state["statistics"])

    # Inside.

    @property
    def _position(self) -> int:
        """How many optimiser steps of the open window are done; no window is open once coasting."""
        return 0 if self._coasting else self.statistics.steps

    @property
    def _session_now(self) -> Session:
        if self.session is None:
            raise AdapterError("step: the run has not begun; enter the with block first")
        return self.session

    def _open(self, run: int | None = None) -> Session:
        from trimtab.defaults import recorder_for

        session = Session(
            self.spec,
            self._policy,
            total_steps=self._info.total_steps,
            reference=self._rates.multipliers,
            keep=self.snapshots.keep,
            restore=self.snapshots.restore,
            recorder=recorder_for(self._store, self._info, run=run),
            watch_only=self._info.watch_only,
            seed=self._info.seed,
        )
        session.reference = self._rates.multipliers  # shared: it may learn of rates as they come
        return session

    def _begin_window(self, position: int = 0) -> None:
        session = self._session_now
        self._stepper.look_again()
        self._begun_at, self._cut_short = session.steps_done, False
        self.at_window_start = position == 0
        self._coasting = session.finished
        if session.terminated:
            self._warn("diverged", GIVEN_UP.format(count=int(session.carry.divergences)))
        if session.steps_done < session.total_steps:
            multiplier = 1.0 if self._lr_index is None else session.multiplier(self._lr_index)
            self._rates.begin(session.steps_done + position, multiplier)
            if not self._rates.intact():
                optimizer = type(self._stepper.optimizer).__name__
                self._warn("lr not taken", _NOT_TAKEN.format(optimizer=optimizer))
        for actuator, offset in zip(self._actuators, session.carry.offset.tolist(), strict=True):
            problem = "" if actuator is None else actuator.write(offset)
            if problem:
                self._warn(problem.partition(":")[0], problem)
        self._window = 0 if self._coasting else session.window()
        self.statistics.begin(max(self._window, 1))

    def _end_window(self) -> None:
        session = self._session_now
        metrics = self.statistics.finish()
        if self._stepper.scaler is not None and metrics.update_ratio == 0:
            metrics = metrics._replace(update_ratio=math.nan)  # the scaler left the last step out
        if self._guarded and not metrics.finite:
            seen = Validated(math.nan)
        else:
            seen = self._validation.later()
        if seen.monitored is not None:
            self._follow_metric(seen.monitored, session.steps_done + int(metrics.steps))
        if seen.problem:
            self._warn("validate", f"{seen.problem}; the last loss is used and the values are held")
        decide_on(session, metrics, seen, seen.problem)
        self._begin_window()

    def _follow_metric(self, monitored: float, step: int) -> None:
        """Let a scheduler that goes by the metric step, and tell the session what is ahead."""
        self._rates.validated(monitored)
        if not self._rates.known_ahead:
            session = self._session_now
            now = float(self._rates.multipliers[min(step, session.total_steps - 1)])
            ahead = np.array(session.carry.reference_at)
            ahead[session.decisions_made :] = math.log10(max(now, 1e-3)) * session.carry.is_lr
            session.carry = session.carry._replace(reference_at=ahead)

    def _before_coasting(self, loss: torch.Tensor | float) -> bool:
        """Take in a step that no decision follows: after the last one, or after giving up."""
        session = self._session_now
        if not self._beyond and session.steps_done >= session.total_steps:
            self._beyond = True
            self._warn("beyond", _BEYOND.format(total=session.total_steps))
            self._rates.hold()
        elif not self._rates.intact():
            self.tell_overwritten()
        with torch.no_grad():
            return not self._guarded or math.isfinite(float(loss))

    def _warn(self, topic: str, message: str) -> None:
        """Say something once a topic."""
        if topic not in self._warned:
            self._warned.add(topic)
            tell(message)


_BEYOND = (
    "more steps than total_steps={total}: the values stay at the last ones; "
    "announce the true number of optimiser steps"
)
_NOT_TAKEN = (
    "lr: {optimizer} does not hold the learning rate that was written into its parameter groups; "
    "steer the optimiser that owns them, not a wrapper"
)
_OVERWRITTEN = (
    "lr: something else set the learning rate after it was written, and was overruled; if a "
    "scheduler is stepped in the loop, pass it as reference= and do not step it"
)
