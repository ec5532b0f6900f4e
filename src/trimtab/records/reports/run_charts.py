"""The charts of a run's report, as Vega-Lite specifications made with Altair, and their rows.

A specification holds no colours: these come from `page.THEMES`, so that one chart serves a light
page, a dark page and a picture.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

from trimtab.core.errors import UnknownNameError
from trimtab.core.references import reference_multipliers
from trimtab.records.reports.page import Row, chart_title, inline, specification
from trimtab.records.store.rows import DecisionRecord, RunRecord

Runs = list[tuple[RunRecord, str]]  # each with what it is called

_NOT_METRICS = ("step", "train_loss", "reward", "examples", "loss")
_MOST_POINTS = 400
_SPELLED = {"loss": "log-loss", "macro_f1": "macro-F1"}


# What is drawn, as rows of plain numbers.


def spelled(name: str) -> str:
    """Return a metric's name as people write it."""
    return _SPELLED.get(name, name)


def label_of(record: RunRecord, other: RunRecord | None = None) -> str:
    """Return what a run is called in a legend: its policy, and its number where two are equal."""
    policy = str(record.head["policy"])
    if other is not None and other.head["policy"] == policy:
        return f"{policy} (run {record.id})"
    return policy


def steered_names(record: RunRecord) -> list[str]:
    """Return the names of the steered hyperparameters."""
    return [str(item["name"]) for item in record.head["spec"]["hyperparameters"]]


def evaluations(record: RunRecord, run: str) -> list[Row]:
    """Return two rows for each validation, run, step, split and loss, where the loss is finite."""
    rows: list[Row] = []
    for item in record.decisions:
        loss = item.measured.get("loss", float(item.metrics.val_loss))
        rows.append({"run": run, "step": item.step, "split": "validation", "loss": loss})
        train = float(item.metrics.train_loss)
        rows.append({"run": run, "step": item.step, "split": "training", "loss": train})
    last = record.figures.get("last") or {}
    if last and (not record.decisions or last["step"] > record.decisions[-1].step):
        ends = {
            "validation": last.get("loss", last.get(str(record.head["monitor"]))),
            "training": last.get("train_loss"),
        }
        for split, value in ends.items():
            rows.append({"run": run, "step": last["step"], "split": split, "loss": value})
    return [row for row in rows if _is_number(row["loss"])]


def metric_names(record: RunRecord) -> list[str]:
    """Return the validation's metrics beside the loss, in the order in which it gave them."""
    found = dict.fromkeys(name for item in record.decisions for name in item.measured)
    return [name for name in found if name not in _NOT_METRICS]


def metric_rows(record: RunRecord, run: str, name: str) -> list[Row]:
    """Return a row for each validation that gave the metric: run, step and value."""
    points = [(item.step, item.measured.get(name)) for item in record.decisions]
    last = record.figures.get("last") or {}
    if last and (not record.decisions or last["step"] > record.decisions[-1].step):
        points.append((last["step"], last.get(name)))
    return [{"run": run, "step": s, "value": value} for s, value in points if _is_number(value)]


def best_row(record: RunRecord, run: str, name: str = "loss") -> list[Row]:
    """Return the best-on-validation weights' row, or nothing if there are none yet."""
    best = record.figures.get("best") or {}
    value = best.get(name, best.get(str(record.head["monitor"])) if name == "loss" else None)
    if not _is_number(value):
        return []
    return [{"run": run, "step": best["step"], "loss": value, "value": value}]


def hyperparameter_path(record: RunRecord, run: str, name: str) -> list[Row]:
    """Return rows of step and value, the reference included, thinned to what a chart can show."""
    values = record.schedule.get(name)
    if not values:
        values = _rebuilt(record, name)
    return _thinned([{"run": run, "step": s, "value": v} for s, v in enumerate(values)])


def reference_path(record: RunRecord, name: str) -> list[Row]:
    """Return rows of step and value of the reference that the hyperparameter is moved against."""
    start = float(record.head["start"][name])
    values = [start * factor for factor in _multipliers(record, name)]
    return _thinned([{"step": s, "value": v} for s, v in enumerate(values)])


def move_points(record: RunRecord, run: str, name: str) -> list[Row]:
    """Return a row for each decision: where it put the value, why, and what it had earned."""
    factors = _multipliers(record, name)
    rows: list[Row] = []
    for item, following in zip_longest(record.decisions, record.decisions[1:]):
        at = min(item.step, len(factors) - 1) if factors else 0
        factor = factors[at] if factors else 1.0
        earned = following.reward if following else (record.figures.get("last") or {}).get("reward")
        rows.append(
            {
                "run": run,
                "step": item.step,
                "value": item.applied[name] * factor,
                "decision": item.decision + 1,
                "kind": _kind(item, name),
                "proposed": f"{item.proposed[name]:.3g}",
                "applied": f"{item.applied[name]:.3g}",
                "validation": f"{float(item.metrics.val_loss):.4g}",
                "reward": f"{earned:+.3f} nats" if _is_number(earned) else "–",
                "why": item.why_of(name) or "as proposed",
            }
        )
    return [row for row in rows if _is_number(row["value"])]


def _kind(item: DecisionRecord, name: str) -> str:
    if item.restored:
        return "went back to the best weights"
    return "guard changed it" if item.reasons.get(name, 0) & 0b111 else "as proposed"


def _multipliers(record: RunRecord, name: str) -> list[float]:
    """Return the reference's multiplier at each step; of a schedule without a name, worked out."""
    total = int(record.head["total_steps"])
    kinds = {item["name"]: item["kind"] for item in record.head["spec"]["hyperparameters"]}
    if kinds[name] != "lr":
        return [1.0] * total
    try:
        return [float(v) for v in reference_multipliers(str(record.head["reference"]), total)]
    except UnknownNameError:
        pass
    schedule = record.schedule.get(name)
    if not schedule:
        return [1.0] * total
    applied = _held(record, name, len(schedule))
    return [value / held for value, held in zip(schedule, applied, strict=True)]


