"""The tree of a study's runs, and its course, as drawings in SVG that any page can hold.

Colours come from the page's style sheet, by class; every text is escaped.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from trimtab.records.reports.study_view import StudyRun, StudyView, choices_in_words

MOST_DRAWN = 60
"""Runs that a tree shows; of more, the best path, what is going on, and the best others."""

_WIDTH, _LEFT, _RIGHT = 1100, 150, 250  # pixels
_ROW, _TOP = 22, 30
_CURVE_HEIGHT = 260


@dataclass(frozen=True)
class TreeRow:
    """A run in the tree.

    Attributes:
        run: What is drawn.
        parent: Row of the run that it was forked from; None for one that began anew.
        is_on_best_path: Whether the best run came of it.
    """

    run: StudyRun
    parent: int | None
    is_on_best_path: bool


def tree_rows(view: StudyView, most: int = MOST_DRAWN) -> list[TreeRow]:
    """Return the runs of a tree from top to bottom, each fork below what it came from.

    Args:
        view: The study.
        most: Runs to show; those that they were forked from are always shown with them.
    """
    known: dict[int | None, StudyRun] = {r.run: r for r in view.runs if r.run is not None}
    chosen = _chosen(view, most, known)
    children: dict[int | None, list[StudyRun]] = {}
    for run in chosen:
        children.setdefault(run.parent if run.parent in known else None, []).append(run)
    best = {run.label for run in view.best_path}
    rows: list[TreeRow] = []
    left: list[tuple[StudyRun, int | None]] = [
        (run, None) for run in reversed(children.get(None, []))
    ]
    while left:
        run, parent = left.pop()
        rows.append(TreeRow(run, parent, run.label in best))
        if run.run is not None:
            below = reversed(children.pop(run.run, []))
            left += [(child, len(rows) - 1) for child in below]
    return rows


def _chosen(view: StudyView, most: int, known: dict[int | None, StudyRun]) -> list[StudyRun]:
    """Return the runs to be drawn, in the order of their units."""
    if len(view.runs) <= most:
        return list(view.runs)
    going = [run for run in view.runs if run.status == "running"]
    ranked = sorted((run for run in view.runs if run.is_over), key=lambda run: run.loss)
    taken: dict[str, StudyRun] = {run.label: run for run in view.best_path}
    for run in (*going, *ranked):
        if len(taken) >= most:
            break
        here: StudyRun | None = run
        while here is not None and here.label not in taken:
            taken[here.label] = here
            here = known.get(here.parent) if here.parent is not None else None
    return [run for run in view.runs if run.label in taken]


def tree_svg(view: StudyView, most: int = MOST_DRAWN) -> str:
    """Return the tree as SVG: a bar a run over the share of its steps, and a link a fork.

    Args:
        view: The study.
        most: Runs to show at most, but for the forebears of those.
    """
    rows = tree_rows(view, most)
    height = _TOP + _ROW * max(len(rows), 1) + 8
    best = view.best
    marks = [_share_axis(height)]
    # Links lie below the bars, and those of the best path above the other links.
    order = sorted(range(len(rows)), key=lambda at: rows[at].is_on_best_path)
    marks += [_link(rows, at) for at in order if rows[at].parent is not None]
    for at, row in enumerate(rows):
        marks.append(_bar(row, at, row.run is best))
    if not rows:
        marks.append(_words(_LEFT, _TOP + 16, "no run has begun yet", "faint"))
    return _drawing(height, marks, f"the tree of {len(rows)} runs")


def _x(share: float) -> float:
    return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)


def _y(at: int) -> float:
    return _TOP + _ROW * (at + 0.5)


def _share_axis(height: float) -> str:
    parts = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = _x(share)
        parts.append(
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{height - 4}"/>'
        )
        parts.append(_words(x, _TOP - 10, f"{100 * share:.0f} %", "faint middle"))
    return "".join(parts)


def _link(rows: Sequence[TreeRow], at: int) -> str:
    row = rows[at]
    if row.parent is None:
        return ""
    x, above, here = _x(row.run.begins), _y(row.parent), _y(at)
    kind = "link best" if row.is_on_best_path else "link"
    bend = min(10.0, here - above)
    return (
        f'<path class="{kind}" d="M{x - 10:.1f} {above:.1f}Q{x:.1f} {above:.1f} {x:.1f} '
        f'{above + bend:.1f}V{here:.1f}"/>'
    )


def _bar(row: TreeRow, at: int, is_best: bool) -> str:
    run, y = row.run, _y(at)
    begins, ends = _x(run.begins), _x(max(run.ends, run.begins))
    kind = f"{run.status}{' best' if row.is_on_best_path else ''}"
    value = f"{run.validation:.4g}" if math.isfinite(run.validation) else ""
    said = [run.label, run.kind, run.status, run.change, value, choices_in_words(run.choices)]
    named = f"{run.label} {run.kind}"
    after = " ".join(
        part for part in (value, "" if run.status == "finished" else run.status) if part
    )
    parts = [
        f"<title>{html.escape(' · '.join(part for part in said if part))}</title>",
        _words(_LEFT - 14, y + 4, named, f"end{' best' if row.is_on_best_path else ''}"),
        f'<line class="bar" x1="{begins:.1f}" x2="{ends:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>',
        f'<circle class="dot" cx="{ends:.1f}" cy="{y:.1f}" r="{6 if is_best else 4}"/>',
        _words(_x(1.0) + 18, y + 4, after + (" · the best" if is_best else ""), "value"),
    ]
    if run.status == "stopped":
        parts.append(
            f'<line class="stop" x1="{ends:.1f}" x2="{ends:.1f}" '
            f'y1="{y - 6:.1f}" y2="{y + 6:.1f}"/>'
        )
    return f'<g class="run {html.escape(kind, quote=True)}">{"".join(parts)}</g>'


@dataclass(frozen=True)
class CoursePoint:
    """Where a study stood when a run was over, in the order of its units.

    Attributes:
        spent: Charge up to then, in whole runs.
        run: The run.
        best: The best value of the monitored metric so far.
        best_loss: The same, to be made small.
    """

    spent: float
    run: StudyRun
    best: float
    best_loss: float


def course(view: StudyView) -> list[CoursePoint]:
    """Return the course of a study: one point for each run that is over and has a value.

    Runs count in the order of their units, which does not depend on the number of jobs.
    """
    points: list[CoursePoint] = []
    spent, best, best_loss = 0.0, math.nan, math.inf
    for run in view.runs:
        if not run.is_over:
            continue
        spent += run.spent
        if run.is_candidate and run.loss < best_loss:
            best, best_loss = run.validation, run.loss
        if math.isfinite(run.validation) and math.isfinite(best_loss):
            points.append(CoursePoint(spent, run, best, best_loss))
    return points


def shown_range(points: Sequence[CoursePoint]) -> tuple[float, float]:
    """Return the values that a drawing shows: all that was best once, and most of the others.

    Returns:
        Low and high; runs that lie outside are drawn at the edge.
    """
    best = [point.best for point in points]
    values = sorted(point.run.validation for point in points)
    low, high = min(best), max(best)
    tenth = len(values) // 10
    low, high = min(low, values[tenth]), max(high, values[-1 - tenth])
    room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


def course_svg(view: StudyView) -> str:
    """Return the best value against the compute that was spent, as SVG."""
    points = course(view)
    if not points:
        return _drawing(60, [_words(_LEFT, 34, "no run is over yet", "faint")], "nothing yet")
    low, high = shown_range(points)
    last = max(view.record.budget, points[-1].spent)
    top, bottom = 12.0, _CURVE_HEIGHT - 34.0

    def place(spent: float, value: float) -> tuple[float, float]:
        share = (min(max(value, low), high) - low) / (high - low)
        return 70 + spent / last * (_WIDTH - 100), bottom - share * (bottom - top)

    marks = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, _ = place(share * last, low)
        _, y = place(0.0, low + share * (high - low))
        marks.append(f'<line class="grid" x1="70" x2="{_WIDTH - 30}" y1="{y:.1f}" y2="{y:.1f}"/>')
        marks.append(_words(60, y + 4, f"{low + share * (high - low):.4g}", "faint end"))
        marks.append(_words(x, bottom + 22, f"{share * last:.3g}", "faint middle"))
    steps = ""
    for point in points:
        x, y = place(point.spent, point.best)
        steps += f"M{x:.1f} {y:.1f}" if not steps else f"H{x:.1f}V{y:.1f}"
    end, _ = place(max(view.spent, points[-1].spent), points[-1].best)
    marks.append(f'<path class="course" d="{steps}H{end:.1f}"/>')
    marks += _dots(points, place, view.best)
    return _drawing(_CURVE_HEIGHT, marks, "the best value against the whole runs spent")


def _dots(
    points: Sequence[CoursePoint],
    place: Callable[[float, float], tuple[float, float]],
    best: StudyRun | None,
) -> Iterable[str]:
    for point in points:
        x, y = place(point.spent, point.run.validation)
        kind = "dot best" if point.run is best else "dot"
        said = f"{point.run.label} {point.run.kind} · {point.run.validation:.4g}"
        yield (
            f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{5 if point.run is best else 3}">'
            f"<title>{html.escape(said)}</title></circle>"
        )


def _words(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{html.escape(text)}</text>'


def _drawing(height: float, marks: Iterable[str], label: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="drawing" role="img" '
        f'aria-label="{html.escape(label, quote=True)}" viewBox="0 0 {_WIDTH} {height:.0f}">'
        f"{''.join(marks)}</svg>"
    )
