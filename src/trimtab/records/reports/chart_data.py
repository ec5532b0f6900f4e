"""What a report draws, taken out of a run's record as rows of plain numbers."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

from trimtab.core.errors import UnknownNameError
from trimtab.core.references import reference_multipliers
from trimtab.records.store.rows import DecisionRecord, RunRecord

__all__ = [
    "Row",
    "best_row",
    "evaluations",
    "figures_of",
    "hyperparameter_path",
    "label_of",
    "metric_names",
    "metric_rows",
    "move_points",
    "reference_path",
    "spelled",
    "steered_names",
    "value_domain",
]

Row = dict[str, Any]

_NOT_METRICS = ("step", "train_loss", "reward", "examples", "loss")
_MOST_POINTS = 400
_SPELLED = {"loss": "log-loss", "macro_f1": "macro-F1"}


def spelled(name: str) -> str:
    """Return a metric's name as people write it."""
    return _SPELLED.get(name, name)


def label_of(record: RunRecord, other: RunRecord | None = None) -> str:
    """Return what a run is called in a legend: its policy, and its number where two are equal."""
    policy = str(record.head["policy"])
    if other is not None and other.head["policy"] == policy:
        return f"{policy} (run {record.id})"
    return policy


def steered_names(record: RunRecord) -> list[str]:
    """Return the names of the steered hyperparameters."""
    return [str(item["name"]) for item in record.head["spec"]["hyperparameters"]]


def evaluations(record: RunRecord, run: str) -> list[Row]:
    """Return two rows for each validation, run, step, split and loss, where the loss is finite."""
    rows: list[Row] = []
    for item in record.decisions:
        loss = item.measured.get("loss", float(item.metrics.val_loss))
        rows.append({"run": run, "step": item.step, "split": "validation", "loss": loss})
        train = float(item.metrics.train_loss)
        rows.append({"run": run, "step": item.step, "split": "training", "loss": train})
    last = record.figures.get("last") or {}
    if last and (not record.decisions or last["step"] > record.decisions[-1].step):
        ends = {
            "validation": last.get("loss", last.get(str(record.head["monitor"]))),
            "training": last.get("train_loss"),
        }
        for split, value in ends.items():
            rows.append({"run": run, "step": last["step"], "split": split, "loss": value})
    return [row for row in rows if _is_number(row["loss"])]


def metric_names(record: RunRecord) -> list[str]:
    """Return the validation's metrics beside the loss, in the order in which it gave them."""
    found = dict.fromkeys(name for item in record.decisions for name in item.measured)
    return [name for name in found if name not in _NOT_METRICS]


def metric_rows(record: RunRecord, run: str, name: str) -> list[Row]:
    """Return a row for each validation that gave the metric: run, step and value."""
    points = [(item.step, item.measured.get(name)) for item in record.decisions]
    last = record.figures.get("last") or {}
    if last and (not record.decisions or last["step"] > record.decisions[-1].step):
        points.append((last["step"], last.get(name)))
    return [{"run": run, "step": s, "value": value} for s, value in points if _is_number(value)]


def best_row(record: RunRecord, run: str, name: str = "loss") -> list[Row]:
    """Return the best-on-validation weights' row, or nothing if there are none yet."""
    best = record.figures.get("best") or {}
    value = best.get(name, best.get(str(record.head["monitor"])) if name == "loss" else None)
    if not _is_number(value):
        return []
    return [{"run": run, "step": best["step"], "loss": value, "value": value}]


def hyperparameter_path(record: RunRecord, run: str, name: str) -> list[Row]:
    """Return rows of step and value, the reference included, thinned to what a chart can show."""
    values = record.schedule.get(name)
    if not values:
        values = _rebuilt(record, name)
    return _thinned([{"run": run, "step": s, "value": v} for s, v in enumerate(values)])


def reference_path(record: RunRecord, name: str) -> list[Row]:
    """Return rows of step and value of the reference that the hyperparameter is moved against."""
    start = float(record.head["start"][name])
    values = [start * factor for factor in _multipliers(record, name)]
    return _thinned([{"step": s, "value": v} for s, v in enumerate(values)])


