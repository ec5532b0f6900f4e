"""The tables of ``benchmarks/RESULTS.md``, each as Markdown, from the figures of a comparison."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trimtab.records.reports.comparison import COST_HEADS, cost_cells
from trimtab.search.comparison.compare import Comparison

__all__ = [
    "STEERED",
    "budget_rows",
    "budget_table",
    "cost_table",
    "methods_table",
    "starts_table",
    "tasks_table",
]

STEERED = "trimtab"
"""Name of the steered runs among the methods."""


def _interval(found: Mapping[str, float] | None) -> str:
    if found is None:
        return "–"
    return f"{found['value']:.2f} ({found['low']:.2f} .. {found['high']:.2f})"


def _regret(figures: Mapping[str, Any], label: str) -> float:
    found = figures["regret"].get(label)
    return float("inf") if found is None else float(found["value"])


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    marks = "|".join(["---"] + ["---:"] * (len(heads) - 1))
    lines = [f"| {' | '.join(heads)} |", f"|{marks}|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def methods_table(figures: Mapping[str, Any]) -> str:
    """Return every method and budget, the lowest regret first; steered runs in bold."""
    n_tasks = len(figures["tasks"])
    rows = []
    for label in sorted(figures["methods"], key=lambda one: _regret(figures, one)):
        mark = "**" if label == STEERED else ""
        on = figures["n_tasks"][label]
        beside = figures["steered"][label]
        theirs = "–" if beside is None or beside["regret"] is None else f"{beside['regret']:.2f}"
        rows.append(
            (
                f"{mark}`{label}`{mark}" + ("" if on == n_tasks else f" (on {on})"),
                f"{figures['spent'][label]:.2f}",
                f"{mark}{_interval(figures['regret'][label])}{mark}",
                "" if label == STEERED else theirs,
                _interval(figures["n_star"][label]),
                _interval(figures["probability_of_improvement"].get(label)),
                f"{figures['seconds'][label]:.3g}",
            )
        )
    heads = (
        "method",
        "whole runs",
        "regret",
        "trimtab on the same tasks",
        "n*",
        "P(trimtab is better)",
        "seconds",
    )
    return _table(heads, rows)


def starts_table(figures: Mapping[str, Any]) -> str:
    """Return regret by start factor of the methods that use a start; empty if starts were drawn."""
    scales = list(next(iter(figures["regret_by_start"].values()), {}))
    rows = [
        (f"`{label}`", *(_interval(figures["regret_by_start"][label][scale]) for scale in scales))
        for label in sorted(figures["methods"], key=lambda one: _regret(figures, one))
        if scales and figures["regret_by_start"][label][scales[0]] is not None
    ]
    return _table(("method", *(f"x{scale}" for scale in scales)), rows) if rows else ""


def budget_rows(comparison: Comparison, figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return, for each search, its regret at the smallest and the largest budget that was run.

    ``better_on`` counts the tasks on which the mean test value is at least as good at the larger.
    A search that does not gain from its budget is set up wrongly.
    """
    labels: dict[str, list[tuple[int, str]]] = {}
    for label in figures["methods"]:
        name, _, budget = label.partition(":")
        if figures["regret"].get(label) is not None:
            labels.setdefault(name, []).append((int(budget or 1), label))
    rows = []
    for name, found in labels.items():
        (least, small), (most, large) = min(found), max(found)
        if least == most:
            continue
        shared = [t for t, means in figures["test"].items() if small in means and large in means]
        sign = {t: 1.0 if comparison.tasks[t].mode == "min" else -1.0 for t in shared}
        better = [
            t
            for t in shared
            if sign[t] * figures["test"][t][large] <= sign[t] * figures["test"][t][small]
        ]
        rows.append(
            {
                "method": name,
                "least": least,
                "most": most,
                "regret_least": _regret(figures, small),
                "regret_most": _regret(figures, large),
                "better_on": len(better),
                "tasks": len(shared),
            }
        )
    return rows


def budget_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return what `budget_rows` gave as Markdown."""
    return _table(
        ("search", "smallest budget", "its regret", "largest budget", "its regret", "gains on"),
        [
            (
                f"`{row['method']}`",
                str(row["least"]),
                f"{row['regret_least']:.2f}",
                str(row["most"]),
                f"{row['regret_most']:.2f}",
                f"{row['better_on']} of {row['tasks']} tasks"
                + ("" if row["regret_most"] <= row["regret_least"] else "; **not on average**"),
            )
            for row in rows
        ],
    )


def cost_table(figures: Mapping[str, Any]) -> str:
    """Return what each method needs to end as well as one steered run; empty without steered."""
    if not figures["cost"]:
        return ""
    rows = [cost_cells(row) for row in figures["cost"]["methods"]]
    return _table(COST_HEADS, [(f"`{name}`", *cells) for name, *cells in rows])


def tasks_table(figures: Mapping[str, Any]) -> str:
    """Return each task's scale, and the mean test value of the methods that end best on it."""
    rows = []
    for name, task in figures["tasks"].items():
        means = figures["test"][name]
        best = sorted(means, key=means.__getitem__, reverse=task["mode"] == "max")
        rows.append(
            (
                f"`{name}`",
                task["metric"],
                f"{task['tuned']:.3g}",
                f"{task['median']:.3g}",
                str(task["pool"]),
                "–" if STEERED not in means else f"{means[STEERED]:.3g}",
                f"`{best[0]}` {means[best[0]]:.3g}",
                "yes" if task["flagged"] else "no",
            )
        )
    heads = (
        "task",
        "metric",
        "loss when tuned",
        "median loss of the pool",
        "pool",
        "trimtab, mean on test",
        "best method, mean on test",
        "within the noise",
    )
    return _table(heads, rows)
