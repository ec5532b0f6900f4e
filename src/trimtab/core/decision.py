"""The record of a run: what is known before it, each decision, where it stands, how it ended."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trimtab.core import registry
from trimtab.core.guard import describe_reason
from trimtab.core.metrics import Metrics
from trimtab.core.shown import as_html, decision_line, summary_lines
from trimtab.core.spec import ControlSpec

__all__ = ["Decision", "Progress", "Recorder", "RunInfo", "Summary"]


@dataclass(frozen=True)
class RunInfo:
    """What whoever starts a run knows about it; the store adds versions, command, host and time.

    Attributes:
        task: Name of the task, or of whatever is fine-tuned.
        spec: What is steered; its hyperparameters' defaults are the start values.
        total_steps: Optimiser steps of the run.
        policy: Name of the controller.
        reference: Name of the reference schedule.
        seed: Seed of the run.
        variant: Variant of the task, or an empty string.
        monitor: Key of the metric that is watched.
        mode: ``"min"`` or ``"max"``: which way the monitored metric gets better.
        start_scale: Factor between the task's tuned learning rate and the start; None if not said.
        watch_only: Whether proposals are recorded but never applied.
        study: Name of the study that the run belongs to; None for a run of its own.
        parent_run: Run that this one was forked from.
        fork_decision: Decision of the parent at which it was forked.
        log_to: Trackers that are told of the run, as `trimtab.defaults.recorder_for` takes them.
        notices: What whoever reads the record must be told, such as the data's licence, by name.
    """

    task: str
    spec: ControlSpec
    total_steps: int
    policy: str = "reference"
    reference: str = "warmup-linear"
    seed: int = 0
    variant: str = ""
    monitor: str = "loss"
    mode: str = "min"
    start_scale: float | None = None
    watch_only: bool = False
    study: str | None = None
    parent_run: int | None = None
    fork_decision: int | None = None
    log_to: str | Iterable[str] | None = None
    notices: Mapping[str, str] = field(default_factory=dict)

    def start_values(self) -> dict[str, float]:
        """Return the start of each steered hyperparameter, by name, in its own unit."""
        return {item.name: float(item.default) for item in self.spec.hyperparameters}


@dataclass(frozen=True)
class Decision:
    """One decision: what was seen, proposed, applied, why they differ, and what it had earned.

    Attributes:
        index: 0 for the decision before step 1.
        step: Optimiser steps done when it was taken.
        progress: Share of all steps done.
        metrics: What the window before it measured.
        measured: All values that ``validate()`` returned, by name.
        observation: (n,) float32, what the controller saw.
        action: What the controller answered, in the spec's kind of actions; None if it failed.
        proposed: Value of each hyperparameter that the action asked for, reference excluded.
        applied: Value that holds in the next window, reference excluded.
        used: Value of each hyperparameter at the window's first step, by name, reference included:
            of a learning rate what the optimiser has there. Empty if it was not recorded.
        offset: (H,) float32 coordinate of each applied value relative to its start.
        reason: `Reason` bits of each hyperparameter, by name.
        restored: Whether the best weights were put back before the next step.
        terminated: Whether the run was given up here.
        reward: Reward of the decision before this one, in the reward's unit.
        note: What went wrong, in words, if the controller failed.
    """

    index: int
    step: int
    progress: float
    metrics: Metrics
    measured: Mapping[str, float]
    observation: np.ndarray
    action: np.ndarray | None
    proposed: Mapping[str, float]
    applied: Mapping[str, float]
    offset: np.ndarray
    reason: Mapping[str, int]
    restored: bool
    terminated: bool
    reward: float
    note: str = ""
    used: Mapping[str, float] = field(default_factory=dict)

    @property
    def peak(self) -> Mapping[str, float]:
        """What the schedule multiplies in the next window, by name: the same as ``applied``."""
        return self.applied

    def __repr__(self) -> str:
        """Return the decision in one line."""
        return f"Decision({decision_line(self)})"

    def _repr_html_(self) -> str:
        return as_html("Decision", decision_line(self).split("  "))

    def why(self) -> str:
        """Return in words why the applied values differ from the proposed ones."""
        bits = 0
        for value in self.reason.values():
            bits |= value
        return "; ".join(part for part in (describe_reason(bits), self.note) if part)


@dataclass(frozen=True)
class Progress:
    """Where a run stands after a window and the decision that followed.

    Attributes:
        step: Steps done.
        total_steps: Steps of the whole run.
        total_windows: Windows of the whole run, each followed by a validation.
        metrics: What the window measured.
        measured: All values of the validation, by name.
        values: Value of each steered hyperparameter at the next step, reference included.
        decision: What was decided; None after the last window.
        best: Measured values of the best weights so far, with ``"step"``.
        seconds: Since the run began.
    """

    step: int
    total_steps: int
    total_windows: int
    metrics: Metrics
    measured: Mapping[str, float]
    values: Mapping[str, float]
    decision: Decision | None
    best: Mapping[str, float]
    seconds: float


@dataclass
class Summary:
    """A finished (or interrupted) run in figures.

    Attributes:
        best: Metrics of the best-on-validation weights, by name, with ``"step"``.
        last: Metrics of the latest weights, by name, with ``"step"``, ``"train_loss"`` of the
            window before them and the ``"reward"`` of its decision.
        schedule: One ``{"step": s, name: value}`` a step, reference included.
        decisions: The decisions, in order.
        spent_steps: Optimiser steps done, lost ones included.
        spent: Charge in whole runs.
        rollbacks: Restores that the guard forced, with a cut; windows undone are none.
        restores: All restores, the policy's own and windows undone included.
        diverged: Whether the run was given up after too many divergences, or, unguarded, met one.
        frozen: Decisions in which the fallback held the last multiplier.
        finished: Whether all announced steps were done.
        memory_retries: How often a batch ran out of memory and was done again in smaller parts.
        events: What the run was rescued from, as plain data: bad batches that were left out, and
            all else with ``policy="guard"``.
    """

    best: dict[str, float] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)
    schedule: list[dict[str, float]] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    spent_steps: int = 0
    spent: float = 0.0
    rollbacks: int = 0
    restores: int = 0
    diverged: bool = False
    frozen: int = 0
    finished: bool = False
    memory_retries: int = 0
    events: list[dict[str, Any]] = field(default_factory=list)

    def __repr__(self) -> str:
        """Return the run in at most ten lines."""
        first, *rest = summary_lines(self)
        return "\n  ".join([f"Summary: {first}", *rest])

    def _repr_html_(self) -> str:
        return as_html("Summary", summary_lines(self))

    def plot(self) -> Any:
        """Return an Altair chart of the validation loss and of each value used, step by step.

        A notebook draws it; ``chart.save("run.html")`` keeps it.

        Raises:
            MissingDependencyError: The extra ``report`` is not installed.
        """
        return registry.lookup("chart", "summary")(self)


class Recorder:
    """Where decisions go as they are made; this one keeps nothing, and stores do the same calls."""

    def decision(self, decision: Decision) -> None:
        """Keep one decision; complete when it returns."""

    def finish(self, summary: Summary, status: str) -> None:
        """Close the record: ``"finished"``, ``"stopped"``, ``"diverged"`` or ``"failed"``."""

    def add_figures(self, figures: Mapping[str, Any]) -> None:
        """Keep figures known after the end, by name, such as the metrics on the test split."""

    def state(self) -> dict[str, Any]:
        """Return what is needed to go on with the same record after a restart, such as a run id."""
        return {}
