"""Weights & Biases: one W&B run a run, kept offline unless the user says otherwise."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from trimtab.core.decision import Decision, Recorder, RunInfo, Summary
from trimtab.records.trackers import fields

_STEP = "step"


class WandbTracker(Recorder):
    """Writes a run's settings, numbers over ``step``, reasons and summary.

    Nothing leaves the machine: the run is kept in the folder ``wandb``, to be sent by
    ``wandb sync``, unless ``WANDB_MODE`` asks for ``online``. A run that the training itself has
    open stays as it is. A run that goes on in another process becomes a second W&B run, in the
    same group.

    Args:
        project: Name of the W&B project.
        info: What is known of the run.
        run: Its number in the store; None without one.
        awaits_figures: Whether the W&B run stays open after the end, for `add_figures`.

    Raises:
        ModuleNotFoundError: ``wandb`` is not installed.
    """

    def __init__(
        self,
        project: str,
        info: RunInfo,
        *,
        run: int | None = None,
        awaits_figures: bool = False,
    ) -> None:
        import wandb

        name = fields.run_name(info, run)
        mode: Any = os.environ.get("WANDB_MODE") or "offline"
        self._awaits_figures = awaits_figures
        self._sentences: list[tuple[int, str]] = []
        self._exit_code = 0
        self._run: Any = wandb.init(
            project=project,
            name=name,
            group=name,
            job_type="trimtab",
            config=fields.settings_of(info),
            mode=mode,
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off"),
        )
        self._run.define_metric(_STEP, hidden=True)
        self._run.define_metric("*", step_metric=_STEP)

    def decision(self, decision: Decision) -> None:
        """Write a decision's numbers, and its reasons as a text."""
        sentence = fields.explain(decision)
        self._sentences.append((decision.step, sentence))
        numbers = fields.decision_numbers(decision)
        self._run.log({_STEP: decision.step, **numbers, "decisions": sentence})

    def finish(self, summary: Summary, status: str) -> None:
        """Write the schedule of all steps, the figures and a table of all reasons."""
        import wandb

        for step, numbers in fields.schedule_points(summary):
            self._run.log({_STEP: step, **numbers})
        table = wandb.Table(columns=["step", "decision"], data=[list(s) for s in self._sentences])
        self._run.log({_STEP: summary.spent_steps, "reasons": table})
        self._run.summary.update(fields.end_numbers(summary))
        self._run.summary["summary"] = fields.summary_text(summary, status)
        self._exit_code = int(status not in ("finished", "stopped"))
        if not self._awaits_figures or self._exit_code:
            self._run.finish(exit_code=self._exit_code)

    def add_figures(self, figures: Mapping[str, Any]) -> None:
        """Write figures known after the end, and close the W&B run."""
        self._run.summary.update(fields.figure_numbers(figures))
        self._run.finish(exit_code=self._exit_code)