def _held(record: RunRecord, name: str, steps: int) -> list[float]:
    """Return the applied value, reference excluded, at each of the first ``steps`` steps."""
    begins = [item.step for item in record.decisions]
    if not begins:
        return [float(record.head["start"][name])] * steps
    return [
        record.decisions[max(bisect.bisect_right(begins, step) - 1, 0)].applied[name]
        for step in range(steps)
    ]


def _rebuilt(record: RunRecord, name: str) -> list[float]:
    """Return the values up to the last decision of a run that never finished."""
    steps = record.decisions[-1].step + 1 if record.decisions else 0
    factors = _multipliers(record, name)[:steps]
    held = _held(record, name, len(factors))
    return [value * factor for value, factor in zip(held, factors, strict=True)]


def _thinned(rows: list[Row]) -> list[Row]:
    """Keep the first, the last and every change of more than a percent, and some in between."""
    if len(rows) <= _MOST_POINTS:
        return rows
    stride = math.ceil(len(rows) / _MOST_POINTS)
    kept: list[Row] = []
    for index, row in enumerate(rows):
        jumps = index and abs(row["value"] - rows[index - 1]["value"]) > 0.05 * abs(row["value"])
        if jumps and kept[-1] is not rows[index - 1]:
            kept.append(rows[index - 1])
        if jumps or index % stride == 0 or index == len(rows) - 1:
            kept.append(row)
    return kept


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def value_domain(rows: list[Row], total_steps: int) -> tuple[float, float] | None:
    """Return the positive range to draw on a log axis, without a schedule's very last steps."""
    shown = [row["value"] for row in rows if row["value"] > 0 and row["step"] < 0.97 * total_steps]
    if not shown:
        return None
    return min(shown) / 1.3, max(shown) * 1.3


def figures_of(record: RunRecord) -> Mapping[str, Any]:
    """Return the metrics on the test split, or on validation where there is no test."""
    return record.figures.get("test") or record.figures.get("best") or {}


# The charts.


def charts_of(record: RunRecord, other: RunRecord | None = None) -> list[dict[str, Any]]:
    """Return the specifications of a run's charts, each as wide as its container.

    The loss comes first, then each steered hyperparameter, then up to three more metrics.

    Args:
        record: The run.
        other: A run to draw beside it.
    """
    runs = [(record, label_of(record, other))]
    if other is not None:
        runs.append((other, label_of(other, record)))
    charts = [_loss_chart(runs)]
    charts += [_path_chart(runs, name) for name in steered_names(record)]
    charts += [_metric_chart(runs, name) for name in metric_names(record)[:3]]
    return [specification(chart) for chart in charts]


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


def _ring(rows: list[Row]) -> Any:
    """Return the mark around the weights that are kept."""
    import altair as alt

    return alt.Chart(inline(rows)).mark_point(size=150, style="best", shape="circle", opacity=1)


def _loss_chart(runs: Runs) -> Any:
    import altair as alt

    rows = [row for record, run in runs for row in evaluations(record, run)]
    best = [row for record, run in runs for row in best_row(record, run)]
    sizes = [row["loss"] for row in rows]
    spread = bool(sizes) and min(sizes) > 0 and max(sizes) > 6 * min(sizes)
    y = _value_axis("loss:Q", (0.9 * min(sizes), 1.1 * max(sizes)) if spread else None)
    base = alt.Chart(inline(rows)).encode(x=_steps(runs), y=y, color=_colour(runs))
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
    ring = _ring(best).encode(x=_steps(runs), y=y, tooltip=[tip[0], tip[2], tip[3]])
    subtitle = f"the ring marks the weights that are kept{_log_note(spread)}"
    return alt.layer(lines, dots, ring).properties(title=chart_title("Loss", subtitle))


def _metric_chart(runs: Runs, name: str) -> Any:
    import altair as alt

    rows = [row for record, run in runs for row in metric_rows(record, run, name)]
    best = [row for record, run in runs for row in best_row(record, run, name)]
    y = _value_axis("value:Q", None)
    base = alt.Chart(inline(rows)).encode(x=_steps(runs), y=y, color=_colour(runs))
    tip = [alt.Tooltip("run:N"), alt.Tooltip("step:Q"), alt.Tooltip("value:Q", format=".4g")]
    ring = _ring(best).encode(x=_steps(runs), y=y, tooltip=tip)
    return alt.layer(
        base.mark_line(strokeWidth=2),
        base.mark_point(filled=True, size=26, opacity=1).encode(tooltip=tip),
        ring,
    ).properties(title=chart_title(spelled(name), "on validation"))


def _path_chart(runs: Runs, name: str) -> Any:
    import altair as alt

    steered, label = runs[0]
    item = next(h for h in steered.head["spec"]["hyperparameters"] if h["name"] == name)
    drawn = [(one, run) for one, run in runs if name in steered_names(one)]
    rows = [row for one, run in drawn for row in hyperparameter_path(one, run, name)]
    reference = reference_path(steered, name)
    is_log = item["scale"] == "log"
    total = int(steered.head["total_steps"])
    domain = value_domain([*rows, *reference], total) if is_log else None
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
    under = alt.Chart(inline(reference)).mark_line(style="reference", clip=clip)
    path = alt.Chart(inline(rows)).mark_line(strokeWidth=2, interpolate="step-after", clip=clip)
    points = alt.Chart(inline(move_points(steered, label, name))).mark_point(
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
        title=chart_title(name, f"what was applied, over its reference (dotted){_log_note(domain)}")
    )
