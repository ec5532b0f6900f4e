"""The charts of a comparison, as Vega-Lite specifications made with Altair."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["comparison_charts", "compute_picture", "regret_chart"]

_STEERED = "trimtab"

Row = Mapping[str, Any]


def comparison_charts(rows: Sequence[Row], figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the specifications: regret, profiles, improvement, n*, then test a task.

    Args:
        rows: One a result.
        figures: As a comparison's JSON has them.
    """
    charts = [
        regret_chart(figures),
        _profile_chart(figures),
        _interval_chart(
            figures["probability_of_improvement"],
            "Probability of improvement",
            "how often the steered run is better, paired by seed; 0.5 is a tie",
            0.5,
        ),
        _interval_chart(
            figures["n_star"], "n*: how many random runs one is worth", "per whole run spent", 1.0
        ),
        *(_test_chart(name, rows, figures) for name in figures["tasks"]),
    ]
    return [_plain(chart) for chart in charts if chart is not None]


def _plain(chart: Any) -> dict[str, Any]:
    made: dict[str, Any] = chart.properties(width="container").to_dict()
    made.pop("config", None)
    return {"height": 300, **made}


def compute_picture(figures: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the specification of `regret_chart` at a fixed size, for a picture; None if empty."""
    chart = regret_chart(figures)
    if chart is None:
        return None
    made: dict[str, Any] = chart.properties(width=820).to_dict()
    made.pop("config", None)
    return made


def _values(rows: Sequence[Row]) -> Any:
    import altair as alt

    return alt.InlineData(values=[dict(row) for row in rows])


def _group(label: str) -> str:
    return _STEERED if label.partition(":")[0] == _STEERED else "others"


def _colour() -> Any:
    import altair as alt

    return alt.Color("group:N", scale=alt.Scale(domain=[_STEERED, "others"]), legend=None)


def regret_chart(figures: Mapping[str, Any]) -> Any:
    """Return regret against charge: searches as lines over their budgets, one-run methods as dots.

    Every mark is named beside it, without a legend; names are moved apart where they would meet.
    A regret above what is shown is drawn at the upper edge, with its value in its name.
    """
    import altair as alt

    points = _compute_points(figures)
    if not points:
        return None
    low = min(0.0, *(point["low"] for point in points))
    span = (low - 0.04 * (_HIGHEST_REGRET - low), _HIGHEST_REGRET * 1.02)
    most = max(point["charge"] for point in points)
    x = alt.X(
        "charge:Q",
        title="compute in whole runs; log axis",
        scale=alt.Scale(type="log", domain=[_LEFT_EDGE, max(most, 2.0) * 2.1], nice=False),
        axis=alt.Axis(values=[n for n in (1, 2, 4, 8, 16, 32, 64) if n <= most * 1.1], format="~g"),
    )
    y = alt.Y(
        "regret:Q",
        title="normalised regret",
        scale=alt.Scale(domain=list(span), nice=False),
        axis=alt.Axis(tickCount=6),
    )
    searches = [point for point in points if point["kind"] == "search"]
    singles = [point for point in points if point["kind"] != "search"]
    colour = alt.Color(
        "method:N",
        legend=None,
        scale=alt.Scale(domain=list(_COLOURS), range=list(_COLOURS.values())),
    )
    tip = [
        alt.Tooltip("label:N", title="method"),
        alt.Tooltip("told:N", title="regret"),
        alt.Tooltip("charge:Q", format=".3g", title="whole runs"),
    ]
    grey = alt.value("#8b96a3")
    lines = alt.Chart(_values(searches)).encode(x=x, y=y, color=colour)
    dots = alt.Chart(_values([p for p in singles if p["kind"] == "single"])).encode(x=x, y=y)
    steered = alt.Chart(_values([p for p in singles if p["kind"] == "steered"])).encode(x=x, y=y)
    names = alt.Chart(_values(_names(points, span))).encode(y=y)
    layers = [
        alt.Chart(_values([{"regret": 0.0}, {"regret": 1.0}]))
        .mark_rule(style="reference")
        .encode(y=y),
        steered.mark_rule(style="steered", strokeDash=[5, 4], strokeWidth=1.2, opacity=0.7).encode(
            x=alt.value(0), x2=alt.value("width")
        ),
        lines.mark_rule(opacity=0.3).encode(y=alt.Y("low:Q"), y2="high:Q"),
        lines.mark_line(strokeWidth=2),
        lines.mark_point(filled=True, size=46, opacity=1).encode(tooltip=tip),
        names.transform_filter("datum.side === 'left'")
        .mark_rule(strokeWidth=0.7, opacity=0.6)
        .encode(x=alt.X("from:Q"), x2="charge:Q", y2="target:Q", color=grey),
        dots.mark_rule(opacity=0.25).encode(y=alt.Y("low:Q"), y2="high:Q", color=grey),
        dots.mark_point(filled=True, size=40, opacity=1).encode(color=grey, tooltip=tip),
        names.transform_filter("datum.side === 'right'")
        .mark_text(align="left", fontSize=12, fontWeight=600)
        .encode(x=alt.X("from:Q"), text="label:N", color=colour),
        names.transform_filter("datum.side === 'left' && datum.kind === 'single'")
        .mark_text(align="right", fontSize=11, dx=-3, style="faint")
        .encode(x=alt.X("from:Q"), text="label:N"),
        names.transform_filter("datum.kind === 'steered'")
        .mark_text(align="right", fontSize=13, fontWeight=700, dx=-3, dy=-9, style="steered")
        .encode(x=alt.X("from:Q"), text="label:N"),
        steered.mark_rule(style="steered", strokeWidth=2.5, opacity=0.5).encode(
            y=alt.Y("low:Q"), y2="high:Q"
        ),
        steered.mark_point(filled=True, size=150, opacity=1, style="steered").encode(tooltip=tip),
    ]
    return alt.layer(*layers).properties(
        height=_COMPUTE_HEIGHT,
        title=alt.TitleParams(
            "Regret against compute, all methods",
            subtitle="0: as good as tuned by a grid of 32; 1: as good as a random run (dotted); "
            "lower is better",
        ),
    )


_COMPUTE_HEIGHT = 440
_HIGHEST_REGRET = 2.2
_LEFT_EDGE, _NAMES_AT = 0.3, 0.62
_NAME_HEIGHT = 15  # pixels
_COLOURS = {
    "random": "#7b8794",
    "grid": "#b0763a",
    "hyperopt": "#3a9a6c",
    "optuna": "#8663c4",
    "asha": "#c8527e",
    "pbt": "#b59a1c",
    "pb2": "#d07b3f",
}


def _compute_points(figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a point for each method and budget, regrets cut at the highest that is shown."""
    points = []
    for label, found in figures["regret"].items():
        charge = figures["spent"][label]
        if found is None or not charge > 0:
            continue
        method = label.partition(":")[0]
        kind = "steered" if method == _STEERED else "search" if method in _COLOURS else "single"
        values = {key: min(found[key], _HIGHEST_REGRET) for key in ("value", "low", "high")}
        is_above = found["value"] > _HIGHEST_REGRET
        name = "trimtab, one run" if kind == "steered" else method
        points.append(
            {
                "method": method,
                "label": label,
                "name": f"{name} ({found['value']:.1f} ↑)" if is_above else name,
                "kind": kind,
                "charge": charge,
                "regret": values["value"],
                "low": values["low"],
                "high": values["high"],
                "told": f"{found['value']:.3g}",
            }
        )
    return sorted(points, key=lambda point: (point["method"], point["charge"]))


def _names(points: Sequence[Row], span: tuple[float, float]) -> list[dict[str, Any]]:
    """Return where names stand: one-run methods on the left, searches at their last budget."""
    last = {point["method"]: point for point in points if point["kind"] == "search"}
    left = [point for point in points if point["kind"] != "search"]
    gap = _NAME_HEIGHT / _COMPUTE_HEIGHT * (span[1] - span[0])
    named = []
    for side, chosen in (("right", list(last.values())), ("left", left)):
        chosen = sorted(chosen, key=lambda point: (point["regret"], float(point["told"])))
        heights = _apart([point["regret"] for point in chosen], gap, *span)
        for point, height in zip(chosen, heights, strict=True):
            named.append(
                {
                    "label": point["name"],
                    "method": point["method"],
                    "kind": point["kind"],
                    "side": side,
                    "from": _NAMES_AT if side == "left" else point["charge"] * 1.08,
                    "charge": point["charge"],
                    "regret": height,
                    "target": point["regret"],
                }
            )
    return named


def _apart(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return values moved apart to differ by a gap, in their order, within bounds if these allow.

    >>> [round(value, 2) for value in _apart([0.5, 0.5, 0.9], 0.2, 0.0, 1.0)]
    [0.5, 0.7, 0.9]
    """
    order = sorted(range(len(values)), key=values.__getitem__)
    moved = sorted(values)
    for place in range(1, len(moved)):
        moved[place] = max(moved[place], moved[place - 1] + gap)
    if moved and moved[-1] > high:
        moved[-1] = high
        for place in range(len(moved) - 2, -1, -1):
            moved[place] = min(moved[place], moved[place + 1] - gap)
    found = [0.0] * len(values)
    for place, where in enumerate(order):
        found[where] = max(moved[place], low)
    return found


def _profile_chart(figures: Mapping[str, Any]) -> Any:
    import altair as alt

    rows = [
        {"method": label, "group": _group(label), "regret": level, "share": share}
        for label, shares in figures["profile"].items()
        for level, share in zip(figures["profile_levels"], shares, strict=True)
    ]
    if not rows:
        return None
    return (
        alt.Chart(_values(rows))
        .mark_line(strokeWidth=1.5, opacity=0.8)
        .encode(
            x=alt.X("regret:Q", title="regret"),
            y=alt.Y("share:Q", title=None, scale=alt.Scale(domain=[0, 1])),
            color=_colour(),
            detail="method:N",
            tooltip=[
                alt.Tooltip("method:N"),
                alt.Tooltip("regret:Q"),
                alt.Tooltip("share:Q", format=".2f"),
            ],
        )
        .properties(
            title=alt.TitleParams(
                "Performance profiles", subtitle="share of results with at most this regret"
            )
        )
    )


def _interval_chart(found: Mapping[str, Any], title: str, subtitle: str, neutral: float) -> Any:
    import altair as alt

    rows = [
        {"method": label, "group": _group(label), **value}
        for label, value in found.items()
        if value is not None
    ]
    if not rows:
        return None
    order = [row["method"] for row in sorted(rows, key=lambda row: row["value"])]
    base = alt.Chart(_values(rows)).encode(
        y=alt.Y("method:N", sort=order, title=None), color=_colour()
    )
    tip = [
        alt.Tooltip("method:N"),
        *(alt.Tooltip(f"{k}:Q", format=".3g") for k in ("value", "low", "high")),
    ]
    line = alt.Chart(_values([{"at": neutral}])).mark_rule(style="reference").encode(x="at:Q")
    return alt.layer(
        line,
        base.mark_rule(strokeWidth=2, opacity=0.5).encode(
            x=alt.X("low:Q", title=None), x2="high:Q"
        ),
        base.mark_point(filled=True, size=70, opacity=1).encode(x="value:Q", tooltip=tip),
    ).properties(title=alt.TitleParams(title, subtitle=subtitle))


def _test_chart(name: str, rows: Sequence[Row], figures: Mapping[str, Any]) -> Any:
    """Return the test metric against charge on one task, a point a result."""
    import altair as alt

    task = figures["tasks"][name]
    points = [
        {
            "method": row["method"] if row["budget"] == 1 else f"{row['method']}:{row['budget']}",
            "group": _group(str(row["method"])),
            "charge": row["spent"],
            "test": row["test"],
            "seed": row["seed"],
            "start": "–" if row["start_scale"] is None else f"× {row['start_scale']:.3g}",
        }
        for row in rows
        if row["task"] == name and row["spent"] > 0 and math.isfinite(row["test"])
    ]
    if not points:
        return None
    better = "lower is better" if task["mode"] == "min" else "higher is better"
    tip = [alt.Tooltip(f"{key}:N") for key in ("method", "seed", "start")]
    return (
        alt.Chart(_values(points))
        .mark_point(filled=True, size=40, opacity=0.7)
        .encode(
            x=alt.X(
                "charge:Q",
                title="charge in whole runs; log axis",
                scale=alt.Scale(type="log", nice=False),
            ),
            y=alt.Y("test:Q", title=None, scale=alt.Scale(zero=False)),
            color=_colour(),
            tooltip=[
                *tip,
                alt.Tooltip("test:Q", format=".4g"),
                alt.Tooltip("charge:Q", format=".3g"),
            ],
        )
        .properties(title=alt.TitleParams(f"{name}: {task['metric']} on test", subtitle=better))
    )
