"""The charts of a comparison, as Vega-Lite specifications made with Altair."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["comparison_charts", "regret_chart"]

_STEERED = "trimtab"
_SHOWN_REGRET = (-1.0, 5.0)

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
    made: dict[str, Any] = chart.properties(width="container", height=300).to_dict()
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
    """Return regret against charge, one point with its interval for each method and budget."""
    import altair as alt

    low, high = _SHOWN_REGRET
    points = [
        {
            "method": label,
            "group": _group(label),
            "charge": figures["spent"][label],
            "regret": min(max(found["value"], low), high),
            "low": min(max(found["low"], low), high),
            "high": min(max(found["high"], low), high),
            "told": f"{found['value']:.3g}",
        }
        for label, found in figures["regret"].items()
        if found is not None and figures["spent"][label] > 0
    ]
    if not points:
        return None
    charge = alt.X(
        "charge:Q", title="charge in whole runs; log axis", scale=alt.Scale(type="log", nice=False)
    )
    base = alt.Chart(_values(points)).encode(x=charge, color=_colour())
    tip = [
        alt.Tooltip("method:N"),
        alt.Tooltip("told:N", title="regret"),
        alt.Tooltip("charge:Q", format=".3g"),
    ]
    return alt.layer(
        base.mark_rule(opacity=0.35).encode(y=alt.Y("low:Q", title=None), y2="high:Q"),
        base.mark_point(filled=True, size=60, opacity=1).encode(y="regret:Q", tooltip=tip),
        base.transform_filter("datum.charge > 1.5 || datum.group === 'trimtab'")
        .mark_text(align="left", dx=6, dy=-6, fontSize=10)
        .encode(y="regret:Q", text="method:N"),
    ).properties(
        title=alt.TitleParams(
            "Regret against compute", subtitle="0 as good as tuned, 1 as good as a random run"
        )
    )


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
