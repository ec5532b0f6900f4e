"""What a study's report says in words: how the best run came about, and why it is the best."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from trimtab.records.reports.study_view import StudyView
from trimtab.records.store.rows import RunRecord

__all__ = ["choices_of", "figure", "path_in_words", "why_in_words"]


def figure(value: Any) -> str:
    """Return a figure in four digits; a dash for what is no finite number."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return "–"
    return f"{value:.4g}"


def choices_of(values: Mapping[str, Any]) -> str:
    """Return static choices as names and values, separated by commas."""
    shown = (
        f"{name} {figure(value) if isinstance(value, int | float) else value}"
        for name, value in values.items()
    )
    return ", ".join(shown)


def path_in_words(view: StudyView, winner: RunRecord | None) -> list[str]:
    """Return how the best run came about, a sentence a step.

    Args:
        view: The study.
        winner: The best run with its decisions; None if there are none.
    """
    told = []
    for run in view.best_path:
        if run.kind == "fork" and run.change:
            told.append(
                f"Unit {run.label} was forked from it at {100 * run.begins:.0f} % of the steps, "
                f"with {run.change}, and came to {figure(run.validation)}."
            )
            continue
        chosen = choices_of(run.choices)
        begun = {
            "first": "was the first run",
            "reference": "followed the plain schedule",
            "method": "was proposed by the method",
        }
        told.append(
            f"Unit {run.label} {begun.get(run.kind, 'began anew')}"
            f"{f' at {chosen}' if chosen else ''}, and came to {figure(run.validation)}."
        )
    if winner is not None:
        told += _decided(winner)
    return told


def _decided(record: RunRecord) -> list[str]:
    """Return what was decided in a run, in words."""
    told = []
    for name in (item["name"] for item in record.head["spec"]["hyperparameters"]):
        values = [float(item.applied[name]) for item in record.decisions if name in item.applied]
        if not values:
            continue
        held = [float(record.head["start"].get(name, values[0])), *values]
        pairs = list(pairwise(held))
        up = sum(now > 1.001 * before for before, now in pairs)
        down = sum(now < 0.999 * before for before, now in pairs)
        if not up and not down:
            told.append(f"{name} stayed at {figure(values[-1])}.")
            continue
        top, low = max(range(len(values)), key=values.__getitem__), min(values)
        told.append(
            f"{name} was moved up at {up} and down at {down} of {len(values)} decisions: from "
            f"{figure(held[0])}, at most {figure(values[top])} (step "
            f"{record.decisions[top].step}), at least {figure(low)}, {figure(values[-1])} at the "
            "last one."
        )
    reasons = Counter(item.why or "applied as proposed" for item in record.decisions)
    if reasons:
        listed = "; ".join(f"{why} ({count})" for why, count in reasons.most_common(6))
        told.append(f"What became of its {len(record.decisions)} decisions: {listed}.")
    return told


def why_in_words(view: StudyView) -> str:
    """Return why the best run is the best, in words."""
    best = view.best
    if best is None:
        return ""
    ranked = sorted((r for r in view.runs if r.is_candidate), key=lambda run: run.loss)
    at = f" (step {figure(best.best_step)})" if best.best_step is not None else ""
    words = [
        f"Its best {view.monitor} on validation, {figure(best.validation)}{at}, is the best of "
        f"{len(ranked)} run{'s' * (len(ranked) != 1)} with a value"
    ]
    if len(ranked) > 1:
        second = ranked[1]
        words.append(
            f"next is unit {second.label} ({second.kind}) with {figure(second.validation)}"
        )
    first = ranked[-1] if len(ranked) < 2 else min(ranked, key=lambda run: run.unit)
    if first is not best:
        words.append(f"unit {first.label}, the first, came to {figure(first.validation)}")
    stopped = sum(run.status == "stopped" for run in view.runs)
    if stopped:
        words.append(f"{stopped} were stopped, since the best one was out of their reach")
    return "; ".join(words) + ". The test split is looked at, never chosen by."
