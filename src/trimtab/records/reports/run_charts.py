"""The charts of a report, as Vega-Lite specifications made with Altair.

A specification holds no colours: these come from `THEMES`, so that one chart serves a light page,
a dark page and a picture.
"""

from __future__ import annotations

import math
from typing import Any

from trimtab.core.errors import MissingDependencyError
from trimtab.records.reports import chart_data
from trimtab.records.store.rows import RunRecord

__all__ = ["THEMES", "charts_of", "require_report_extra"]

_FONT = "Inter, 'Segoe UI', 'Helvetica Neue', Helvetica, 'Liberation Sans', Arial, sans-serif"


def _theme(ink: str, faint: str, grid: str, colours: list[str], best: str) -> dict[str, Any]:
    return {
        "background": None,
        "font": _FONT,
        "view": {"stroke": None},
        "line": {"strokeJoin": "round", "strokeCap": "round"},
        "range": {"category": colours},
        "axis": {
            "labelColor": faint,
            "titleColor": faint,
            "titleFontWeight": "normal",
            "titleFontSize": 12,
            "labelFontSize": 11,
            "gridColor": grid,
            "domain": False,
            "ticks": False,
            "labelPadding": 8,
            "titlePadding": 10,
        },
        "axisX": {"grid": False, "domain": True, "domainColor": grid},
        "legend": {
            "labelColor": ink,
            "labelFontSize": 12,
            "labelLimit": 260,
            "orient": "top",
            "direction": "horizontal",
            "title": None,
            "symbolStrokeWidth": 2.5,
            "symbolSize": 130,
            "offset": 6,
        },
        "title": {
            "color": ink,
            "subtitleColor": faint,
            "anchor": "start",
            "fontSize": 15,
            "subtitleFontSize": 12,
            "fontWeight": 600,
            "offset": 12,
            "subtitlePadding": 5,
        },
        "style": {
            "reference": {"color": faint, "strokeWidth": 1.5, "strokeDash": [1, 4]},
            "best": {"color": best, "strokeWidth": 2.5},
            "steered": {"color": colours[0]},
            "faint": {"color": faint},
        },
    }


THEMES: dict[str, dict[str, Any]] = {
    "light": _theme("#1d2733", "#667383", "#e6eaef", ["#0b6e99", "#b0763a"], "#d1495b"),
    "dark": _theme("#e8edf3", "#93a1b2", "#28323e", ["#58b6de", "#dba365"], "#ff7b8b"),
}
"""Vega configurations by name."""


def require_report_extra() -> None:
    """Check that the extra ``report`` is installed.

    Raises:
        MissingDependencyError: It is not.
    """
    import importlib.util

    missing = [name for name in ("altair", "vl_convert") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"a report needs {' and '.join(missing)}; run: pip install 'trimtab[report]'"
        )


def charts_of(record: RunRecord, other: RunRecord | None = None) -> list[dict[str, Any]]:
    """Return the specifications of a run's charts, each as wide as its container.

    The loss comes first, then each steered hyperparameter, then up to three more metrics.

    Args:
        record: The run.
        other: A run to draw beside it.
    """
    runs = [(record, chart_data.label_of(record, other))]
    if other is not None:
        runs.append((other, chart_data.label_of(other, record)))
    charts = [_loss_chart(runs)]
    charts += [_path_chart(runs, name) for name in chart_data.steered_names(record)]
    charts += [_metric_chart(runs, name) for name in chart_data.metric_names(record)[:3]]
    return [_plain(chart) for chart in charts]


Runs = list[tuple[RunRecord, str]]


def _plain(chart: Any) -> dict[str, Any]:
    made: dict[str, Any] = chart.properties(width="container", height=300).to_dict()
    made.pop("config", None)
    return made


def _values(rows: list[chart_data.Row]) -> Any:
    import altair as alt

    return alt.InlineData(values=rows)


def _colour(runs: Runs, *, legend: bool = True) -> Any:
    import altair as alt

    shown = alt.Legend() if legend and len(runs) > 1 else None
    return alt.Color("run:N", scale=alt.Scale(domain=[label for _, label in runs]), legend=shown)


def _steps(runs: Runs) -> Any:
    import altair as alt

    total = max(int(record.head["total_steps"]) for record, _ in runs)
    # A little air on both sides, so that points at the ends are whole.
    scale = alt.Scale(domain=[-0.012 * total, 1.012 * total], nice=False)
    return alt.X("step:Q", title="optimiser step", scale=scale, axis=alt.Axis(tickCount=8))


def _log_note(is_log: object) -> str:
    return "; log axis" if is_log else ""


def _value_axis(field: str, log_domain: tuple[float, float] | None) -> Any:
    """Return a linear axis that fits its values, or a log axis with a few round ticks."""
    import altair as alt

    if log_domain is None:
        axis = alt.Axis(title=None, tickCount=6, format="~g")
        return alt.Y(field, axis=axis, scale=alt.Scale(zero=False))
    low, high = log_domain
    decades = math.log10(high / low)
    steps = (1, 2, 5) if decades < 2 else (1, 3) if decades < 3.5 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [float(f"{m}e{p}") for p in powers for m in steps if low <= float(f"{m}e{p}") <= high]
    plain = low >= 1e-3 and high <= 1e4
    axis = alt.Axis(title=None, values=ticks, format="~g" if plain else "~e")
    return alt.Y(field, axis=axis, scale=alt.Scale(type="log", domain=[low, high], nice=False))


