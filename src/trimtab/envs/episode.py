"""One episode: a training run, the session that steers it, and its reference run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trimtab.core.decision import Decision
from trimtab.core.errors import MetricError
from trimtab.core.metrics import FORWARD_CHARGE, Metrics, checked_window, loss_from_validation
from trimtab.core.protocols import Snapshot, Task, TrainingRun
from trimtab.core.session import Session
from trimtab.core.spec import ControlSpec, window_ends
from trimtab.envs.settings import Begin, EnvSettings


def _minimised(run: TrainingRun, task: Task, split: str) -> tuple[float, dict[str, float]]:
    measured = run.evaluate(split)
    return loss_from_validation(measured, monitor=task.monitor, mode=task.mode)


def _started(task: Task, seed: int, reward_split: str, *, guarded: bool) -> TrainingRun:
    """Return a fresh run that measures the loss which the reward is computed from."""
    run = task.start(seed=seed)
    if hasattr(run, "measure_selection"):
        run.measure_selection = reward_split == "selection"
    if hasattr(run, "skips_bad_batches"):
        run.skips_bad_batches = guarded
    return run


def _reward_loss(metrics: Metrics) -> float:
    loss = float(metrics.reward_loss)
    return float(metrics.val_loss) if math.isnan(loss) else loss


def reference_losses(
    task: Task,
    spec: ControlSpec,
    multipliers: np.ndarray,
    seed: int,
    *,
    reward_split: str = "selection",
) -> list[float]:
    """Return the reward's loss at each window's end of the run that nobody steers.

    A run that meets a loss that is not finite has nan from there on, which the reward takes as
    no further change.

    Args:
        task: What is trained.
        spec: With the start values of the run that is compared.
        multipliers: (T,) of the reference schedule.
        seed: Of the same initialisation and data order.
        reward_split: ``"selection"``, or ``"validation"``.
    """
    run, first, losses = _started(task, seed, reward_split, guarded=False), 0, []
    ends = window_ends(spec, task.total_steps)
    for end in ends:
        steps = int(end) - first
        values = {
            item.name: item.default
            * (multipliers[first:end] if item.kind == "lr" else np.ones(steps))
            for item in spec.hyperparameters
        }
        metrics = run.advance(values, steps)
        if metrics.finite < 1:
            break
        if reward_split == "validation":
            metrics = metrics._replace(reward_loss=math.nan)
        losses.append(_reward_loss(metrics))
        first = int(end)
    return losses + [math.nan] * (len(ends) - len(losses))


class Episode:
    """A run under a session whose actions come from outside.

    Attributes:
        task: What is trained.
        begin: What the episode began with.
        session: What steers it.
        metrics: Of every window so far; the first entry is the validation before step 1.
    """

    def __init__(self, settings: EnvSettings, begin: Begin) -> None:
        self.task, self.begin = settings.task_of(begin), begin
        self._settings = settings
        spec = settings.start_spec(begin, self.task.hyperparameters)
        self._run = _started(self.task, begin.seed, settings.reward_split, guarded=True)
        self._best: Snapshot = None
        self._reference_losses: Sequence[float] = ()
        if spec.reward == "relative":
            self._reference_losses = reference_losses(
                self.task,
                spec,
                settings.multipliers,
                begin.seed,
                reward_split=settings.reward_split,
            )
        loss, self._measured = _minimised(self._run, self.task, "validation")
        examples = float(self._measured.get("examples", math.nan))
        budget = self._whole_run(spec, examples)
        self._counts_steps = not math.isfinite(budget)
        self.session = Session(
            spec,
            total_steps=self.task.total_steps,
            reference=settings.multipliers,
            keep=self._keep,
            restore=self._restore,
            budget=float(self.task.total_steps) if self._counts_steps else budget,
        )
        first = Metrics(
            val_loss=loss, charge=0.0 if self._counts_steps else FORWARD_CHARGE * examples
        )
        self.metrics: list[Metrics] = []
        self.observation = np.zeros(0, np.float32)
        self._observe(first._replace(reward_loss=self._selection()))

    @property
    def decisions(self) -> list[Decision]:
        """The decisions so far."""
        return self.session.summary.decisions

    @property
    def over(self) -> bool:
        """Whether the run is given up or at its end."""
        return self.session.finished

    def step(self, action: np.ndarray) -> float:
        """Apply an action, train the window that follows, and return the reward.

        Raises:
            MetricError: The task trained another number of steps than it was asked for, or the
                user's reward is not a finite number.
        """
        self.session.decide(action)
        steps = self.session.window()
        values = self.session.values(self.session.steps_done, steps)
        metrics = checked_window(self._run.advance(values, steps), steps, self.task.name)
        if self._settings.reward_split == "validation":
            metrics = metrics._replace(reward_loss=math.nan)
        if self._reference_losses:
            at = min(self.session.decisions_made, len(self._reference_losses)) - 1
            metrics = metrics._replace(reference_loss=self._reference_losses[at])
        if self._counts_steps:
            metrics = metrics._replace(charge=float(metrics.steps))
        self._measured = dict(getattr(self._run, "measured", {}))
        self.session.record_events(getattr(self._run, "events", ()))
        reward = self._observe(metrics)
        if self._settings.reward_function is None:
            return reward
        return self._own_reward(self._settings.reward_function(*self.metrics[-2:]))

    def evaluate(self, split: str) -> dict[str, float]:
        """Return the metrics of the best-on-validation weights on a split; the run goes on."""
        now = self._run.snapshot()
        self._run.restore(self._best)
        try:
            return self._run.evaluate(split)
        finally:
            self._run.restore(now)

    def _observe(self, metrics: Metrics) -> float:
        self.metrics.append(metrics)
        self.observation, reward = self.session.observe(metrics, self._measured)
        if self.session.finished:
            self.session.close()
        return reward

    def _selection(self) -> float:
        """Return the selection loss before step 1; nan if the task has none, or none is wanted."""
        if self._settings.reward_split == "validation":
            return math.nan
        try:
            return _minimised(self._run, self.task, "selection")[0]
        except LookupError:
            return math.nan

    def _own_reward(self, reward: Any) -> float:
        try:
            value = float(reward)
        except (TypeError, ValueError):
            value = math.nan
        if not math.isfinite(value):
            raise MetricError(
                f"reward: the function returned {reward!r}; it has to return a finite number, "
                "also where a loss is nan"
            )
        return value

    def _whole_run(self, spec: ControlSpec, examples: float) -> float:
        """Return the charge of a run in examples; nan if the task does not tell its batch size."""
        batch_size = float(getattr(self.task, "batch_size", math.nan))
        validations = len(window_ends(spec, self.task.total_steps)) + 1
        return self.task.total_steps * batch_size + validations * FORWARD_CHARGE * examples

    def _keep(self) -> None:
        self._best = self._run.snapshot()

    def _restore(self) -> None:
        self._run.restore(self._best)

    def values(self) -> Mapping[str, float]:
        """Return each steered hyperparameter at the next step, reference included."""
        session = self.session
        return {
            item.name: session.value(h, session.steps_done)
            for h, item in enumerate(session.spec.hyperparameters)
        }
