"""What is kept of one decision, and of a whole run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trimtab.core.guard import describe_reason
from trimtab.core.metrics import Metrics

__all__ = ["Decision", "Recorder", "Summary"]


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

    def why(self) -> str:
        """Return in words why the applied values differ from the proposed ones."""
        bits = 0
        for value in self.reason.values():
            bits |= value
        return "; ".join(part for part in (describe_reason(bits), self.note) if part)


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
