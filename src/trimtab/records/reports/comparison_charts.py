"""The charts of a comparison, as Vega-Lite specifications made with Altair."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.records.reports.regret_chart import COLOURS, STEERED, apart, inline, regret_chart

_ONE_RUN = "one run"
_GROUPS = {**COLOURS, _ONE_RUN: "#8b96a3", STEERED: "#1f86b4"}
_ROW_HEIGHT = 18  # pixels
_PROFILE_HEIGHT = 440
_SHOWN_SHARE = 0.1  # of the worst results of a task is drawn at the chart's edge

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


def _group(label: str) -> str:
    """Return which colour a method has: its own for searches and steered runs."""
    method = label.partition(":")[0]
    return method if method in _GROUPS else _ONE_RUN


def _colour() -> Any:
    import altair as alt

    scale = alt.Scale(domain=list(_GROUPS), range=list(_GROUPS.values()))
    return alt.Color("group:N", scale=scale, legend=None)


def _largest(labels: Sequence[str]) -> list[str]:
    """Return each method's label with the largest budget."""
    kept: dict[str, tuple[int, str]] = {}
    for label in labels:
        method, _, budget = label.partition(":")
        size = int(budget or 1)
        if method not in kept or size > kept[method][0]:
            kept[method] = (size, label)
    return [label for _, label in kept.values()]


def _profile_chart(figures: Mapping[str, Any]) -> Any:
    """Return performance profiles of each method at its largest budget, named at their ends."""
    import altair as alt

    labels = _largest(list(figures["profile"]))
    levels = figures["profile_levels"]
    rows = [
        {"method": label, "group": _group(label), "regret": level, "share": share}
        for label in labels
        for level, share in zip(levels, figures["profile"][label], strict=True)
    ]
    if not rows:
        return None
    labels.sort(key=lambda label: (figures["profile"][label][-1], sum(figures["profile"][label])))
    gap = 14 / _PROFILE_HEIGHT
    heights = apart([figures["profile"][label][-1] for label in labels], gap, 0.0, 1.0)
    names = [
        {"method": label, "group": _group(label), "regret": levels[-1], "share": height}
        for label, height in zip(labels, heights, strict=True)
    ]
    x = alt.X(
        "regret:Q",
        title="regret",
        scale=alt.Scale(domain=[levels[0], levels[-1] + 0.6], nice=False),
        axis=alt.Axis(values=[-0.5, 0.0, 0.5, 1.0, 1.5, 2.0]),
    )
    y = alt.Y("share:Q", title=None, scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(tickCount=5))
    tip = [
        alt.Tooltip("method:N"),
        alt.Tooltip("regret:Q"),
        alt.Tooltip("share:Q", format=".2f"),
    ]
    lines = alt.Chart(inline(rows)).encode(
        x=x, y=y, color=_colour(), detail="method:N", tooltip=tip
    )
    steered = f"datum.group === '{STEERED}'"
    return alt.layer(
        lines.transform_filter(f"!({steered})").mark_line(strokeWidth=1.5, opacity=0.75),
        lines.transform_filter(steered).mark_line(strokeWidth=3.5),
        alt.Chart(inline(names))
        .mark_text(align="left", dx=7, fontSize=11)
        .encode(x=x, y=y, color=_colour(), text="method:N"),
    ).properties(
        height=_PROFILE_HEIGHT,
        title=alt.TitleParams(
            "Performance profiles",
            subtitle="share of results with at most this regret; searches at their largest budget",
        ),
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
    base = alt.Chart(inline(rows)).encode(
        y=alt.Y("method:N", sort=order, title=None), color=_colour()
    )
    tip = [
        alt.Tooltip("method:N"),
        *(alt.Tooltip(f"{k}:Q", format=".3g") for k in ("value", "low", "high")),
    ]
    line = alt.Chart(inline([{"at": neutral}])).mark_rule(style="reference").encode(x="at:Q")
    x = alt.X("low:Q", title=None, axis=alt.Axis(tickCount=6))
    return alt.layer(
        line,
        base.mark_rule(strokeWidth=2, opacity=0.5).encode(x=x, x2="high:Q"),
        base.mark_point(filled=True, size=70, opacity=1).encode(x="value:Q", tooltip=tip),
    ).properties(
        height=max(120, _ROW_HEIGHT * len(rows)), title=alt.TitleParams(title, subtitle=subtitle)
    )


def _test_chart(name: str, rows: Sequence[Row], figures: Mapping[str, Any]) -> Any:
    """Return the test metric against charge on one task: results faint, their means solid.

    The worst tenth of all results would flatten the others; what lies beyond is drawn at the edge.
    """
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
    is_loss = task["mode"] == "min"
    low, high = _shown([point["test"] for point in points], is_loss=is_loss)
    points = [{**point, "shown": min(max(point["test"], low), high)} for point in points]
    by_method: dict[str, list[Row]] = {}
    for point in points:
        by_method.setdefault(point["method"], []).append(point)
    means = []
    for method, own in by_method.items():
        test = sum(point["test"] for point in own) / len(own)
        means.append(
            {
                "method": method,
                "group": own[0]["group"],
                "charge": sum(point["charge"] for point in own) / len(own),
                "test": test,
                "shown": min(max(test, low), high),
            }
        )
    most = max(point["charge"] for point in points)
    x = alt.X(
        "charge:Q",
        title="compute in whole runs; log axis",
        scale=alt.Scale(type="log", nice=False),
        axis=alt.Axis(values=[n for n in (0.5, 1, 2, 4, 8, 16, 32, 64) if n <= most], format="~g"),
    )
    y = alt.Y("shown:Q", title=None, scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=6))
    values = [alt.Tooltip("test:Q", format=".4g"), alt.Tooltip("charge:Q", format=".3g")]
    words = [alt.Tooltip(f"{key}:N") for key in ("method", "seed", "start")]
    better = "lower is better" if is_loss else "higher is better"
    return alt.layer(
        alt.Chart(inline(points))
        .mark_point(filled=True, size=22, opacity=0.3)
        .encode(x=x, y=y, color=_colour(), tooltip=[*words, *values]),
        alt.Chart(inline(means))
        .mark_point(filled=True, size=80, opacity=1)
        .encode(x=x, y=y, color=_colour(), tooltip=[words[0], *values]),
    ).properties(
        title=alt.TitleParams(
            f"{name}: {task['metric']} on test",
            subtitle=f"{better}; large: a method's mean, small: its results; the worst tenth of "
            "these at the edge",
        )
    )


def _shown(values: Sequence[float], *, is_loss: bool) -> tuple[float, float]:
    """Return the range that is drawn: all but the worst tenth."""
    ordered = sorted(values)
    cut = int(_SHOWN_SHARE * len(ordered))
    return (ordered[0], ordered[-1 - cut]) if is_loss else (ordered[cut], ordered[-1])
