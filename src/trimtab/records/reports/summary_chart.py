"""The chart of a run in a notebook: what ``summary.plot()`` returns."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from trimtab.records.reports.page import chart_title, inline, require_report_extra

if TYPE_CHECKING:
    from trimtab.core.decision import Summary

_MOST_POINTS = 2000  # of each value


def chart_of(summary: Summary) -> Any:
    """Return an Altair chart: validation loss at each decision, below it each value used.

    Raises:
        MissingDependencyError: The extra ``report`` is not installed.
    """
    require_report_extra()
    import altair as alt

    losses = [
        {"step": item.step, "value": float(item.measured.get("loss", item.metrics.val_loss))}
        for item in summary.decisions
    ]
    if "loss" in summary.last:
        losses.append({"step": summary.last["step"], "value": summary.last["loss"]})
    charts = [_line(losses, "validation loss", stepped=False)]
    rows = summary.schedule
    stride = math.ceil(len(rows) / _MOST_POINTS) or 1
    names = [name for name in (rows[0] if rows else {}) if name != "step"]
    for name in names:
        kept = [{"step": row["step"], "value": row[name]} for row in rows[::stride]]
        charts.append(_line(kept, f"{name} used", stepped=True))
    return alt.vconcat(*charts).resolve_scale(x="shared")


def _line(rows: list[dict[str, Any]], title: str, *, stepped: bool) -> Any:
    import altair as alt

    rows = [row for row in rows if math.isfinite(row["value"])]
    values = [row["value"] for row in rows if row["value"] > 0]
    is_log = bool(values) and max(values) > 6 * min(values)
    if is_log:
        rows = [row for row in rows if row["value"] > 0]
    scale = alt.Scale(type="log") if is_log else alt.Scale(zero=False)
    interpolate: Any = "step-after" if stepped else "linear"
    return (
        alt.Chart(inline(rows))
        .mark_line(interpolate=interpolate, point=not stepped)
        .encode(
            x=alt.X("step:Q", title="optimiser step"),
            y=alt.Y("value:Q", title=None, scale=scale),
            tooltip=[alt.Tooltip("step:Q"), alt.Tooltip("value:Q", format=".4g")],
        )
        .properties(width=520, height=160, title=chart_title(title, "log axis" if is_log else ""))
    )
