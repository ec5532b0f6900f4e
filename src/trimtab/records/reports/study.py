"""A study's report: one HTML file that holds all it shows, of a study that is over or goes on.

It tells in words how the best run came about, and why it is the best.
"""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from trimtab.core.errors import SpecError
from trimtab.records.reports import page
from trimtab.records.reports.importance import Importance, importance_of
from trimtab.records.reports.page import figure, text
from trimtab.records.reports.run import day_of, decisions_table, notice_rows, origin_rows
from trimtab.records.reports.run_charts import charts_of, is_plain, spelled, validations
from trimtab.records.reports.run_story import percent
from trimtab.records.reports.study_charts import Curve, study_charts
from trimtab.records.reports.study_tree import tree_rows, tree_svg
from trimtab.records.reports.study_view import StudyRun, StudyView, choices_in_words, read_view
from trimtab.records.store.encoding import to_json
from trimtab.records.store.rows import RunRecord
from trimtab.records.store.store import Store


@dataclass(frozen=True)
class StudyReport:
    """What a study's report shows.

    Attributes:
        view: The study as it stood.
        importance: Of its static choices.
        winner: The best run so far with the decisions of its forebears; None if there is none, or
            nothing was decided in it.
        curves: Validation losses of its runs: the best path, those that go on, the newest others.
    """

    view: StudyView
    importance: Importance
    winner: RunRecord | None
    curves: Sequence[Curve] = ()


def read_study_report(name: str, store: str | Path) -> StudyReport:
    """Return what the report of a study shows; decisions are read of the best path only.

    Raises:
        UnknownNameError: There is no study of that name.
        StoreError: The store cannot be read.
    """
    with Store(store) as opened:
        view = read_view(opened, name)
        return StudyReport(view, importance_of(view), _winner(opened, view), _curves(opened, view))


def _curves(store: Store, view: StudyView) -> list[Curve]:
    """Return the validation losses of the runs that are drawn over one another."""
    path = {run.label for run in view.best_path}
    known = [run for run in view.runs if run.run is not None]
    known.sort(key=lambda run: (run.label not in path, run.is_over, -run.unit))
    found = []
    for run in known[:_MOST_CURVES]:
        record = store.run(int(run.run or 0))
        points = validations(record)
        total = max(int(record.head["total_steps"]), 1)
        kind = "best" if run.label in path else "other" if run.is_over else "running"
        if points:
            found.append(Curve(run.label, kind, [(step / total, loss) for step, loss in points]))
    return found


_MOST_CURVES = 40


def write_study_report(path: Path, report: StudyReport) -> None:
    """Write a study's report to a file, replacing it.

    Raises:
        MissingDependencyError: The extra ``report`` is not installed.
        SpecError: The file cannot be written.
    """
    page.write_file(path, study_report_html(report).encode())


def write_study_picture(path: Path, report: StudyReport) -> None:
    """Write the charts of a study's report as one picture on white.

    Args:
        path: File that ends in ``.png`` or ``.svg``.
        report: What it shows.

    Raises:
        MissingDependencyError: The extra ``report`` is not installed.
        SpecError: The ending is another one, the file cannot be written, or there is nothing to
            draw yet.
    """
    page.require_report_extra()
    charts = _charts(report)
    if not charts:
        raise SpecError(
            f"study {report.view.record.name!r} has no run that is over, so there is nothing to "
            "draw; wait for the first one, or leave --png out"
        )
    page.draw(path, page.sheet_of(charts))


def study_figures(report: StudyReport) -> dict[str, Any]:
    """Return what a study came to so far, as plain data."""
    view, best = report.view, report.view.best
    found = None
    if best is not None:
        found = {
            "unit": best.unit,
            "run": best.run,
            "validation": best.validation,
            "test": dict(best.test),
            "choices": dict(best.choices),
            "path": [run.label for run in view.best_path],
        }
    return {
        "study": view.record.name,
        "status": view.status,
        "runs": len(view.runs),
        "over": sum(run.is_over for run in view.runs),
        "spent": view.spent,
        "budget": view.record.budget,
        "best": found,
        "importance": {"method": report.importance.method, "shares": report.importance.shares},
    }


