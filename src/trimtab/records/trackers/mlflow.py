"""MLflow: one MLflow run a run, beside whatever run the training itself has open."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Mapping
from typing import Any

from trimtab.core.decision import Decision, Recorder, RunInfo, Summary
from trimtab.core.errors import StoreError
from trimtab.records.trackers import fields

_BATCH = 1000  # metrics that MLflow takes in one call
_LONGEST = 500  # characters of a parameter that every version takes
_ODD = re.compile(r"[^A-Za-z0-9_.\- /]+")
_KEY = "trimtab.run"
_STATUS = {"finished": "FINISHED", "stopped": "FINISHED", "interrupted": "KILLED"}


class MlflowTracker(Recorder):
    """Writes a run's parameters, metrics at their steps, reasons and summary.

    It speaks through a client of its own, so a run that ``mlflow.start_run`` opened stays as it is.
    Reasons are in the tag ``trimtab.decision`` while the run goes on and in ``decisions.txt`` at
    its end. The experiment is ``MLFLOW_EXPERIMENT_NAME``, or ``trimtab``.

    Args:
        uri: Tracking URI; empty for MLflow's own setting.
        info: What is known of the run.
        run: Its number in the store; None without one.
        goes_on: Whether to go on in the newest MLflow run of that number.

    Attributes:
        run_id: The MLflow run.

    Raises:
        ModuleNotFoundError: MLflow is not installed.
        StoreError: The experiment was deleted.
    """

    def __init__(
        self, uri: str, info: RunInfo, *, run: int | None = None, goes_on: bool = False
    ) -> None:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=uri or None)
        self._sentences: list[str] = []
        self._last_step = 0
        name = fields.run_name(info, run)
        experiment = self._experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or "trimtab")
        found = self._find(experiment, name) if goes_on else None
        if found is not None:
            self.run_id = found
            self._client.update_run(found, status="RUNNING")
            return
        made = self._client.create_run(experiment, run_name=name, tags={_KEY: name})
        self.run_id = str(made.info.run_id)
        settings = fields.settings_of(info).items()
        params = [Param(_key(key), str(value)[:_LONGEST]) for key, value in settings]
        self._client.log_batch(self.run_id, params=params[:100])

    def decision(self, decision: Decision) -> None:
        """Write a decision's numbers; its reasons become a tag, the newest one."""
        sentence = fields.explain(decision)
        self._sentences.append(sentence)
        self._last_step = max(self._last_step, decision.step)
        self._log([(decision.step, fields.decision_numbers(decision))])
        self._client.set_tag(self.run_id, "trimtab.decision", sentence[:_LONGEST])

    def finish(self, summary: Summary, status: str) -> None:
        """Write the schedule of all steps, the figures and all reasons, and end the MLflow run."""
        self._last_step = max(self._last_step, summary.spent_steps)
        ends = [(self._last_step, fields.end_numbers(summary))]
        self._log([*fields.schedule_points(summary), *ends])
        words = fields.summary_text(summary, status)
        self._client.set_tag(self.run_id, "trimtab.summary", words)
        text = "".join(f"{line}\n" for line in [*self._sentences, words])
        try:
            self._client.log_text(self.run_id, text, "decisions.txt")
        finally:
            self._client.set_terminated(self.run_id, _STATUS.get(status, "FAILED"))

    def add_figures(self, figures: Mapping[str, Any]) -> None:
        """Write figures known after the end."""
        self._log([(self._last_step, fields.figure_numbers(figures))])

    # Inside.

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name))
            except Exception:
                # Another process may have made it in between.
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            raise StoreError(
                f"log_to: the MLflow experiment {name!r} was deleted; restore it, or name another "
                "one in MLFLOW_EXPERIMENT_NAME"
            )
        return str(found.experiment_id)

    def _find(self, experiment: str, name: str) -> str | None:
        runs = self._client.search_runs(
            [experiment],
            filter_string=f"tags.`{_KEY}` = '{name}'",
            max_results=1,
            order_by=["attributes.start_time DESC"],
        )
        return str(runs[0].info.run_id) if runs else None

    def _log(self, points: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [
            Metric(_key(name), number, now, step)
            for step, numbers in points
            for name, number in numbers.items()
        ]
        for first in range(0, len(metrics), _BATCH):
            self._client.log_batch(self.run_id, metrics=metrics[first : first + _BATCH])


def _key(name: str) -> str:
    """Return a name that MLflow takes: its characters, and nothing that looks like a path upwards.

    >>> _key("applied/a<b>/../x")
    'applied/a_b_/_/x'
    """
    parts = [_ODD.sub("_", part).strip(" ") for part in name.split("/")]
    return "/".join("_" if not part.strip(".") else part for part in parts)[:250]
