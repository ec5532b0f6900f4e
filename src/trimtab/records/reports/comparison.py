"""A comparison's report: one HTML file that asks the network for nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trimtab.records.reports import page
from trimtab.records.reports.comparison_charts import STEERED, Result, comparison_charts
from trimtab.records.reports.page import figure, text
from trimtab.records.store.provenance import command_line

COST_HEADS: tuple[str, ...] = (
    "method",
    "whole runs to end as well",
    "examples saved",
    "seconds saved",
    "meta-training paid for after",
)
"""Heads of the columns of `cost_cells`."""


def write_comparison_report(
    path: Path,
    rows: Sequence[Result],
    figures: Mapping[str, Any],
    about: Mapping[str, str],
    left_out: Iterable[tuple[str, str, str]] = (),
) -> None:
    """Write a comparison's report to a file, replacing it.

    Args:
        path: The HTML file.
        rows: One a result: task, method, budget, seed, start_scale, validation, test, spent.
        figures: As a comparison's JSON has them.
        about: What results depend on: versions and the like.
        left_out: Task, method and reason of what could not be run.

    Raises:
        MissingDependencyError: The extra ``report`` is not installed.
    """
    page.require_report_extra()
    tasks = figures["tasks"]
    title = f"{len(figures['methods'])} methods on {len(tasks)} task{'s' * (len(tasks) != 1)}"
    words = f"{title}: {', '.join(tasks)}."
    above = page.header("comparison at equal compute", verdict(figures), words)
    below = (
        f"{_cost(figures)}{_left_out(left_out)}"
        f"{page.fold('Methods', _methods(figures))}{page.fold('Tasks', _tasks(figures))}"
        f"{page.fold('The comparison', _about(about))}"
    )
    path.write_text(
        page.document(title, above, comparison_charts(rows, figures), below), encoding="utf-8"
    )


def verdict(figures: Mapping[str, Any]) -> str:
    """Return in one sentence how the steered run did, and what did better.

    The gap to tuned is 0 for a tuned run and 1 for a random one.
    """
    gaps = {
        label: found["value"]
        for label, found in figures["regret"].items()
        if found is not None and math.isfinite(found["value"])
    }
    if not gaps:
        return "No gap to tuned is known yet"
    order = sorted(gaps, key=gaps.__getitem__)
    steered = next((name for name in (STEERED, f"{STEERED}:1") if name in gaps), None)
    best = f"{order[0]} comes closest: {gaps[order[0]]:.2f} with {_runs(figures, order[0])}"
    if steered is None:
        return f"Gap to tuned (0 tuned, 1 a random run): {best}"
    begun = f"One steered run: gap to tuned {gaps[steered]:.2f} (0 tuned, 1 a random run)"
    if order[0] == steered:
        return f"{begun}, the smallest of {len(order)} methods"
    return f"{begun}, {order.index(steered) + 1} of {len(order)}; {best}"


def _runs(figures: Mapping[str, Any], label: str) -> str:
    spent = f"{figures['spent'][label]:.3g}"
    return "the compute of one run" if spent == "1" else f"the compute of {spent} runs"


def _interval(found: Mapping[str, float] | None) -> str:
    if found is None:
        return "–"
    return f"{found['value']:.2f} ({found['low']:.2f} … {found['high']:.2f})"


def _table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table whose first column is text and whose others are numbers; cells are HTML."""
    lines = (f"<tr>{page.cells(row[:1])}{page.cells(row[1:], 'n')}</tr>" for row in rows)
    return page.table(page.heads(names[:1], names[1:]), lines)


def cost_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what a method needs to end as well as one steered run, as words under `COST_HEADS`.

    Args:
        row: One method's, as the ``cost`` of a comparison's figures has them.
    """
    reaches = row["reaches"]
    needs = {"yes": "", "beyond": "more than ", "below": "at most "}[reaches]
    saves = {"yes": "", "beyond": "at least ", "below": "at most "}[reaches]

    def cell(field: str, form: str, words: str) -> str:
        value = row[field]
        return "–" if value is None else f"{words}{value:{form}}"

    saved, count = row["saved_seconds"], row["paid_back_after"]
    paid = "–"
    if count is not None:
        paid = f"{'at most ' if reaches == 'beyond' else ''}{count:,} run{'s' * (count != 1)}"
    elif reaches == "below" or (saved is not None and saved <= 0):
        paid = "never at this quality"
    is_lost = row["saved_runs"] is None and row["runs"] is not None
    return (
        str(row["method"]),
        "not in one run" if is_lost else cell("runs", ".1f", needs),
        cell("saved_examples", ",.0f", saves),
        cell("saved_seconds", ".3g", saves),
        paid,
    )


def _cost(figures: Mapping[str, Any]) -> str:
    """Return the cost answer: its sentence, and a row a method; empty without steered runs."""
    cost = figures.get("cost")
    if not cost:
        return ""
    rows = [tuple(text(word) for word in cost_cells(row)) for row in cost["methods"]]
    table = _table(COST_HEADS, rows) if rows else ""
    return f"<h2>What one steered run costs, and saves</h2><p>{text(cost['sentence'])}</p>{table}"


def _methods(figures: Mapping[str, Any]) -> str:
    def order(label: str) -> float:
        found = figures["regret"].get(label)
        return math.inf if found is None else float(found["value"])

    names = (
        *("method", "compute, runs", "gap to tuned", "random runs it replaces", "at the cap"),
        *("trimtab is better", "seconds"),
    )
    return _table(
        names,
        [
            (
                text(label),
                figure(figures["spent"][label]),
                _interval(figures["regret"].get(label)),
                _interval(figures["n_star"].get(label)),
                figure(figures["capped"].get(label)),
                _interval(figures["probability_of_improvement"].get(label)),
                figure(figures["seconds"][label]),
            )
            for label in sorted(figures["methods"], key=order)
        ],
    )


def _tasks(figures: Mapping[str, Any]) -> str:
    names = ("task", "metric", "tuned lr", "loss when tuned", "median loss", "pool", "flagged")
    return _table(
        names,
        [
            (
                text(name),
                text(task["metric"]),
                figure(task["tuned_lr"]),
                figure(task["tuned"]),
                figure(task["median"]),
                text(task["pool"]),
                _flag(task),
            )
            for name, task in figures["tasks"].items()
        ],
    )


def _flag(task: Mapping[str, Any]) -> str:
    if task["pool"] and not math.isfinite(task["median"]):
        return "nothing to compare with: no run of its pool has a finite test loss"
    return "yes: under 3 standard errors apart" if task["flagged"] else "no"


def _left_out(left_out: Iterable[tuple[str, str, str]]) -> str:
    rows = [tuple(text(word) for word in one) for one in left_out]
    if not rows:
        return ""
    return "<h2>Left out</h2>" + _table(("task", "method", "reason"), rows)


def _about(about: Mapping[str, str]) -> str:
    rows = [("command", command_line()), *about.items()]
    return page.details((name, page.code(value)) for name, value in rows)