def move_points(record: RunRecord, run: str, name: str) -> list[Row]:
    """Return a row for each decision: where it put the value, why, and what it had earned."""
    factors = _multipliers(record, name)
    rows: list[Row] = []
    for item, following in zip_longest(record.decisions, record.decisions[1:]):
        at = min(item.step, len(factors) - 1) if factors else 0
        factor = factors[at] if factors else 1.0
        earned = following.reward if following else (record.figures.get("last") or {}).get("reward")
        rows.append(
            {
                "run": run,
                "step": item.step,
                "value": item.applied[name] * factor,
                "decision": item.decision + 1,
                "kind": _kind(item, name),
                "proposed": f"{item.proposed[name]:.3g}",
                "applied": f"{item.applied[name]:.3g}",
                "validation": f"{float(item.metrics.val_loss):.4g}",
                "reward": f"{earned:+.3f} nats" if _is_number(earned) else "–",
                "why": item.why_of(name) or "as proposed",
            }
        )
    return [row for row in rows if _is_number(row["value"])]


def _kind(item: DecisionRecord, name: str) -> str:
    if item.restored:
        return "went back to the best weights"
    return "guard changed it" if item.reasons.get(name, 0) & 0b111 else "as proposed"


def _multipliers(record: RunRecord, name: str) -> list[float]:
    """Return the reference's multiplier at each step; of a schedule without a name, worked out."""
    total = int(record.head["total_steps"])
    kinds = {item["name"]: item["kind"] for item in record.head["spec"]["hyperparameters"]}
    if kinds[name] != "lr":
        return [1.0] * total
    try:
        return [float(v) for v in reference_multipliers(str(record.head["reference"]), total)]
    except UnknownNameError:
        pass
    schedule = record.schedule.get(name)
    if not schedule:
        return [1.0] * total
    applied = _held(record, name, len(schedule))
    return [value / held for value, held in zip(schedule, applied, strict=True)]


def _held(record: RunRecord, name: str, steps: int) -> list[float]:
    """Return the applied value, reference excluded, at each of the first ``steps`` steps."""
    begins = [item.step for item in record.decisions]
    if not begins:
        return [float(record.head["start"][name])] * steps
    return [
        record.decisions[max(bisect.bisect_right(begins, step) - 1, 0)].applied[name]
        for step in range(steps)
    ]


def _rebuilt(record: RunRecord, name: str) -> list[float]:
    """Return the values up to the last decision of a run that never finished."""
    steps = record.decisions[-1].step + 1 if record.decisions else 0
    factors = _multipliers(record, name)[:steps]
    held = _held(record, name, len(factors))
    return [value * factor for value, factor in zip(held, factors, strict=True)]


def _thinned(rows: list[Row]) -> list[Row]:
    """Keep the first, the last and every change of more than a percent, and some in between."""
    if len(rows) <= _MOST_POINTS:
        return rows
    stride = math.ceil(len(rows) / _MOST_POINTS)
    kept: list[Row] = []
    for index, row in enumerate(rows):
        jumps = index and abs(row["value"] - rows[index - 1]["value"]) > 0.05 * abs(row["value"])
        if jumps and kept[-1] is not rows[index - 1]:
            kept.append(rows[index - 1])
        if jumps or index % stride == 0 or index == len(rows) - 1:
            kept.append(row)
    return kept


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def value_domain(rows: list[Row], total_steps: int) -> tuple[float, float] | None:
    """Return the positive range to draw on a log axis, without a schedule's very last steps."""
    shown = [row["value"] for row in rows if row["value"] > 0 and row["step"] < 0.97 * total_steps]
    if not shown:
        return None
    return min(shown) / 1.3, max(shown) * 1.3


def figures_of(record: RunRecord) -> Mapping[str, Any]:
    """Return the metrics on the test split, or on validation where there is no test."""
    return record.figures.get("test") or record.figures.get("best") or {}
