"""What drives a steered run from a Keras loop: the losses of the steps that it has done."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from trimtab.adapters.keras.schedules import KerasRates
from trimtab.adapters.steering import SteeredRun
from trimtab.core.metrics import window_metrics


class KerasDriver:
    """Drives a run by a loop that tells of the steps it has done.

    Args:
        run: The run, not yet begun.
        rates: The optimiser's learning rate.
        model: The model.
        before_decision: Called before variables are read and written, in the middle of the run.
        weights: Returns all weights of the model as arrays.

    Attributes:
        run: The run.
    """

    def __init__(
        self,
        run: SteeredRun,
        rates: KerasRates,
        model: Any,
        before_decision: Callable[[], None],
        weights: Callable[[], Sequence[np.ndarray]],
    ) -> None:
        run.driver = weakref.proxy(self)
        self.run = run
        self._rates, self._model, self._before_decision = rates, model, before_decision
        self._weights = weights
        self._losses: list[float | None] = []  # of the open window
        self._lost = ""  # what went wrong in the open window, in words

    # What a loop asks and tells.

    @property
    def remaining(self) -> int:
        """Steps to the end of the open window; 0 if no decision is due any more."""
        run = self.run
        return 0 if run.session_now.finished else max(run.window_steps - len(self._losses), 1)

    def record_steps(
        self, losses: Sequence[float | None], measured: Mapping[str, float] | None = None
    ) -> None:
        """Take in the losses of the steps that were just done, with their updates.

        Ends the window, validates and decides if it is due, or if a loss is not finite.

        Args:
            losses: One a step, in order; None where it is not known.
            measured: Gradient statistics of the last step.
        """
        run = self.run
        self._rates.take_note(self._model, run.session_now.steps_done + self.steps, len(losses))
        known = [loss for loss in losses if loss is not None]
        lost = run.guarded and not all(math.isfinite(loss) for loss in known)
        due = self.remaining
        if not due:
            self._record_free_steps(len(losses), lost)
            return
        self._losses += losses
        if len(losses) < due and not lost:
            return
        self._before_decision()
        session = run.session_now
        is_end = session.steps_done + len(self._losses) >= session.total_steps
        if not (lost or is_end or self._rates.has_just_updated()):
            return  # gradients are gathered: the window ends with the batch that updates
        metrics = window_metrics(self._losses, measured or {})
        if self._rates.overruled():
            run.warn("lr overwritten", _OVERWRITTEN)
        problem, self._lost = self._lost, ""
        run.end_window(metrics, problem)

    def recover(self, error: BaseException, steps: int) -> bool:
        """Go back to the best state because a step failed; return whether that could be done.

        Args:
            error: What the step raised.
            steps: Steps of the failed execution, which `record_steps` is told of afterwards.
        """
        run = self.run
        if not run.guarded or not run.snapshots.kept:
            return False
        step = run.session_now.steps_done + self.steps
        said = str(error).strip() or "no message"
        self._lost = (
            f"step {step} ran out of memory ({said.splitlines()[0]}); the best state is back"
        )
        run.warn("memory", _NO_MEMORY.format(what=self._lost))
        self._go_back(step + steps)
        return True

    # What the run asks and tells.

    @property
    def steps(self) -> int:
        """Steps of the open window that are done."""
        return len(self._losses)

    def begin_window(self, multiplier: float, state: Mapping[str, Any] | None) -> None:
        """Write the learning rate of the coming steps."""
        self._losses = []
        if state is not None:
            self._losses += state["losses"]
            self._rates.resume(float(state["rates"]["start"]), int(state["rates"]["first"]))
        self._rates.begin(self.run.session_now.steps_done + self.steps, multiplier)

    def validated(self, monitored: float, step: int) -> None:
        """Do nothing: no schedule of Keras goes by a metric."""

    def is_sound(self) -> bool:
        """Return whether all weights are finite."""
        self._before_decision()
        floats = (one for one in self._weights() if np.issubdtype(one.dtype, np.floating))
        return all(bool(np.isfinite(one).all()) for one in floats)

    def state_dict(self) -> dict[str, Any]:
        """Return the open window and the learning rates: plain values."""
        rates = {"start": self._rates.start, "first": self._rates.first}
        return {"rates": rates, "losses": list(self._losses)}

    def _record_free_steps(self, steps: int, lost: bool) -> None:
        """Count steps that no decision follows: after the last one, or after giving up."""
        run = self.run
        run.is_beyond()
        run.session_now.count_steps(steps)
        if lost and run.snapshots.kept:
            self._go_back(run.session_now.steps_done)

    def _go_back(self, coming_step: int) -> None:
        self._before_decision()
        self.run.restore()
        self._rates.begin(coming_step, self._rates.multiplier)


_NO_MEMORY = (
    "{what}, and training goes on with the next batch: choose smaller batches if this happens again"
)
_OVERWRITTEN = (
    "lr: something else set the optimiser's learning rate, which is not what the steered step "
    "reads; leave LearningRateScheduler and ReduceLROnPlateau out, as well as lines of train_step "
    "that set it, and pass a schedule as reference="
)
