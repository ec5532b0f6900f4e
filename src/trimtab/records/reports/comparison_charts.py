"""The charts of a comparison, as Vega-Lite specifications made with Altair."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.records.reports.page import Row, chart_title, inline, specification

STEERED = "trimtab"
"""Label of the steered runs."""

COLOURS: Mapping[str, str] = {
    STEERED: "#0b6b99",  # at more than one run
    "random": "#7b8794",
    "grid": "#b0763a",
    "hyperopt": "#3a9a6c",
    "optuna": "#8663c4",
    "asha": "#c8527e",
    "pbt": "#b59a1c",
    "pb2": "#d07b3f",
}
"""Colours of the searches, to be read on white and on black."""

_ONE_RUN = "one run"
_GROUPS = {**COLOURS, _ONE_RUN: "#8b96a3", STEERED: "#1f86b4"}
_ROW_HEIGHT = 18  # pixels
_HEIGHT = 440
_NAME_HEIGHT = 15
_HIGHEST_REGRET = 2.2
_LEFT_EDGE, _NAMES_AT = 0.3, 0.62
_SHOWN_SHARE = 0.1  # of the worst results of a task is drawn at the chart's edge

Result = Mapping[str, Any]  # a task, method, budget and seed, and what came of them


def comparison_charts(rows: Sequence[Result], figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the specifications: test a task; then, folded, regret, profiles, improvement, n*.

    Args:
        rows: One a result.
        figures: As a comparison's JSON has them.
    """
    tasks = [_test_chart(name, rows, figures) for name in figures["tasks"]]
    folded = [
        _regret_chart(figures),
        _profile_chart(figures),
        _interval_chart(
            figures["probability_of_improvement"],
            "Probability of improvement",
            "how often the steered run is better, paired by seed; 0.5 is a tie",
            0.5,
        ),
        _interval_chart(
            figures["n_star"], "Random runs it replaces", "per run spent; 1 is a random run", 1.0
        ),
    ]
    shown = [specification(chart) for chart in tasks if chart is not None]
    for chart in folded:
        if chart is not None:
            shown.append({**specification(chart), "usermeta": {"folded": True}})
    return shown


