"""What is known of a run before its first step; the head of its record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from trimtab.core.spec import ControlSpec

__all__ = ["RunInfo"]


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
