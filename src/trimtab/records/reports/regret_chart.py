"""The picture of a comparison: regret against compute, every method named beside its mark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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

_HEIGHT = 440
_HIGHEST_REGRET = 2.2
_LEFT_EDGE, _NAMES_AT = 0.3, 0.62
_NAME_HEIGHT = 15  # pixels

Row = Mapping[str, Any]


def compute_picture(figures: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the specification of `regret_chart` at a fixed size, for a picture; None if empty."""
    chart = regret_chart(figures)
    if chart is None:
        return None
    made: dict[str, Any] = chart.properties(width=820).to_dict()
    made.pop("config", None)
    return made


def inline(rows: Sequence[Row]) -> Any:
    """Return rows as data that is part of a chart."""
    import altair as alt

    return alt.InlineData(values=[dict(row) for row in rows])


def regret_chart(figures: Mapping[str, Any]) -> Any:
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
        scale=alt.Scale(domain=list(COLOURS), range=list(COLOURS.values())),
    )
    tip = [
        alt.Tooltip("label:N", title="method"),
        alt.Tooltip("told:N", title="regret"),
        alt.Tooltip("charge:Q", format=".3g", title="whole runs"),
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
        title=alt.TitleParams(
            "Regret against compute, all methods",
            subtitle="0: as good as tuned by a grid of 32; 1: as good as a random run (dotted); "
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
