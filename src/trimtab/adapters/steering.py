"""The course of one steered run, whatever the framework: windows, validations, decisions, its end.

A driver stands between a framework's loop and this: it counts steps, writes learning rates, and
says when a window ends.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from trimtab.adapters.actuators import Actuator
from trimtab.adapters.snapshots import Snapshots
from trimtab.adapters.validation import Validated, Validates
from trimtab.core.decision import Decision, RunInfo
from trimtab.core.errors import AdapterError
from trimtab.core.guard import Reason
from trimtab.core.hyperparameters import Hyperparameter
from trimtab.core.metrics import Metrics
from trimtab.core.notices import tell
from trimtab.core.protocols import Controller
from trimtab.core.session import Session
from trimtab.core.spec import ControlSpec
from trimtab.rescue.events import Event

_STATE_FORMAT = 1


class Driver(Protocol):
    """The framework's side of a run."""

    @property
    def steps(self) -> int:
        """Steps of the open window that are done; 0 if none is open."""
        ...

    def begin_window(self, multiplier: float, state: Mapping[str, Any] | None) -> None:
        """Write the learning rate of the coming steps.

        Args:
            multiplier: Of the reference, from now on.
            state: None where a window begins; what `state_dict` returned, where a run goes on in
                the middle of one with the learning rates of another process.
        """
        ...

    def validated(self, monitored: float, step: int) -> None:
        """Take in a validation's value, in its own unit, and the steps done by then."""
        ...

    def is_sound(self) -> bool:
        """Return whether all weights and buffers are finite."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the open window and the learning rates."""
        ...


def _nothing() -> None:
    return None


def _restoring(snapshots: Snapshots, afterwards: Callable[[], None]) -> Callable[[], None]:
    def restore() -> None:  # no method: a session that held one would hold its run
        snapshots.restore()
        afterwards()

    return restore


