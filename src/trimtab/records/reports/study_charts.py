"""The charts of a study's report, as Vega-Lite specifications made with Altair."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trimtab.records.reports.importance import Importance, begun_anew, is_numeric
from trimtab.records.reports.page import Row, chart_title, inline, specification
from trimtab.records.reports.run_charts import spelled
from trimtab.records.reports.study_tree import CoursePoint, course, shown_range
from trimtab.records.reports.study_view import StudyRun, StudyView, choices_in_words

_POOR, _GOOD = "#8b96a3", "#1f86b4"  # of runs from the worst to the best, on light and dark
_LEFT_OUT = -0.16  # where an axis shows a run that left the choice as it was
_MOST_LINES = 400
_FEWEST_RUNS = 8  # from which on a picture of choices says anything


@dataclass(frozen=True)
class Curve:
    """One run's validation loss over its steps.

    Attributes:
        unit: What the run is called.
        kind: ``"best"`` for the best path, ``"running"``, or ``"other"``.
        points: (share of the steps, loss).
    """

    unit: str
    kind: str
    points: Sequence[tuple[float, float]]


def study_charts(
    view: StudyView, importance: Importance, curves: Sequence[Curve] = ()
) -> list[Row]:
    """Return the specifications: the runs, value and gap against compute, choices, importance.

    Those that have nothing to show are left out.

    Args:
        view: The study.
        importance: Of its static choices.
        curves: Validation losses of its runs.
    """
    points = course(view)
    charts = [
        _curves_chart(curves) if points else None,
        *([_value_chart(view, points), _regret_chart(view, points)] if points else []),
        _parallel_chart(view, list(importance.shares)),
        _importance_chart(importance),
    ]
    return [specification(chart) for chart in charts if chart is not None]


def _curves_chart(curves: Sequence[Curve]) -> Any:
    """Return the validation losses of all runs over one another; None if there are none."""
    import altair as alt

    rows: list[Row] = [
        {"unit": curve.unit, "kind": curve.kind, "share": share, "loss": loss}
        for curve in curves
        for share, loss in curve.points
    ]
    if not rows:
        return None
    sizes = sorted(row["loss"] for row in rows)
    is_log = sizes[0] > 0 and sizes[-1] > 6 * sizes[0]
    scale = alt.Scale(type="log") if is_log else alt.Scale(zero=False)
    y = alt.Y("loss:Q", scale=scale, axis=alt.Axis(title=None, tickCount=6, format="~g"))
    x = alt.X("share:Q", title="share of the steps", axis=alt.Axis(format="%"))
    tip = [alt.Tooltip("unit:N"), alt.Tooltip("share:Q", format=".0%"), alt.Tooltip("loss:Q")]
    base = alt.Chart(inline(rows)).encode(x=x, y=y, detail="unit:N", tooltip=tip)
    others = base.transform_filter("datum.kind === 'other'")
    going = base.transform_filter("datum.kind === 'running'")
    best = base.transform_filter("datum.kind === 'best'")
    told = "red: the path to the best run; dashed: those that go on"
    return alt.layer(
        others.mark_line(style="faint", opacity=0.35, strokeWidth=1.2),
        going.mark_line(style="steered", strokeDash=[5, 3], strokeWidth=2),
        best.mark_line(style="best", strokeWidth=2.5),
    ).properties(
        title=chart_title("All runs: validation loss", f"{told}{'; log axis' if is_log else ''}"),
        usermeta={"wide": True},
    )


def _spent_axis(view: StudyView, points: Sequence[CoursePoint]) -> Any:
    import altair as alt

    last = max(view.record.budget, points[-1].spent)
    scale = alt.Scale(domain=[0, 1.02 * last], nice=False)
    return alt.X("spent:Q", title="compute spent, in runs", scale=scale)


def _point_rows(points: Sequence[CoursePoint], low: float, high: float) -> list[Row]:
    return [
        {
            "spent": point.spent,
            "shown": min(max(point.run.validation, low), high),
            "unit": point.run.label,
            "kind": point.run.kind,
            "status": point.run.status,
            "validation": f"{point.run.validation:.4g}",
            "choices": choices_in_words(point.run.choices),
        }
        for point in points
    ]


def _ends(view: StudyView, rows: list[Row], points: Sequence[CoursePoint]) -> list[Row]:
    """Return the rows with the last one again at the end of what was spent."""
    return [*rows, {**rows[-1], "spent": max(view.spent, points[-1].spent)}]


def _value_chart(view: StudyView, points: Sequence[CoursePoint]) -> Any:
    import altair as alt

    low, high = shown_range(points)
    rows = _point_rows(points, low, high)
    best = _ends(view, [{"spent": p.spent, "shown": p.best} for p in points], points)
    x = _spent_axis(view, points)
    scale = alt.Scale(domain=[low, high], zero=False, nice=False)
    y = alt.Y("shown:Q", scale=scale, axis=alt.Axis(title=None, tickCount=6, format="~g"))
    tip = [alt.Tooltip(f"{name}:N") for name in ("unit", "kind", "status", "validation", "choices")]
    dots = alt.Chart(inline(rows)).mark_point(filled=True, size=34, opacity=0.75, style="steered")
    line = alt.Chart(inline(best)).mark_line(interpolate="step-after", style="best")
    hidden = sum(not low <= point.run.validation <= high for point in points)
    edge = f"; {hidden} far off, at the edge" if hidden else ""
    return alt.layer(dots.encode(x=x, y=y, tooltip=tip), line.encode(x=x, y=y)).properties(
        title=chart_title(
            f"Best {spelled(view.monitor)} on validation", f"a dot a run, the line the best{edge}"
        )
    )


def _regret_chart(view: StudyView, points: Sequence[CoursePoint]) -> Any:
    """Return how far the best so far was above the best in the end, on a log axis."""
    import altair as alt

    last = points[-1].best_loss
    rows = [{"spent": p.spent, "regret": p.best_loss - last} for p in points]
    rows = [row for row in rows if row["regret"] > 0]
    if not rows:
        return None
    found = next(p.spent for p in points if p.best_loss == last)
    rows.append({**rows[-1], "spent": found})
    sizes = [math.log10(row["regret"]) for row in rows]
    powers = range(
        math.floor(min(sizes)), max(math.ceil(max(sizes)), math.floor(min(sizes)) + 1) + 1
    )
    decades = [float(f"1e{power}") for power in powers]
    y = alt.Y(
        "regret:Q",
        scale=alt.Scale(type="log", domain=[decades[0], decades[-1]], nice=False),
        axis=alt.Axis(title=None, values=decades, format="~g"),
    )
    tip = [alt.Tooltip("spent:Q", format=".3g"), alt.Tooltip("regret:Q", format=".3g")]
    base = alt.Chart(inline(rows)).encode(x=_spent_axis(view, points), y=y)
    words = f"best so far less the best of all, log axis; none is left from {found:.3g} runs on"
    return alt.layer(
        base.mark_line(interpolate="step-after", style="best"),
        base.mark_point(filled=True, size=30, opacity=1, style="best").encode(tooltip=tip),
    ).properties(title=chart_title("Gap to the best found", words))


# Choices.


def _parallel_chart(view: StudyView, names: Sequence[str]) -> Any:
    """Return parallel coordinates of the static choices; None if all runs have the same."""
    import altair as alt

    runs = sorted(begun_anew(view), key=lambda run: run.loss)
    if len(names) < 2 or len(runs) < _FEWEST_RUNS:
        return None  # the runs' table and the curves say it better
    drawn = runs[:: math.ceil(len(runs) / _MOST_LINES)]
    axes = {name: _Axis([run.choices.get(name) for run in runs]) for name in names}
    lines, labels = _line_rows(drawn, axes), _label_rows(axes)
    x = alt.X(
        "name:N",
        sort=list(names),
        title=None,
        axis=alt.Axis(labelAngle=0, labelFontSize=12, orient="top", domain=False, labelPadding=18),
        scale=alt.Scale(type="point", padding=0.35),
    )
    y = alt.Y("at:Q", axis=None, scale=alt.Scale(domain=[_LEFT_OUT - 0.06, 1.06], nice=False))
    colour = alt.Color("rank:Q", scale=alt.Scale(domain=[0, 1], range=[_GOOD, _POOR]), legend=None)
    tip = [alt.Tooltip(f"{name}:N") for name in ("unit", "validation", "choices")]
    base = alt.Chart(inline(lines)).encode(x=x, y=y, detail="unit:N", tooltip=tip)
    rules = alt.Chart(inline(labels)).transform_filter("datum.edge === 'low'")
    texts = alt.Chart(inline(labels)).mark_text(
        align="left", dx=6, fontSize=10.5, limit=110, style="faint"
    )
    thin = 1.2 if len(drawn) > 60 else 1.8
    marks = [
        rules.mark_rule(style="faint", opacity=0.5).encode(x=x, y=y, y2="top:Q"),
        base.transform_filter("!datum.best")
        .mark_line(strokeWidth=thin, opacity=0.65)
        .encode(color=colour),
        base.transform_filter("datum.best").mark_line(style="best", strokeWidth=3),
        texts.encode(x=x, y=y, text="text:N"),
    ]
    more = "" if len(drawn) == len(runs) else f"; {len(drawn)} of {len(runs)} are drawn"
    return alt.layer(*marks).properties(
        title=chart_title("Static choices", f"a line a run that began anew, bluer is better{more}")
    )


class _Axis:
    """Where the values of one choice lie on its axis, from 0 to 1."""

    def __init__(self, values: Sequence[Any]) -> None:
        known = [value for value in values if value is not None]
        self.has_gaps = len(known) < len(values)
        self.is_numeric = is_numeric(known)
        if self.is_numeric:
            self._low, self._high = float(min(known)), float(max(known))
            self._is_log = self._low > 0 and self._high > 10 * self._low
            self.ticks: list[Any] = [self._low, self._high]
        else:
            self.ticks = sorted({str(value) for value in known})

    def at(self, value: Any) -> float:
        """Return the place of a value; below the axis if it was left as it was."""
        if value is None:
            return _LEFT_OUT
        if not self.is_numeric:
            return self.ticks.index(str(value)) / max(len(self.ticks) - 1, 1)
        low, high, here = self._low, self._high, float(value)
        if self._is_log:
            low, high, here = math.log(low), math.log(high), math.log(here)
        return (here - low) / (high - low) if high > low else 0.5


def _line_rows(runs: Sequence[StudyRun], axes: Mapping[str, _Axis]) -> list[Row]:
    rows = []
    for rank, run in enumerate(runs):
        about = {
            "unit": run.label,
            "rank": rank / max(len(runs) - 1, 1),
            "best": rank == 0,
            "validation": f"{run.validation:.4g}",
            "choices": choices_in_words(run.choices),
        }
        rows += [
            {**about, "name": name, "at": axis.at(run.choices.get(name))}
            for name, axis in axes.items()
        ]
    return rows


def _label_rows(axes: Mapping[str, _Axis]) -> list[Row]:
    rows: list[Row] = []
    for name, axis in axes.items():
        for number, tick in enumerate(axis.ticks):
            edge = "low" if number == 0 else "other"
            text = f"{tick:.3g}" if axis.is_numeric else str(tick)
            rows.append({"name": name, "at": axis.at(tick), "top": 1.0, "text": text, "edge": edge})
        if axis.has_gaps:
            row = {"name": name, "at": _LEFT_OUT, "top": 1.0, "text": "as it was", "edge": "gap"}
            rows.append(row)
    return rows


def _importance_chart(importance: Importance) -> Any:
    """Return a bar for each choice; None if nothing could be told."""
    import altair as alt

    rows: list[Row] = [{"name": n, "share": share} for n, share in importance.shares.items()]
    is_told = len(rows) > 1 and importance.runs >= _FEWEST_RUNS
    if not is_told or not any(row["share"] > 0 for row in rows):
        return None
    y = alt.Y("name:N", sort=[row["name"] for row in rows], title=None)
    x = alt.X("share:Q", title="share of what the choices explain", axis=alt.Axis(format="%"))
    base = alt.Chart(inline(rows)).encode(x=x, y=y)
    method, _, rest = importance.method.partition(": ")
    return alt.layer(
        base.mark_bar(style="steered", height=alt.RelativeBandSize(0.6)).encode(
            tooltip=[alt.Tooltip("name:N"), alt.Tooltip("share:Q", format=".1%")]
        ),
        base.mark_text(align="left", dx=6, style="faint").encode(
            text=alt.Text("share:Q", format=".0%")
        ),
    ).properties(
        title=chart_title(
            "Importance of the static choices", [f"{method}, {importance.runs} runs:", rest]
        )
    )
