"""A training run that is driven piece by piece, for methods that interrupt, prune or exchange."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from trimtab.core.metrics import FORWARD_CHARGE, Metrics, loss_from_validation
from trimtab.core.protocols import Snapshot, Task, TrainingRun
from trimtab.core.references import reference_multipliers
from trimtab.core.rewards import normalised, potential
from trimtab.core.spec import ControlSpec
from trimtab.search.methods.base import DecisionSchedule, SingleRun
from trimtab.search.methods.starts import Start

_EXPLOSION = ControlSpec().explosion


class Checkpoint(NamedTuple):
    """A trial's weights and what it has kept.

    Attributes:
        weights: Where training stands.
        best: The best weights on validation so far.
        best_value: Their monitored value.
        best_loss: Their loss.
        best_step: Their step.
        step: Steps done.
    """

    weights: Snapshot
    best: Snapshot
    best_value: float
    best_loss: float
    best_step: int
    step: int


class Trial:
    """One run of a task, unguarded; charged, validated and kept as in `run_task`.

    Beginning validates once. `train` takes any values for any number of steps; `follow` takes the
    start's values times a reference schedule up to the end of the next window. A trial ends at
    its first loss that is not finite (``lost``).

    Attributes:
        task: What is trained.
        seed: Seed of the run.
        ends: (K,) int64: the steps at which windows end.
        steps: Steps done.
        lost: Whether a loss was not finite.
        loss: Loss at the latest validation.

    Args:
        task: Started here.
        seed: Moves initialisation and data order.
        windows: When follow stops to validate.
        options: More keywords of ``task.start``, such as ``optimizer=``.
    """

    def __init__(self, task: Task, *, seed: int, windows: DecisionSchedule, **options: Any) -> None:
        self._begun = time.perf_counter()
        self.task, self.seed = task, seed
        self.ends = windows.ends(task.total_steps)
        self.steps, self.lost, self.diverged = 0, False, False
        self.run: TrainingRun = task.start(seed=seed, **options)
        self.loss, measured = self._validate()
        self.examples = float(measured.get("examples", math.nan))
        self._initial = np.float32(self.loss)
        self._best_potential = np.float32(np.inf)
        self._charge = FORWARD_CHARGE * self.examples if math.isfinite(self.examples) else 0.0
        self._best: Snapshot = self.run.snapshot()
        self._best_step, self._best_loss = 0, self.loss
        self._best_value = float(measured.get(task.monitor, math.nan))
        self._tested: dict[str, float] | None = None
        self._consider(self._best_value)

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or the run was lost."""
        return self.lost or self.steps >= self.task.total_steps

    @property
    def best_loss(self) -> float:
        """Loss of the best weights on validation so far."""
        return self._best_loss

    @property
    def score(self) -> float:
        """Potential of the latest validation loss in nats: log of the loss over the first one.

        It orders runs as their loss does, and is finite for one that was lost.
        """
        with np.errstate(all="ignore"):
            return float(potential(np.float32(self.loss), self._initial, np))

    @property
    def spent(self) -> float:
        """Charge so far in whole runs."""
        batch_size = float(getattr(self.task, "batch_size", math.nan))
        validations = len(self.ends) + 1
        whole = self.task.total_steps * batch_size + validations * FORWARD_CHARGE * self.examples
        if math.isfinite(whole) and whole > 0:
            return self._charge / whole
        return self.steps / self.task.total_steps

    def next_end(self) -> int:
        """Return the step at which the next window ends."""
        return int(self.ends[self.ends > self.steps][0])

    def train(
        self, values: Mapping[str, np.ndarray], steps: int, *, charge_validation: bool = True
    ) -> Metrics:
        """Train some steps with one value a step, and validate.

        Args:
            values: (steps,) float64 of each hyperparameter that is not at its default.
            steps: At least 1.
            charge_validation: Whether the validation after the steps is used, and so charged; the
                weights are then candidates to be kept.
        """
        metrics = self.run.advance(values, steps)
        done = int(metrics.steps)
        if metrics.finite < 1:
            done = min(max(done, 1), steps)
            self.lost = self.diverged = True
        self.steps += done
        charge = float(metrics.charge)
        if not charge_validation and metrics.finite >= 1 and math.isfinite(self.examples):
            charge -= FORWARD_CHARGE * self.examples
        self._charge += charge if math.isfinite(charge) else 0.0
        self.loss = float(metrics.val_loss) if metrics.finite >= 1 else math.inf
        if charge_validation and not self.lost:
            self._take_validation()
        return metrics

    def follow(
        self,
        start: Mapping[str, float],
        reference: np.ndarray | str = "warmup-linear",
        *,
        rate: str = "lr",
    ) -> Metrics:
        """Train to the end of the next window along the start's values.

        Args:
            start: Value of each hyperparameter; the learning rate is its peak.
            reference: (T,) multipliers of the learning rate, or a schedule's name.
            rate: Which of them is the learning rate.
        """
        if isinstance(reference, str):
            reference = reference_multipliers(reference, self.task.total_steps)
        first, end = self.steps, self.next_end()
        values = {name: np.full(end - first, float(value)) for name, value in start.items()}
        values[rate] = float(start[rate]) * reference[first:end]
        return self.train(values, end - first)

    def pay(self, examples: float) -> None:
        """Charge what a method did in a window beside its steps, in examples with a gradient."""
        self._charge += examples

    def skip(self) -> None:
        """Let a window pass without training or charge, of a run that was lost."""
        self.steps = self.next_end()

    def keep(self) -> Checkpoint:
        """Return where the trial stands."""
        return Checkpoint(
            self.run.snapshot(),
            self._best,
            self._best_value,
            self._best_loss,
            self._best_step,
            self.steps,
        )

    def take(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint, of this trial or another of the task; the charge stays."""
        self.run.restore(checkpoint.weights)
        self._best, self._best_value = checkpoint.best, checkpoint.best_value
        self._best_loss, self._best_step = checkpoint.best_loss, checkpoint.best_step
        self._best_potential = potential(np.float32(checkpoint.best_loss), self._initial, np)
        self.steps, self.lost, self._tested = checkpoint.step, False, None

    def result(self, start: Start, **fields: Any) -> SingleRun:
        """Return the trial as a row; the best weights are put back and tested."""
        tested = self.test()
        return SingleRun(
            seed=self.seed,
            start=dict(start.values),
            start_scale=start.scale,
            validation=self._best_value,
            test=tested.get(self.task.monitor, math.nan),
            spent=self.spent,
            seconds=time.perf_counter() - self._begun,
            steps=self.steps,
            best_step=self._best_step,
            diverged=self.diverged,
            tested=tested,
            **fields,
        )

    def test(self) -> dict[str, float]:
        """Return the metrics of the best weights on test; training goes on where it stood."""
        if self._tested is None:
            here = self.run.snapshot()
            self.run.restore(self._best)
            try:
                found = self.run.evaluate("test")
            except LookupError:
                found = {}
            self._tested = {name: float(value) for name, value in found.items()}
            self.run.restore(here)
        return self._tested

    def _validate(self) -> tuple[float, dict[str, float]]:
        measured = self.run.evaluate("validation")
        return loss_from_validation(measured, monitor=self.task.monitor, mode=self.task.mode)

    def _take_validation(self) -> None:
        """Keep the weights if they are the best."""
        measured = getattr(self.run, "measured", None)
        value = dict(measured).get(self.task.monitor) if measured else None
        self._consider(self._validate()[1][self.task.monitor] if value is None else float(value))

    def _consider(self, value: float) -> None:
        # As a session does it, in float32 and relative to the initial loss, so that ties agree.
        with np.errstate(all="ignore"):
            loss = np.float32(self.loss)
            now = potential(loss, self._initial, np)
            self.diverged |= bool(normalised(loss, self._initial, np) > _EXPLOSION)
        if math.isfinite(self.loss) and now < self._best_potential:
            self._best_potential, self._tested = now, None
            self._best, self._best_step = self.run.snapshot(), self.steps
            self._best_value, self._best_loss = value, self.loss