def study_report_html(report: StudyReport) -> str:
    """Return the page; every name that a user chose is escaped.

    Raises:
        MissingDependencyError: The extra ``report`` is not installed.
    """
    page.require_report_extra()
    view = report.view
    above = f"{_header(view)}{_cards(view)}{_tree(view)}{_told(report)}"
    decisions = ""
    if report.winner is not None and not is_plain(report.winner):
        decisions = f"<h2>Decisions of the best run</h2>{decisions_table(report.winner)}"
    below = f"{decisions}<h2>Runs</h2>{_runs(view)}<h2>The study</h2>{_about(report)}"
    return page.document(
        f"study {view.record.name}", above, _charts(report), below, style=page.asset("study.css")
    )


def _charts(report: StudyReport) -> list[dict[str, Any]]:
    charts = study_charts(report.view, report.importance, report.curves)
    best = report.view.best
    if report.winner is None or best is None:
        return charts
    own = charts_of(report.winner)
    for chart in own:
        chart["title"]["text"] = f"Unit {best.label}: {chart['title']['text']}"
    return charts + own


def _winner(store: Store, view: StudyView) -> RunRecord | None:
    """Return the best run whole: what was decided before it was forked comes first."""
    records = [store.run(run.run) for run in view.best_path if run.run is not None]
    if not records:
        return None
    decisions: tuple[Any, ...] = ()
    for record in records:
        begins = record.head["fork_decision"]
        if begins is not None:
            decisions = tuple(item for item in decisions if item.decision <= begins)
        first = record.decisions[0].decision if record.decisions else math.inf
        decisions = tuple(item for item in decisions if item.decision < first) + record.decisions
    last = records[-1]
    if not decisions:
        return None
    head = {**last.head, "start": records[0].head["start"]}
    return replace(last, head=head, decisions=decisions)


# In words.


def _path_in_words(view: StudyView, winner: RunRecord | None) -> list[str]:
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
        chosen = choices_in_words(run.choices)
        begun = {
            "first": "was the first run",
            "reference": "followed the plain schedule",
            "method": "was proposed by the method",
        }
        told.append(
            f"Unit {run.label} {begun.get(run.kind, 'began anew')}"
            f"{f' at {chosen}' if chosen else ''}, and came to {figure(run.validation)}."
        )
    if winner is not None and not is_plain(winner):
        told += _decided(winner)
    return told


def _of_schedule(record: RunRecord, name: str) -> str:
    kinds = {item["name"]: item["kind"] for item in record.head["spec"]["hyperparameters"]}
    return f"The schedule's peak of {name}" if kinds[name] == "lr" else name


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
            told.append(f"{_of_schedule(record, name)} stayed at {figure(values[-1])}.")
            continue
        top, low = max(range(len(values)), key=values.__getitem__), min(values)
        told.append(
            f"{_of_schedule(record, name)} was moved up at {up} and down at {down} of "
            f"{len(values)} decisions: from {figure(held[0])}, at most {figure(values[top])} (step "
            f"{record.decisions[top].step}), at least {figure(low)}, {figure(values[-1])} at the "
            "last one."
        )
    reasons = Counter(item.why or "applied as proposed" for item in record.decisions)
    if reasons:
        listed = "; ".join(f"{why} ({count})" for why, count in reasons.most_common(6))
        told.append(f"What became of its {len(record.decisions)} decisions: {listed}.")
    return told


def _why_in_words(view: StudyView) -> str:
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


# HTML.


