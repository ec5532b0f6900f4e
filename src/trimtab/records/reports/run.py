"""A run's report: one HTML file that holds all it shows, and asks the network for nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

from trimtab.core.guard import count_undone
from trimtab.records.reports import page
from trimtab.records.reports.page import text
from trimtab.records.reports.run_charts import (
    charts_of,
    figures_of,
    label_of,
    spelled,
    steered_names,
)
from trimtab.records.store.rows import DecisionRecord, RunRecord


def write_report(path: Path, record: RunRecord, other: RunRecord | None = None) -> None:
    """Write a run's report to a file, replacing it.

    Args:
        path: The HTML file.
        record: The run.
        other: A run to show beside it.

    Raises:
        MissingDependencyError: The extra ``report`` is not installed.
        SpecError: The file cannot be written.
    """
    page.write_file(path, report_html(record, other).encode())


def write_picture(path: Path, record: RunRecord, other: RunRecord | None = None) -> None:
    """Write the charts of a report as one picture on white.

    Args:
        path: File that ends in ``.png`` or ``.svg``.
        record: The run.
        other: A run to show beside it.

    Raises:
        MissingDependencyError: The extra ``report`` is not installed.
        SpecError: The ending is another one, or the file cannot be written.
    """
    page.require_report_extra()
    page.draw(path, page.sheet_of(charts_of(record, other)))


def report_html(record: RunRecord, other: RunRecord | None = None) -> str:
    """Return the page; every name that a user chose is escaped.

    Raises:
        MissingDependencyError: The extra ``report`` is not installed.
    """
    page.require_report_extra()
    return page.document(
        record.title,
        f"{_header(record, other)}{_cards(record, other)}",
        charts_of(record, other),
        f"<h2>Decisions</h2>{decisions_table(record)}<h2>The run</h2>{_about(record, other)}",
    )


def decisions_table(record: RunRecord) -> str:
    """Return the table of a run's decisions as HTML, each with what it earned and why."""
    names = steered_names(record)
    numbers = ("#", "step", "validation", "training", "earned", *names)
    rows: list[str] = []
    held: Mapping[str, float] = record.head["start"]
    for item, following in zip_longest(record.decisions, record.decisions[1:]):
        earned = following.reward if following else (record.figures.get("last") or {}).get("reward")
        rows.append(_decision(item, earned, names, held))
        held = item.applied
    return page.table(page.heads((), numbers, ("why",)), rows)


def origin_rows(head: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the rows of `details` that say by what versions of the code a run was made."""
    versions = ", ".join(f"{name} {version}" for name, version in head["versions"].items())
    return [("versions", text(versions)), ("commit", page.code(head["git_commit"] or "–"))]


def notice_rows(head: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the rows of `details` that repeat what a run's data asks to be told."""
    return [(f"notice ({name})", text(words)) for name, words in head["notices"].items()]


def day_of(seconds: float) -> str:
    """Return a moment in words.

    >>> day_of(0.0)
    '01 January 1970, 00:00 UTC'
    """
    return time.strftime("%d %B %Y, %H:%M UTC", time.gmtime(seconds))


def _header(record: RunRecord, other: RunRecord | None) -> str:
    head = record.head
    variant = f" ({head['variant']})" if head["variant"] else ""
    starts = ", ".join(f"{name} {_number(value)}" for name, value in head["start"].items())
    scale = head["start_scale"]
    factor = f", {_number(scale)} times the tuned one" if scale is not None else ""
    words = [
        f"{head['policy']} on the reference {head['reference']}",
        f"from {starts}{factor}",
        f"seed {head['seed']}",
        f"{len(record.decisions)} decisions over {head['total_steps']} steps",
    ]
    if head["watch_only"]:
        words.append("watching only: nothing was changed")
    if other is not None:
        words.append(f"beside {other.title}")
    mark = ("" if record.id is None else f"run {record.id} · ") + day_of(head["started_at"])
    return page.header(mark, f"{head['task']}{variant}", f"{'; '.join(words)}.", record.status)


def _cards(record: RunRecord, other: RunRecord | None) -> str:
    """Return the row of cards: metrics of the best weights, then what the run cost."""
    split = "test" if record.figures.get("test") else "validation"
    beside = {} if other is None else figures_of(other)
    rows = [
        (f"{split} {spelled(name)}", _number(value), beside.get(name))
        for name, value in figures_of(record).items()
        if name not in ("examples", "step")
    ][:4]
    costs = (("steps", "spent_steps"), ("whole runs", "spent"), ("seconds", "seconds"))
    for label, key in (*costs, ("rolled back", "rollbacks")):
        if key in record.figures:
            value = record.figures[key]
            shown = f"{value:.1f}" if key == "seconds" else _number(value, 3)
            rows.append((label, shown, None if other is None else other.figures.get(key)))
    undone, others = (
        None if each is None else count_undone(item.reasons for item in each.decisions)
        for each in (record, other)
    )
    if undone or others:
        rows.append(("short windows undone", _number(undone), others))
    best = (record.figures.get("best") or {}).get("step")
    if best is not None:
        rows.append(("best at step", _number(best), None))
    other_label = "" if other is None else label_of(other, record)
    return page.cards(
        (name, value, "" if theirs is None else f"{other_label} {_number(theirs, 3)}")
        for name, value, theirs in rows
    )


def _decision(
    item: DecisionRecord, earned: Any, names: Iterable[str], held: Mapping[str, float]
) -> str:
    losses = (item.metrics.val_loss, item.metrics.train_loss)
    is_known = isinstance(earned, float) and math.isfinite(earned)
    line = page.cells(
        [
            str(item.decision + 1),
            str(item.step),
            *(_number(float(loss)) for loss in losses),
            f"{earned:+.3f}" if is_known else "–",
        ],
        "n",
    )
    for name in names:
        now, before = item.applied[name], held[name]
        turn = "up" if now > before * 1.001 else "down" if now < before * 0.999 else ""
        arrow = {"up": " ↑", "down": " ↓", "": "  "}[turn]
        line += page.cells([f"{_number(now, 3)}{arrow}"], f"n {turn}")
    why = f"{item.why or 'as proposed'}{'; given up' if item.terminated else ''}"
    return f"<tr{' class=back' if item.restored else ''}>{line}{page.cells([text(why)])}</tr>"


def _about(record: RunRecord, other: RunRecord | None) -> str:
    head = record.head
    took = ""
    if head.get("finished_at"):
        took = f", {head['finished_at'] - head['started_at']:.1f} s"
    rows = [
        *notice_rows(head),
        ("command", page.code(head["command"])),
        ("seed", text(head["seed"])),
        *origin_rows(head),
        ("contract", page.code(head["spec_hash"])),
        ("host", text(f"{head['host']}{took}")),
    ]
    if other is not None:
        rows.append(("beside", f"{text(other.title)}, {page.code(other.head['command'])}"))
    return page.details(rows)


def _number(value: Any, digits: int = 4) -> str:
    if not isinstance(value, int | float) or isinstance(value, bool) or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    if not 1e-3 <= abs(value) < 1e5:
        return f"{value:.{max(digits - 2, 1)}e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.{digits}g}"