def compute_picture(figures: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return regret against compute at a fixed size, for a picture; None if there is none."""
    chart = _regret_chart(figures)
    return None if chart is None else specification(chart, width=820)


def _regret_chart(figures: Mapping[str, Any]) -> Any:
    """Return regret against charge: searches as lines over their budgets, one-run methods as dots.

    Every mark is named beside it, without a legend; names are moved apart where they would meet.
    A regret above what is shown is drawn at the upper edge, with its value in its name.
    """
    import altair as alt

    points = _points(figures)
    if not points:
        return None
    low = min(0.0, *(point["low"] for point in points))
    span = (low - 0.04 * (_HIGHEST_REGRET - low), _HIGHEST_REGRET * 1.02)
    most = max(point["charge"] for point in points)
    x = alt.X(
        "charge:Q",
        title="compute of n runs; log axis",
        scale=alt.Scale(type="log", domain=[_LEFT_EDGE, max(most, 2.0) * 2.1], nice=False),
        axis=alt.Axis(values=[n for n in (1, 2, 4, 8, 16, 32, 64) if n <= most * 1.1], format="~g"),
    )
    y = alt.Y(
        "regret:Q",
        title="gap to tuned",
        scale=alt.Scale(domain=list(span), nice=False),
        axis=alt.Axis(tickCount=6),
    )
    searches = [point for point in points if point["kind"] == "search"]
    singles = [point for point in points if point["kind"] != "search"]
    colour = alt.Color(
        "method:N",
        legend=None,
        scale=alt.Scale(domain=list(COLOURS), range=list(COLOURS.values())),
    )
    tip = [
        alt.Tooltip("label:N", title="method"),
        alt.Tooltip("told:N", title="gap to tuned"),
        alt.Tooltip("charge:Q", format=".3g", title="compute, runs"),
    ]
    grey = alt.value("#8b96a3")
    lines = alt.Chart(inline(searches)).encode(x=x, y=y, color=colour)
    dots = alt.Chart(inline([p for p in singles if p["kind"] == "single"])).encode(x=x, y=y)
    steered = alt.Chart(inline([p for p in singles if p["kind"] == "steered"])).encode(x=x, y=y)
    names = alt.Chart(inline(_names(points, span))).encode(y=y)
    layers = [
        alt.Chart(inline([{"regret": 0.0}, {"regret": 1.0}]))
        .mark_rule(style="reference")
        .encode(y=y),
        steered.mark_rule(style="steered", strokeDash=[5, 4], strokeWidth=1.2, opacity=0.7).encode(
            x=alt.value(0), x2=alt.value("width")
        ),
        lines.mark_rule(opacity=0.3).encode(y=alt.Y("low:Q"), y2="high:Q"),
        lines.mark_line(strokeWidth=2),
        lines.mark_point(filled=True, size=46, opacity=1).encode(tooltip=tip),
        names.mark_rule(strokeWidth=0.7, opacity=0.6).encode(
            x=alt.X("from:Q"), x2="charge:Q", y2="target:Q", color=grey
        ),
        dots.mark_rule(opacity=0.25).encode(y=alt.Y("low:Q"), y2="high:Q", color=grey),
        dots.mark_point(filled=True, size=40, opacity=1).encode(color=grey, tooltip=tip),
        names.transform_filter("datum.side === 'right'")
        .mark_text(align="left", fontSize=12, fontWeight=600, dx=3)
        .encode(x=alt.X("from:Q"), text="label:N", color=colour),
        names.transform_filter("datum.side === 'left' && datum.kind === 'single'")
        .mark_text(align="right", fontSize=11, dx=-3, style="faint")
        .encode(x=alt.X("from:Q"), text="label:N"),
        names.transform_filter("datum.kind === 'steered'")
        .mark_text(align="right", fontSize=13, fontWeight=700, dx=-3, style="steered")
        .encode(x=alt.X("from:Q"), text="label:N"),
        steered.mark_rule(style="steered", strokeWidth=2.5, opacity=0.5).encode(
            y=alt.Y("low:Q"), y2="high:Q"
        ),
        steered.mark_point(filled=True, size=150, opacity=1, style="steered").encode(tooltip=tip),
    ]
    return alt.layer(*layers).properties(
        height=_HEIGHT,
        title=chart_title(
            "Gap to tuned against compute, all methods",
            "0: as good as tuned by a grid of 32; 1: as good as a random run (dotted); "
            "lower is better",
        ),
    )


def _points(figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a point for each method and budget, regrets cut at the highest that is shown."""
    points = []
    for label, found in figures["regret"].items():
        charge = figures["spent"][label]
        if found is None or not charge > 0:
            continue
        method = label.partition(":")[0]
        is_one_run = label in (STEERED, f"{STEERED}:1")
        kind = "steered" if is_one_run else "search" if method in COLOURS else "single"
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
    edge = 1.12 * max((point["charge"] for point in last.values()), default=1.0)
    left = [point for point in points if point["kind"] != "search"]
    gap = _NAME_HEIGHT / _HEIGHT * (span[1] - span[0])
    named = []
    for side, chosen in (("right", list(last.values())), ("left", left)):
        chosen = sorted(chosen, key=lambda point: (point["regret"], float(point["told"])))
        # The steered name is larger: it stands in the middle of two places.
        places = [point for point in chosen for _ in range(1 + (point["kind"] == "steered"))]
        heights = apart([point["regret"] for point in places], gap, *span)
        for index, (point, height) in enumerate(zip(places, heights, strict=True)):
            if index and point is places[index - 1]:
                continue
            named.append(
                {
                    "label": point["name"],
                    "method": point["method"],
                    "kind": point["kind"],
                    "side": side,
                    "from": _NAMES_AT if side == "left" else edge,
                    "charge": point["charge"],
                    "regret": height + gap / 2 * (point["kind"] == "steered"),
                    "target": point["regret"],
                }
            )
    return named


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
    gap = 14 / _HEIGHT
    heights = apart([figures["profile"][label][-1] for label in labels], gap, 0.0, 1.0)
    names = [
        {"method": label, "group": _group(label), "regret": levels[-1], "share": height}
        for label, height in zip(labels, heights, strict=True)
    ]
    x = alt.X(
        "regret:Q",
        title="gap to tuned",
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
        height=_HEIGHT,
        title=chart_title(
            "Performance profiles",
            "share of results with at most this gap to tuned; searches at their largest budget",
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
    ).properties(height=max(120, _ROW_HEIGHT * len(rows)), title=chart_title(title, subtitle))


def _test_chart(name: str, rows: Sequence[Result], figures: Mapping[str, Any]) -> Any:
    """Return the test metric on one task, a line a method, the best on top, its compute beside it.

    Results are faint, their mean solid with its 95 % interval. The worst tenth of all results would
    flatten the others; what lies beyond is drawn at the edge.
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
    means = _means(points, low, high)
    means.sort(key=lambda row: row["test"] if is_loss else -row["test"])
    y = alt.Y("method:N", sort=[row["method"] for row in means], title=None)
    x = alt.X("shown:Q", title=None, scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=6))
    values = [alt.Tooltip("test:Q", format=".4g"), alt.Tooltip("charge:Q", format=".3g")]
    words = [alt.Tooltip(f"{key}:N") for key in ("method", "seed", "start")]
    better = "lower is better" if is_loss else "higher is better"
    solid = alt.Chart(inline(means)).encode(y=y, color=_colour())
    return alt.layer(
        alt.Chart(inline(points))
        .mark_point(filled=True, size=22, opacity=0.3)
        .encode(x=x, y=y, color=_colour(), tooltip=[*words, *values]),
        solid.mark_rule(strokeWidth=3, opacity=0.5).encode(x=alt.X("from:Q"), x2="to:Q"),
        solid.mark_point(filled=True, size=80, opacity=1).encode(x=x, tooltip=[words[0], *values]),
        alt.Chart(inline(means))
        .mark_text(align="left", dx=8, style="faint")
        .encode(y=y, x=alt.value("width"), text="compute:N"),
    ).properties(
        height=max(90, _ROW_HEIGHT * len(means)),
        padding={"right": 64, "left": 5, "top": 5, "bottom": 5},
        title=chart_title(
            f"{name}: {task['metric']} on test",
            f"{better}; large: a method's mean and its 95 % interval, small: its results; the "
            "worst tenth of these at the edge; right: compute in runs",
        ),
    )


def _means(points: Sequence[Row], low: float, high: float) -> list[Row]:
    """Return a row a method: its mean, what is drawn of it, its interval, and what it cost."""
    by_method: dict[str, list[Row]] = {}
    for point in points:
        by_method.setdefault(point["method"], []).append(point)
    means = []
    for method, own in by_method.items():
        tests = [point["test"] for point in own]
        test = sum(tests) / len(own)
        spread = sum((one - test) ** 2 for one in tests) / max(len(own) - 1, 1)
        half = 1.96 * math.sqrt(spread / len(own))
        charge = sum(point["charge"] for point in own) / len(own)
        means.append(
            {
                "method": method,
                "group": own[0]["group"],
                "charge": charge,
                "compute": f"{charge:.3g} run{'s' * (f'{charge:.3g}' != '1')}",
                "test": test,
                "shown": min(max(test, low), high),
                "from": min(max(test - half, low), high),
                "to": min(max(test + half, low), high),
            }
        )
    return means


def _shown(values: Sequence[float], *, is_loss: bool) -> tuple[float, float]:
    """Return the range that is drawn: all but the worst tenth."""
    ordered = sorted(values)
    cut = int(_SHOWN_SHARE * len(ordered))
    return (ordered[0], ordered[-1 - cut]) if is_loss else (ordered[cut], ordered[-1])


def apart(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return values moved apart to differ by a gap, in their order, within bounds if these allow.

    They move as little as that takes, in squares: less its place times the gap, each has to be no
    lower than the one before, which pooling neighbours that violate it solves (isotonic
    regression: Barlow and others, 1972).

    >>> [round(value, 2) for value in apart([0.5, 0.5, 0.9], 0.2, 0.0, 1.0)]
    [0.4, 0.6, 0.9]
    """
    order = sorted(range(len(values)), key=values.__getitem__)
    pools: list[tuple[float, int]] = []  # mean and size
    for place, where in enumerate(order):
        mean, size = values[where] - place * gap, 1
        while pools and pools[-1][0] > mean:
            before, more = pools.pop()
            mean, size = (mean * size + before * more) / (size + more), size + more
        pools.append((mean, size))
    level = [mean for mean, size in pools for _ in range(size)]
    highest = high - (len(values) - 1) * gap
    found = [0.0] * len(values)
    for place, where in enumerate(order):
        found[where] = max(min(level[place], highest), low) + place * gap
    return found