def _duration(seconds: float) -> str:
    """Return a length of time as people say it.

    >>> _duration(41.2), _duration(200), _duration(8000)
    ('41 s', '3 min', '2.2 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _header(view: StudyView) -> str:
    record = view.record
    variant = record.settings.get("variant")
    words = [
        f"{record.task} ({variant})" if variant else record.task,
        f"method {record.method}",
        f"{figure(record.budget)} runs to spend",
        f"seed {record.seed}",
    ]
    mark = f"study {record.name} · {day_of(record.created_at)}"
    head = page.header(mark, _answer(view), f"{'; '.join(words)}.", view.status)
    if view.best is None:
        return head
    then = f"trimtab export {shlex.quote(record.name)} --to torch"
    return f'{head}<p class="then">Its schedule as plain numbers: {page.code(then)}</p>'


def _answer(view: StudyView) -> str:
    """Return in one line what came out: the best choices, their value, against the first run."""
    best = view.best
    if best is None:
        return f"{view.record.name}: no value yet"
    chosen = choices_in_words(best.choices)
    name, test = view.monitor, best.test.get(view.monitor)
    split, value = ("test", test) if test is not None else ("validation", best.validation)
    words = f"Best: {chosen or f'unit {best.label}'}, {split} {spelled(name)} {figure(value)}"
    first = min((run for run in view.runs if run.is_candidate), key=lambda run: run.unit)
    before = first.test.get(name) if split == "test" else first.validation
    if first is best or not isinstance(before, int | float) or not before:
        return words
    change = (value - before) / abs(before)
    way = "lower" if change < 0 else "higher"
    return f"{words}, {percent(change)} {way} than the first run"


def _cards(view: StudyView) -> str:
    best, counted = view.best, Counter(run.status for run in view.runs)
    over = sum(run.is_over for run in view.runs)
    rows = [
        (
            f"best {view.monitor or 'value'}",
            figure(best.validation if best else None),
            "validation",
        ),
        ("test", figure(best.test.get(view.monitor) if best else None), "of those weights"),
        ("best run", best.label if best else "–", best.kind if best else ""),
        ("compute in runs", figure(round(view.spent, 3)), f"of {figure(view.record.budget)}"),
        ("runs", f"{over}", "over" if over == len(view.runs) else f"over of {len(view.runs)}"),
    ]
    for status in ("stopped", "diverged", "failed"):
        if counted[status]:
            rows.append((status, str(counted[status]), ""))
    seconds = math.fsum(run.seconds for run in view.runs)
    rows.append(("trained for", _duration(seconds), "over all workers"))
    if view.seconds_left is not None:
        rows.append(("left", _duration(view.seconds_left), "about"))
    return page.cards(rows)


def _tree(view: StudyView) -> str:
    shown = len(tree_rows(view))
    words = "A bar is a run over the share of its steps, a fork hangs below what it came from."
    if shown < len(view.runs):
        words = f"{words} {shown} of {len(view.runs)} runs: the best path and the best others."
    return (
        f'<section class="charts"><div class="chart drawn wide"><h3>Runs and forks</h3>'
        f"<p>{words}</p>{tree_svg(view)}</div></section>"
    )


def _told(report: StudyReport) -> str:
    """Return the best run's path in words, and why it is the best."""
    best = report.view.best
    if best is None:
        return '<div class="sheet told"><p>No run has given a value yet.</p></div>'
    verb = "won" if report.view.status == "finished" else "leads"
    steps = "".join(
        f"<li>{text(words)}</li>" for words in _path_in_words(report.view, report.winner)
    )
    return (
        f"<h2>Why unit {text(best.label)} {verb}</h2>"
        f'<div class="sheet told"><ol>{steps}</ol><p>{text(_why_in_words(report.view))}</p></div>'
    )


def _runs(view: StudyView) -> str:
    labels: dict[int | None, str] = {r.run: r.label for r in view.runs if r.run is not None}
    best = {run.label for run in view.best_path}
    words = ("unit", "kind", "status", "forked from", "choices")
    rows = (_run_row(view, run, labels, run.label in best) for run in view.runs)
    return page.table(page.heads(words, ("validation", "test", "spent")), rows)


def _run_row(
    view: StudyView, run: StudyRun, labels: Mapping[int | None, str], is_best: bool
) -> str:
    parent = ""
    if run.parent is not None:
        parent = f"{labels.get(run.parent, '?')} at {100 * run.begins:.0f} %, {run.change}"
    choices = run.error or choices_in_words(run.choices)
    words = page.cells(map(text, (run.label, run.kind, run.status, parent, choices)))
    numbers = page.cells(map(figure, (run.validation, run.test.get(view.monitor), run.spent)), "n")
    return f"<tr{' class=best' if is_best else ''}>{words}{numbers}</tr>"


def _about(report: StudyReport) -> str:
    record, importance = report.view.record, report.importance
    rows = [
        ("settings", page.code(to_json(dict(record.settings)))),
        (
            "importance",
            text(importance.method or "not told: it takes four runs that differ in a choice"),
        ),
        (
            "gap to the best found",
            "the best loss so far less the lowest that this study found; the lowest one possible "
            "is not known here",
        ),
        (
            "compute in runs",
            "the charge of one run with the reference schedule; a fork pays for its part",
        ),
    ]
    if report.winner is not None:
        head = report.winner.head
        rows += [
            *notice_rows(head),
            *origin_rows(head),
            ("host of the best run", text(head["host"])),
        ]
    return page.details(rows)
