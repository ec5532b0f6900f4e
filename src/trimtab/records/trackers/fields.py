"""What every tracker is told of a run: names, numbers and sentences, each in one place."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Mapping
from typing import Any

from trimtab.core.decision import Decision, RunInfo, Summary
from trimtab.core.guard import describe_reason
from trimtab.records.store.rows import summary_figures

MOST_POINTS = 10_000
"""Points of each hyperparameter's schedule that are written at the end of a run."""

_NOT_NUMBERS = ("best", "last", "events")
_ODD = re.compile(r"[^A-Za-z0-9._-]+")


def safe_name(text: str, most: int = 80) -> str:
    """Return a text that can be one part of a path anywhere, and is not empty.

    >>> safe_name("../vision/cats & dogs")
    'vision_cats_dogs'
    """
    return _ODD.sub("_", text).strip("._-")[:most].rstrip(".") or "run"


def run_name(info: RunInfo, run: int | None) -> str:
    """Return what a run is called: task, policy, and its number in the store or else the time.

    Args:
        info: What is known of the run.
        run: Its number; None without a store.
    """
    which = f"run-{run}" if run is not None else f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    return f"{safe_name(info.task)}-{safe_name(info.policy)}-{which}"


def settings_of(info: RunInfo) -> dict[str, Any]:
    """Return a run's settings, name -> plain value; the starts are called ``start/NAME``."""
    known = ("task", "variant", "policy", "reference", "seed", "monitor", "mode", "total_steps")
    settings = {name: getattr(info, name) for name in known}
    settings |= {"decisions": info.spec.decisions, "watch_only": info.watch_only}
    if info.start_scale is not None:
        settings["start_scale"] = info.start_scale
    return settings | {f"start/{name}": value for name, value in info.start_values().items()}


def decision_numbers(decision: Decision) -> dict[str, float]:
    """Return what a decision saw and did, name -> finite number, at the decision's step.

    ``used/NAME`` is what the optimiser has at that step; ``applied/NAME`` and ``proposed/NAME`` are
    the peak, which the schedule multiplies. ``schedule/NAME``, what was used at every step, is
    known when the run ends.
    """
    metrics = decision.metrics
    numbers = {
        **{f"used/{name}": value for name, value in decision.used.items()},
        **{f"applied/{name}": value for name, value in decision.applied.items()},
        **{f"proposed/{name}": value for name, value in decision.proposed.items()},
        **{f"validation/{name}": value for name, value in decision.measured.items()},
        "training/loss": metrics.train_loss,
        "training/gradient_norm": metrics.grad_norm,
        "training/update_ratio": metrics.update_ratio,
        "decision/reward_nats": decision.reward,
        "decision/restored": float(decision.restored),
    }
    if not decision.measured:
        numbers["validation/loss"] = metrics.val_loss
    return _finite(numbers)


def explain(decision: Decision) -> str:
    """Return a decision in words: the value used, its peak, what was asked for, and why not."""
    parts = []
    for name, applied in decision.applied.items():
        used = decision.used.get(name, applied)
        words = f"{name} = {used:.4g}"
        if used != applied:
            words += f", peak {applied:.4g}"
        asked = decision.proposed.get(name, applied)
        if asked != applied:
            words += f" (asked for {asked:.4g})"
        if why := describe_reason(int(decision.reason.get(name, 0))):
            words += f": {why}"
        parts.append(words)
    if decision.note:
        parts.append(decision.note)
    return f"decision {decision.index + 1} at step {decision.step}: {'; '.join(parts)}"


def end_numbers(summary: Summary) -> dict[str, float]:
    """Return a finished run's figures, name -> finite number."""
    figures = summary_figures(summary)
    flat = {name: value for name, value in figures.items() if name not in _NOT_NUMBERS}
    return _finite(
        {
            **{f"best/{name}": value for name, value in summary.best.items()},
            **{f"last/{name}": value for name, value in summary.last.items()},
            **{f"run/{name}": float(value) for name, value in flat.items()},
        }
    )


def figure_numbers(figures: Mapping[str, Any]) -> dict[str, float]:
    """Return figures known after the end, nested names joined by a slash."""
    numbers: dict[str, Any] = {}
    for name, value in figures.items():
        if isinstance(value, Mapping):
            numbers |= {f"{name}/{inner}": number for inner, number in value.items()}
        else:
            numbers[f"run/{name}"] = value
    return _finite(numbers)


def summary_text(summary: Summary, status: str) -> str:
    """Return in a sentence how a run ended."""
    best = ", ".join(f"{name} {value:.4g}" for name, value in summary.best.items())
    return (
        f"{status} after {summary.spent_steps} steps and {len(summary.decisions)} decisions; "
        f"best on validation: {best or 'nothing'}; {summary.rollbacks} rollbacks"
        f"{', given up after too many divergences' if summary.diverged else ''}"
    )


def schedule_points(summary: Summary) -> list[tuple[int, dict[str, float]]]:
    """Return (step, name -> value) of a run's schedule, evenly thinned to `MOST_POINTS` steps."""
    rows = summary.schedule
    stride = math.ceil(len(rows) / MOST_POINTS) if rows else 1
    kept = [row for index, row in enumerate(rows) if index % stride == 0 or row is rows[-1]]
    return [
        (
            int(row["step"]),
            _finite({f"schedule/{name}": row[name] for name in row if name != "step"}),
        )
        for row in kept
    ]


def _finite(numbers: Mapping[str, Any]) -> dict[str, float]:
    """Return what is a finite number; trackers refuse or break on the rest."""
    found: dict[str, float] = {}
    for name, value in numbers.items():
        try:
            number = float(value)
        except (TypeError, ValueError):
            continue
        if math.isfinite(number):
            found[name] = number
    return found