def _title(text: str, subtitle: str) -> Any:
    import altair as alt

    return alt.TitleParams(text, subtitle=subtitle)


def _loss_chart(runs: Runs) -> Any:
    import altair as alt

    rows = [row for record, run in runs for row in chart_data.evaluations(record, run)]
    best = [row for record, run in runs for row in chart_data.best_row(record, run)]
    sizes = [row["loss"] for row in rows]
    spread = bool(sizes) and min(sizes) > 0 and max(sizes) > 6 * min(sizes)
    y = _value_axis("loss:Q", (0.9 * min(sizes), 1.1 * max(sizes)) if spread else None)
    base = alt.Chart(_values(rows)).encode(x=_steps(runs), y=y, color=_colour(runs))
    split = alt.StrokeDash(
        "split:N",
        scale=alt.Scale(domain=["validation", "training"], range=[[1, 0], [3, 3]]),
        legend=alt.Legend(symbolStrokeColor="gray"),
    )
    tip = [
        alt.Tooltip("run:N"),
        alt.Tooltip("split:N"),
        alt.Tooltip("step:Q"),
        alt.Tooltip("loss:Q", format=".4g"),
    ]
    lines = base.mark_line(strokeWidth=2, interpolate="linear").encode(
        strokeDash=split,
        opacity=alt.condition("datum.split === 'training'", alt.value(0.6), alt.value(1)),
    )
    dots = (
        base.mark_point(filled=True, size=26, opacity=1)
        .encode(tooltip=tip)
        .transform_filter("datum.split === 'validation'")
    )
    ring = (
        alt.Chart(_values(best))
        .mark_point(size=150, style="best", shape="circle", opacity=1)
        .encode(x=_steps(runs), y=y, tooltip=[tip[0], tip[2], tip[3]])
    )
    subtitle = f"the ring marks the weights that are kept{_log_note(spread)}"
    return alt.layer(lines, dots, ring).properties(title=_title("Loss", subtitle))


def _metric_chart(runs: Runs, name: str) -> Any:
    import altair as alt

    rows = [row for record, run in runs for row in chart_data.metric_rows(record, run, name)]
    best = [row for record, run in runs for row in chart_data.best_row(record, run, name)]
    y = _value_axis("value:Q", None)
    base = alt.Chart(_values(rows)).encode(x=_steps(runs), y=y, color=_colour(runs))
    tip = [alt.Tooltip("run:N"), alt.Tooltip("step:Q"), alt.Tooltip("value:Q", format=".4g")]
    ring = (
        alt.Chart(_values(best))
        .mark_point(size=150, style="best", shape="circle", opacity=1)
        .encode(x=_steps(runs), y=y, tooltip=tip)
    )
    return alt.layer(
        base.mark_line(strokeWidth=2),
        base.mark_point(filled=True, size=26, opacity=1).encode(tooltip=tip),
        ring,
    ).properties(title=_title(chart_data.spelled(name), "on validation"))


def _path_chart(runs: Runs, name: str) -> Any:
    import altair as alt

    steered, label = runs[0]
    item = next(h for h in steered.head["spec"]["hyperparameters"] if h["name"] == name)
    drawn = [(one, run) for one, run in runs if name in chart_data.steered_names(one)]
    rows = [row for one, run in drawn for row in chart_data.hyperparameter_path(one, run, name)]
    reference = chart_data.reference_path(steered, name)
    is_log = item["scale"] == "log"
    total = int(steered.head["total_steps"])
    domain = chart_data.value_domain([*rows, *reference], total) if is_log else None
    clip = domain is not None
    if domain:
        rows = [row for row in rows if row["value"] > 0]
        reference = [row for row in reference if row["value"] > 0]
    y = _value_axis("value:Q", domain)
    x = _steps(runs)
    tip = [
        alt.Tooltip("decision:Q"),
        alt.Tooltip("step:Q"),
        alt.Tooltip("proposed:N"),
        alt.Tooltip("applied:N"),
        alt.Tooltip("why:N"),
        alt.Tooltip("validation:N", title="validation loss"),
        alt.Tooltip("reward:N", title="earned"),
    ]
    kinds = ["as proposed", "guard changed it", "went back to the best weights"]
    under = alt.Chart(_values(reference)).mark_line(style="reference", clip=clip)
    path = alt.Chart(_values(rows)).mark_line(strokeWidth=2, interpolate="step-after", clip=clip)
    points = alt.Chart(_values(chart_data.move_points(steered, label, name))).mark_point(
        filled=True, size=70, clip=clip, opacity=1
    )
    shape = alt.Shape(
        "kind:N",
        scale=alt.Scale(domain=kinds, range=["circle", "diamond", "triangle-down"]),
        legend=alt.Legend(symbolFillColor="gray", symbolStrokeWidth=0, symbolSize=70),
    )
    colour = _colour(runs, legend=False)
    return alt.layer(
        under.encode(x=x, y=y),
        path.encode(x=x, y=y, color=colour),
        points.encode(x=x, y=y, color=colour, shape=shape, tooltip=tip),
    ).properties(
        title=_title(name, f"what was applied, over its reference (dotted){_log_note(domain)}")
    )
