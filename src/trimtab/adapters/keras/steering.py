"""The course of one steered Keras run: windows, validations, decisions, and its end."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from trimtab.adapters.keras.actuators import Actuator
from trimtab.adapters.keras.schedules import KerasRates
from trimtab.adapters.keras.snapshots import Snapshots
from trimtab.adapters.keras.state import Validation
from trimtab.adapters.steering import GIVEN_UP, decide_on, first_validation, resumed_spec
from trimtab.adapters.validation import Validated
from trimtab.adapters.window import loss_statistics
from trimtab.core.decision import RunInfo
from trimtab.core.errors import AdapterError
from trimtab.core.metrics import Metrics
from trimtab.core.notices import tell
from trimtab.core.protocols import Controller
from trimtab.core.session import Session
from trimtab.core.spec import ControlSpec

_STATE_FORMAT = 1


def window_metrics(losses: Sequence[float | None], measured: Mapping[str, float]) -> Metrics:
    """Return what a window's step losses tell; validation is left to the caller.

    ``train_loss_change`` leaves the middle step of an odd window out.

    Args:
        losses: One loss a step, in order; None where it is not known.
        measured: Gradient statistics of the last step, by field of `Metrics`.
    """
    values = np.array([loss for loss in losses if loss is not None], np.float64)
    fields: dict[str, float] = {"steps": float(len(losses))}
    finite = bool(np.isfinite(values).all())
    fields["finite"] = 1.0 if finite else 0.0
    if values.size:
        fields |= loss_statistics(values)
    return Metrics(**(fields | (dict(measured) if finite else {})))


class Steering:
    """Drives a session from a loop that tells of the steps it has done.

    Args:
        info: What is known of the run; its spec says what is steered.
        policy: Who chooses.
        rates: The optimiser's learning rate.
        actuators: Writes each hyperparameter of the spec; None where the rates do.
        validation: Validates the model.
        snapshots: Where the best state is kept.
        keep_best: Whether the best weights are put back at the end; not in a run that is watched.
        store: Where the record goes; None for nowhere.
        before_decision: Called before variables are read and written, in the middle of the run.
        after_restore: Called when the best state has been put back in the middle of the run.
        after_end: Called when it has been put back at the end.

    Attributes:
        spec: What is steered.
        session: The session; None before `start`.
        snapshots: Where the best state is kept.
        guarded: Whether a run that goes wrong is rolled back.
    """

    def __init__(
        self,
        info: RunInfo,
        policy: Controller,
        *,
        rates: KerasRates,
        actuators: Sequence[Actuator | None],
        validation: Validation,
        snapshots: Snapshots,
        keep_best: bool,
        store: str | None,
        before_decision: Callable[[], None],
        after_restore: Callable[[], None],
        after_end: Callable[[], None],
    ) -> None:
        self.spec: ControlSpec = info.spec
        self.session: Session | None = None
        self.snapshots = snapshots
        self.guarded = policy.guarded and not info.watch_only
        self._info, self._policy, self._store = info, policy, store
        self._rates, self._actuators, self._validation = rates, actuators, validation
        self._before_decision = before_decision
        self._after_restore, self._after_end = after_restore, after_end
        self._keep_best = keep_best and not info.watch_only
        kinds = [item.kind for item in info.spec.hyperparameters]
        self._lr_index = kinds.index("lr") if "lr" in kinds else None
        self._losses: list[float | None] = []  # of the open window
        self._warned: set[str] = set()
        self._lost = ""  # what went wrong in the open window, in words
        self._closed = False

    # What a loop tells.

    def start(self) -> None:
        """Validate, take the first decision and write the first values; later calls do nothing.

        Raises:
            AdapterError: The run is closed.
            MetricError: The validation fails or gives nothing to steer by.
            StoreError: The store cannot be opened.
        """
        if self._closed:
            raise AdapterError("the run is closed; make a new callback or controller for another")
        if self.session is not None:
            return
        session = self._open()
        first = first_validation(session, self._validation)
        self.session = session
        session.step(Metrics(val_loss=first.loss), first.measured)
        self._begin_window()

    @property
    def remaining(self) -> int:
        """Steps to the end of the open window; 0 if no decision is due any more."""
        session = self._session_now
        return 0 if session.finished else max(session.window() - len(self._losses), 1)

    def took(
        self, losses: Sequence[float | None], measured: Mapping[str, float] | None = None
    ) -> None:
        """Take in the losses of the steps that were just done, with their updates.

        Ends the window, validates and decides if it is due, or if a loss is not finite.

        Args:
            losses: One a step, in order; None where it is not known.
            measured: Gradient statistics of the last step.
        """
        session = self._session_now
        known = [loss for loss in losses if loss is not None]
        lost = self.guarded and not all(math.isfinite(loss) for loss in known)
        if session.finished:
            self._take_beyond(session, len(losses), lost)
            return
        due = self.remaining
        self._losses += losses
        if len(losses) >= due or lost:
            self._before_decision()
            self._end_window(measured or {})

    def mend(self, error: BaseException, steps: int) -> bool:
        """Go back to the best state because a step failed; return whether that could be done.

        Args:
            error: What the step raised.
            steps: Steps of the failed execution, which `took` is told of afterwards.
        """
        session = self._session_now
        if not self.guarded or not self.snapshots.kept:
            return False
        step = session.steps_done + len(self._losses)
        told = str(error).strip() or "no message"
        self._lost = (
            f"step {step} ran out of memory ({told.splitlines()[0]}); the best state is back"
        )
        self.warn("memory", _NO_MEMORY.format(what=self._lost))
        self._before_decision()
        self._restore()
        self._rates.begin(step + steps, self._rates.multiplier)
        return True

    def finish(self, status: str | None = None) -> None:
        """Finish the record; without a status, put the best weights back if that is wanted."""
        session, self._closed, was_closed = self.session, True, self._closed
        if was_closed or session is None:
            return
        if self._losses and not session.finished:
            session.tally(len(self._losses))
        session.close(status)
        if status is None and (self._keep_best or session.carry.must_restore):
            self.snapshots.restore()
            self._after_end()
        self.snapshots.close()

    def values(self) -> dict[str, float]:
        """Return each hyperparameter's value at the coming step, reference included."""
        if self.session is None:
            return self._info.start_values()
        step = self.session.steps_done + len(self._losses)
        names = [item.name for item in self.spec.hyperparameters]
        return {name: self.session.value(h, step) for h, name in enumerate(names)}

    def warn(self, topic: str, message: str) -> None:
        """Say something once a topic."""
        if topic not in self._warned:
            self._warned.add(topic)
            tell(message)

    # Resuming.

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to go on in another process, as arrays and plain values.

        Raises:
            AdapterError: The run has not begun.
        """
        session = self._session_now
        return {
            "format": _STATE_FORMAT,
            "hyperparameters": [item.to_dict() for item in self.spec.hyperparameters],
            "session": session.state_dict(),
            "rates": {"start": self._rates.start, "first": self._rates.first},
            "actuators": [None if a is None else a.starts() for a in self._actuators],
            "losses": list(self._losses),
            "last_loss": self._validation.last_loss,
            "best": self.snapshots.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`, before any step.

        Raises:
            AdapterError: Steps were done already, or the state is of other hyperparameters.
            SpecError: The state is of another spec or number of steps.
        """
        done = 0 if self.session is None else self.session.steps_done + len(self._losses)
        self.spec = resumed_spec(self.spec, state, done)
        session = self.session or self._open(run=state["session"]["recorder"].get("run"))
        session.spec = self.spec
        session.load_state_dict(state["session"])
        self.session = session
        self._rates.resume(float(state["rates"]["start"]), int(state["rates"]["first"]))
        items = self.spec.hyperparameters
        for item, actuator, starts in zip(items, self._actuators, state["actuators"], strict=True):
            if actuator is not None:
                actuator.begin_at(item, starts)
        self.snapshots.load_state_dict(state["best"])
        self._validation.last_loss = float(state["last_loss"])
        self._begin_window(list(state["losses"]))

    # Inside.

    @property
    def _session_now(self) -> Session:
        if self.session is None:
            raise AdapterError("the run has not begun; begin training, or enter the with block")
        return self.session

    def _open(self, run: int | None = None) -> Session:
        from trimtab.defaults import recorder_for

        return Session(
            self.spec,
            self._policy,
            total_steps=self._info.total_steps,
            reference=self._rates.multipliers,
            keep=self.snapshots.keep,
            restore=self._restore,
            recorder=recorder_for(self._store, self._info, run=run),
            watch_only=self._info.watch_only,
            seed=self._info.seed,
        )

    def _restore(self) -> None:
        self.snapshots.restore()
        self._after_restore()

    def _begin_window(self, losses: list[float | None] | None = None) -> None:
        session = self._session_now
        self._losses = losses or []
        if session.terminated:
            self.warn("diverged", GIVEN_UP.format(count=int(session.carry.divergences)))
        multiplier = 1.0 if self._lr_index is None else session.multiplier(self._lr_index)
        self._rates.begin(session.steps_done + len(self._losses), multiplier)
        for actuator, offset in zip(self._actuators, session.carry.offset.tolist(), strict=True):
            problem = "" if actuator is None else actuator.write(offset)
            if problem:
                self.warn(problem.partition(":")[0], problem)

    def _end_window(self, measured: Mapping[str, float]) -> None:
        session = self._session_now
        metrics = window_metrics(self._losses, measured)
        if self._rates.overruled():
            self.warn("lr overwritten", _OVERWRITTEN)
        if self.guarded and not metrics.finite:
            seen = Validated(math.nan)
        else:
            seen = self._validation.later()
        problem, self._lost = seen.problem or self._lost, ""
        if seen.problem:
            self.warn("validate", f"{seen.problem}; the last loss is used and the values are held")
        decide_on(session, metrics, seen, problem)
        self._begin_window()

    def _take_beyond(self, session: Session, steps: int, lost: bool) -> None:
        """Count steps that no decision follows: after the last one, or after giving up."""
        if session.steps_done >= session.total_steps:
            self.warn("beyond", _BEYOND.format(total=session.total_steps))
        session.tally(steps)
        if lost and self.snapshots.kept:
            self._before_decision()
            self._restore()
            self._rates.begin(session.steps_done, self._rates.multiplier)


_BEYOND = (
    "more steps than total_steps={total}: the values stay at the last ones; "
    "announce the true number of steps"
)
_NO_MEMORY = (
    "{what}, and training goes on with the next batch: choose smaller batches if this happens again"
)
_OVERWRITTEN = (
    "lr: something else set the optimiser's learning rate, which is not what the steered step "
    "reads; leave LearningRateScheduler and ReduceLROnPlateau out, and pass a schedule as "
    "reference="
)