class SteeredRun:
    """One steered run: a session, and what a driver tells it of a training loop.

    A driver is given to it, as `driver`, before it starts. The driver calls `end_window` where the
    window's steps are done, or where a loss was not finite, until `after_last_decision`.

    Args:
        info: What is known of the run; its spec says what is steered.
        policy: Who chooses.
        multipliers: (T,) float64, reference of the learning rate over its start; it may change in
            place.
        actuators: Writes each hyperparameter of the spec; None where the driver does.
        validation: Validates the model.
        snapshots: Where the state of the lowest loss is kept, to go back to.
        kept: Where the best state by the monitored value is kept, if that is not the loss.
        keep_best: Whether the best weights are put back at the end; not in a run that is watched.
        store: Where the record goes; None for nowhere.
        on_decision: Told of each decision once its values are written.
        after_restore: Called when the best state has been put back in the middle of the run.
        after_end: Called when it has been put back at the end.

    Attributes:
        driver: The framework's side, which holds this; a weak reference to it will do.
        restore: Puts the best state back in the middle of the run.
        spec: What is steered.
        session: The session; None before `start`.
        snapshots: Where the state of the lowest loss is kept.
        guarded: Whether a run that goes wrong is rolled back.
        window_steps: Steps of the open window; 0 if none is open.
        after_last_decision: Whether no decision is due any more.
        end_is_meant: Whether somebody asked for the end, so that one before the last step is fine.
        after_validation: Called after each validation, once all that follows from it is done.
    """

    driver: Driver
    restore: Callable[[], None]

    def __init__(
        self,
        info: RunInfo,
        policy: Controller,
        *,
        multipliers: np.ndarray,
        actuators: Sequence[Actuator | None],
        validation: Validates,
        snapshots: Snapshots,
        kept: Snapshots,
        keep_best: bool,
        store: str | None,
        on_decision: Callable[[Decision], None] | None = None,
        after_restore: Callable[[], None] = _nothing,
        after_end: Callable[[], None] = _nothing,
    ) -> None:
        self.spec: ControlSpec = info.spec
        self.session: Session | None = None
        self.snapshots, self._kept = snapshots, kept
        self.guarded = policy.guarded and not info.watch_only
        self.window_steps, self.after_last_decision = 0, False
        self._info, self._policy, self._store = info, policy, store
        self._on_decision = on_decision
        self._multipliers = multipliers
        self._actuators, self._validation = actuators, validation
        self._keep_best = keep_best and not info.watch_only
        self.restore, self._after_end = _restoring(snapshots, after_restore), after_end
        kinds = [item.kind for item in info.spec.hyperparameters]
        self._lr_index = kinds.index("lr") if "lr" in kinds else None
        self._begun_at = 0  # steps done when the open window was opened
        self._warned: set[str] = set()
        self._closed = self.end_is_meant = False
        self.after_validation: Callable[[], None] = _nothing
        self._rollbacks = 0  # that were told
        if not info.watch_only and (keep_best or policy.guarded):
            snapshots.announce(2 if policy.guarded and kept.place != "none" else 1)

    @property
    def monitor(self) -> str:
        """Name of the monitored value."""
        return self._info.monitor

    @property
    def mode(self) -> str | None:
        """Which way it gets better, ``"min"`` or ``"max"``; None until a validation shows it."""
        return self._validation.mode

    @property
    def session_now(self) -> Session:
        """The session of a run that has begun.

        Raises:
            AdapterError: It has not.
        """
        if self.session is None:
            raise AdapterError("the run has not begun; begin training, or enter the with block")
        return self.session

    def record_memory_retries(self, count: int) -> None:
        """Keep in the summary how often a batch was done again because memory ran out."""
        if self.session is not None:
            self.session.summary.memory_retries = count

    def record_events(self, events: Iterable[Event]) -> None:
        """Keep in the summary what the run was rescued from."""
        if self.session is not None:
            self.session.record_events(events)

    def start(self) -> None:
        """Validate, take the first decision and write the first values; later calls do nothing.

        Raises:
            AdapterError: The run is closed.
            MetricError: The validation fails or gives nothing to steer by.
            SpecError: Which way the monitored value gets better is not known.
            StoreError: The store cannot be opened.
        """
        if self._closed:
            raise AdapterError(
                "the run is closed; make a new controller or callback for another one"
            )
        if self.session is not None:
            return
        try:
            first = self._validation.first()  # also shows which way the monitored value goes
        except BaseException:
            self._open().close("failed")
            raise
        self.session = session = self._open()
        made = session.step(Metrics(val_loss=first.loss), first.measured, rank=first.rank)
        self._begin_window()
        self._tell(made)
        self.after_validation()

    def end_window(self, metrics: Metrics, problem: str = "") -> None:
        """Validate, decide, and write the values of the next window.

        Args:
            metrics: Of the window, without its validation.
            problem: Why the values are held, in words; empty to let the controller choose.
        """
        is_lost = self.guarded and not metrics.finite
        seen = Validated(math.nan) if is_lost else self._validated()
        if seen.monitored is not None:
            done = self.session_now.steps_done + int(metrics.steps)
            self.driver.validated(seen.monitored, done)
        if seen.problem:
            self.warn("validate", f"{seen.problem}; the last loss is used and the values are held")
        finite = metrics.finite if math.isfinite(seen.loss) else 0.0
        metrics = metrics._replace(val_loss=seen.loss, finite=finite)
        made = self._decide(metrics, seen, seen.problem or problem)
        self._begin_window()
        self._tell(made)
        self.after_validation()

    def groups_joined(self) -> None:
        """Keep weights that are trained from now on, and write the values of their groups."""
        self.snapshots.extend("weight.")
        self._kept.extend("weight.")
        self._write_values()

    def _validated(self) -> Validated:
        """Validate, and again where the loss is not finite: a sound model is not to blame."""
        seen = self._validation.later()
        if math.isfinite(seen.loss):
            return seen
        is_sound = self.driver.is_sound()
        again = self._validation.later()
        if math.isfinite(again.loss) or not is_sound:
            return again
        problem = f"the validation loss is {again.loss!r} though all weights are finite"
        return Validated(self._validation.last_loss, problem=problem)

    def is_beyond(self) -> bool:
        """Return whether all announced steps are done, and say so if one more comes."""
        session = self.session_now
        beyond = session.steps_done >= session.total_steps
        if beyond:
            self.warn("beyond", _BEYOND.format(total=session.total_steps))
        return beyond

    def finish(self, status: str | None = None) -> None:
        """Finish the record; without a status, put the best weights back if that is wanted."""
        session, self._closed, was_closed = self.session, True, self._closed
        if was_closed or session is None:
            return
        if not self.after_last_decision and session.steps_done == self._begun_at:
            session.count_steps(self.driver.steps)
        session.close(status)
        done, announced = session.steps_done, session.total_steps
        if status is None and not self.end_is_meant and done < _NEARLY_ALL * announced:
            self.warn("too many announced", _TOO_MANY.format(done=done, announced=announced))
        if status is None and (self._keep_best or session.carry.must_restore):
            (self._kept if self._kept.kept else self.snapshots).restore()
            self._after_end()
        self.snapshots.close()
        self._kept.close()

    def leave_weights(self) -> None:
        """Put no weights back any more: the trainer has chosen those that are left."""
        self._keep_best = False
        self.snapshots.close()

    def values(self) -> dict[str, float]:
        """Return each hyperparameter's value at the coming step, reference included."""
        if self.session is None:
            return self._info.start_values()
        step = self.session.steps_done + self.driver.steps
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
        session = self.session_now.state_dict()
        session["schedule"] = list(session["schedule"])  # the live one grows on
        return {
            "format": _STATE_FORMAT,
            "hyperparameters": [item.to_dict() for item in self.spec.hyperparameters],
            "session": session,
            "actuators": [None if a is None else a.starts() for a in self._actuators],
            **self._validation.state_dict(),
            "best": self.snapshots.state_dict(),
            "kept": self._kept.state_dict(),
            **self.driver.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any], *, extend: bool = False) -> None:
        """Go on from `state_dict`, before any step.

        Args:
            state: As it was returned.
            extend: Whether it is of a run of another length, whose values and memory this one
                takes over; the multipliers are this run's then, for the steps done as well.

        Raises:
            AdapterError: Steps were done already, or the state is of other hyperparameters.
            SpecError: The state is of another spec or number of steps.
        """
        self.spec = self._resumed_spec(state)
        self._validation.load_state_dict(state)
        session = self.session or self._open(run=state["session"]["recorder"].get("run"))
        session.spec = self.spec
        in_window = int(state["position"]) if extend else 0
        if extend:
            state = self._adapted(state, session)
        session.load_state_dict(state["session"])
        session.count_steps(in_window)
        self.session = session
        items = self.spec.hyperparameters
        for item, actuator, starts in zip(items, self._actuators, state["actuators"], strict=True):
            if actuator is not None:
                actuator.begin_at(item, starts)
        self.snapshots.load_state_dict(state["best"])
        self._kept.close()  # it may hold what was kept when the block was entered
        self._kept.load_state_dict(state.get("kept"))
        self._begin_window(state)

    # Inside.

    def _adapted(self, state: Mapping[str, Any], session: Session) -> dict[str, Any]:
        """Return a state of a run of another length as one of this run, at a window's begin."""
        done = int(state["session"]["steps_done"]) + int(state["position"])
        return {
            **state,
            **self.driver.state_dict(),
            "session": session.adapted(state["session"], done),
            "position": 0,
        }

    def _resumed_spec(self, state: Mapping[str, Any]) -> ControlSpec:
        """Return the run's spec with the start values of the state that it goes on from."""
        done = 0 if self.session is None else self.session.steps_done + self.driver.steps
        if done:
            raise AdapterError(
                f"load_state_dict: {done} steps were done already; load before the first one"
            )
        items = tuple(Hyperparameter(**fields) for fields in state["hyperparameters"])
        theirs = ", ".join(item.name for item in items)
        mine = ", ".join(item.name for item in self.spec.hyperparameters)
        if theirs != mine:
            raise AdapterError(
                f"load_state_dict: the state steers {theirs}, this run {mine}; "
                "resume with the hyperparameters of the first run"
            )
        return self.spec.with_hyperparameters(items)

    def _open(self, run: int | None = None) -> Session:
        from trimtab.defaults import recorder_for

        info = replace(self._info, mode=self._validation.mode or "min")
        session = Session(
            self.spec,
            self._policy,
            total_steps=self._info.total_steps,
            reference=self._multipliers,
            keep=self.snapshots.keep,
            keep_best=self._kept.keep,
            restore=self.restore,
            recorder=recorder_for(self._store, info, run=run),
            watch_only=self._info.watch_only,
            seed=self._info.seed,
        )
        session.reference = self._multipliers  # shared: it may learn of rates as they come
        return session

    def _tell(self, decision: Decision | None) -> None:
        if decision is not None and self._on_decision is not None:
            self._on_decision(decision)

    def _decide(self, metrics: Metrics, seen: Validated, problem: str) -> Decision | None:
        """Take in a window and decide, hold the values for a problem, or end the run."""
        session = self.session_now
        if not problem:
            made = session.step(metrics, seen.measured, rank=seen.rank)
            self._tell_rollback(made)
            return made
        session.observe(metrics, seen.measured, rank=seen.rank)
        if session.finished:
            session.close()
            return None
        return session.decide(None, note=problem, extra=int(Reason.FROZEN | Reason.HELD))

    def _tell_rollback(self, decision: Decision | None) -> None:
        """Say in one line that the guard went back and why; from the fourth time on in the log."""
        if decision is None or not any(b & Reason.ROLLBACK for b in decision.reason.values()):
            return
        found = decision.metrics
        what = f"the validation loss is {found.val_loss:.4g}" if found.finite else _NOT_FINITE
        best = int(self.session_now.summary.best.get("step", 0))
        line = f"step {decision.step}: {what}; {decision.why()} (those of step {best})"
        self._rollbacks += 1
        if self._rollbacks <= _ALOUD:
            tell(line)
        else:
            logging.getLogger("trimtab").warning(line)

    def _begin_window(self, state: Mapping[str, Any] | None = None) -> None:
        session = self.session_now
        self._begun_at, self.after_last_decision = session.steps_done, session.finished
        self.window_steps = session.window()
        if session.terminated:
            self.warn("diverged", _GIVEN_UP.format(count=int(session.carry.divergences)))
        multiplier = 1.0 if self._lr_index is None else session.multiplier(self._lr_index)
        self.driver.begin_window(multiplier, state)
        self._write_values()

    def _write_values(self) -> None:
        session = self.session_now
        for actuator, offset in zip(self._actuators, session.carry.offset.tolist(), strict=True):
            problem = "" if actuator is None else actuator.write(offset)
            if problem:
                self.warn(problem.partition(":")[0], problem)


_ALOUD = 3
_NOT_FINITE = "a loss is not finite"
_GIVEN_UP = (
    "training diverged {count} times; the best weights are back, the values stay where they are, "
    "and no decision is taken any more: start lower, or look at the data"
)
_NEARLY_ALL = 0.95  # of the announced steps
_TOO_MANY = (
    "only {done} of the {announced} announced steps were done: schedule and decisions were laid "
    "out for all of them, so the learning rate did not come down as it should; announce "
    "total_steps={done} if that is the length of the training"
)
_BEYOND = (
    "more steps than total_steps={total}: the values stay at the last ones; "
    "announce the true number of optimiser steps"
)
