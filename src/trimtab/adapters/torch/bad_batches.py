"""Batches that alone are to blame for a loss that is not finite, left out of a guarded run.

A loop of the user's own and a training run of a task ask the same object, so that a policy meets
in use what it met in training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from trimtab.adapters.torch.guarded_training import Batch
from trimtab.adapters.torch.statistics import WindowStatistics, is_elsewhere
from trimtab.adapters.torch.step_guard import StepGuard
from trimtab.adapters.torch.stepper import Stepper
from trimtab.rescue.events import Event


class BadBatches:
    """Leaves out a step whose loss is not finite while weights and optimiser state are sound.

    The window is told of the loss before it in its place. What else is wrong, and twenty such
    batches in a row, are left to the run's guard, which goes back to the best state. On an
    accelerator, where losses are read together some steps later, no step is left out.

    Args:
        stepper: The optimiser, its weights, model and scaler.
        statistics: Of the open window.
    """

    def __init__(self, stepper: Stepper, statistics: WindowStatistics) -> None:
        self._guard = StepGuard(
            stepper, stepper.model, act=True, on_giving_up="go-on", snapshots="none"
        )
        self._statistics = statistics
        self._usual = math.nan  # mean loss of the last window that had a finite one

    @property
    def events(self) -> list[Event]:
        """The batches that were left out, in order; each has a `sentence`."""
        return self._guard.engine.events

    def begin_window(self) -> None:
        """Keep what a bad forward pass may poison, which was sound when it was validated."""
        self._guard.begin_window()

    def end_window(self, train_loss: float) -> None:
        """Take in the mean loss of a window."""
        if math.isfinite(train_loss):
            self._usual = train_loss

    def leaves_out(
        self, loss: torch.Tensor | float, step: int, batch_of: Callable[[], Batch | None]
    ) -> bool:
        """Return whether a step's update is left out for its batch alone, and tell so.

        Args:
            loss: Of the step.
            step: How many were done before.
            batch_of: Returns what the step was done with, to name what in it is bad, if known.
        """
        if is_elsewhere(loss):
            return False
        value = float(loss.detach() if isinstance(loss, torch.Tensor) else loss)
        losses = self._statistics.losses
        instead = losses[-1] if losses else self._usual
        if math.isfinite(value) or not math.isfinite(instead):
            return False
        self._guard.note_batch(batch_of())
        if not self._guard.leaves_out(value, step, losses):
            return False
        losses.append(instead)
        return True

    def close(self) -> None:
        """Say if batches were bad until the guard had to go back."""
        self._guard.close()

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to go on in another process: plain values and tensors."""
        usual = self._usual if math.isfinite(self._usual) else None
        return {"usual": usual, **self._guard.streak()}

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Go on from `state_dict`; None, of a run of before there was one, changes nothing."""
        if state is not None:
            self._usual = math.nan if state["usual"] is None else float(state["usual"])
            self._guard.load_streak(state)
