"""The charts of a run's report, as Vega-Lite specifications made with Altair, and their rows.

A specification holds no colours: these come from `page.THEMES`, so that one chart serves a light
page, a dark page and a picture.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from trimtab.core.errors import UnknownNameError
from trimtab.core.references import reference_multipliers
from trimtab.records.reports.page import Row, chart_title, inline, specification
from trimtab.records.store.rows import DecisionRecord, RunRecord

Runs = list[tuple[RunRecord, str]]  # each with what it is called

_NOT_METRICS = ("step", "train_loss", "reward", "examples", "loss")
_MOST_POINTS = 400
_MOST_LABELS = 20
_AXIS_WIDTH = 46
_WIDE = {"wide": True}
_MOVE_KINDS = ["as proposed", "guard changed it", "went back to the best weights"]
_SPELLED = {"loss": "log-loss", "macro_f1": "macro-F1"}


# What is drawn, as rows of plain numbers.


def spelled(name: str) -> str:
    """Return a metric's name as people write it."""
    return _SPELLED.get(name, name)


def is_plain(record: RunRecord) -> bool:
    """Whether nothing was steered: the run followed its schedule."""
    return str(record.head["policy"]) in ("reference", "zero")


def label_of(record: RunRecord, other: RunRecord | None = None) -> str:
    """Return what a run is called in a legend: its policy, and its number where two are equal."""
    policy = "plain schedule" if is_plain(record) else str(record.head["policy"])
    if other is not None and other.head["policy"] == record.head["policy"]:
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


def validations(record: RunRecord) -> list[tuple[int, float]]:
    """Return (step, loss) of each validation whose loss is finite, one a step."""
    rows = evaluations(record, "")
    found = {int(row["step"]): row["loss"] for row in rows if row["split"] == "validation"}
    return sorted(found.items())


def columns_of(record: RunRecord) -> list[int]:
    """Return the steps at which the report's columns begin, one a decision, and where it ends."""
    steps = {0, *(item.step for item in record.decisions), int(record.head["total_steps"])}
    return sorted(steps)


def placed(rows: list[Row], record: RunRecord) -> list[Row]:
    """Return rows with ``column``: where their step lies on an axis with one column a decision."""
    bounds = columns_of(record)
    inside = [row for row in rows if row["step"] <= bounds[-1]]
    found = np.interp([row["step"] for row in inside], bounds, range(len(bounds)))
    return [{**row, "column": float(c)} for row, c in zip(inside, found, strict=True)]


def used_values(record: RunRecord, name: str) -> list[float]:
    """Return what was used at each decision's step, the schedule included."""
    schedule, factors = record.schedule.get(name) or (), _multipliers(record, name)
    return [
        float(schedule[item.step])
        if item.step < len(schedule)
        else item.applied[name] * factors[min(item.step, len(factors) - 1)]
        for item in record.decisions
    ]


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
    values = used_values(record, name)
    used = {one.decision: v for one, v in zip(record.decisions, values, strict=True)}
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
                "used": f"{used[item.decision]:.3g}" if item.decision in used else "–",
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


def charts_of(
    record: RunRecord,
    other: RunRecord | None = None,
    events: Sequence[tuple[int, str]] = (),
) -> list[dict[str, Any]]:
    """Return the specifications of a run's charts, each as wide as its container.

    The loss comes first, then each steered hyperparameter, then up to three more metrics.

    Args:
        record: The run.
        other: A run to draw beside it.
        events: Step of what is numbered on the loss, and what happened there.
    """
    runs = [(record, label_of(record, other))]
    if other is not None:
        runs.append((other, label_of(other, record)))
    charts = [_loss_chart(runs, events)]
    charts += [_path_chart(runs, name) for name in steered_names(record)]
    charts += [_metric_chart(runs, name) for name in metric_names(record)[:3]]
    return [specification(chart) for chart in charts]


def _colour(runs: Runs, *, legend: bool = True) -> Any:
    import altair as alt

    shown = alt.Legend() if legend and len(runs) > 1 else None
    return alt.Color("run:N", scale=alt.Scale(domain=[label for _, label in runs]), legend=shown)


def _columns(record: RunRecord) -> Any:
    """Return the axis that all charts of a run share: one column a decision, named by its step."""
    import altair as alt

    bounds = columns_of(record)
    last = len(bounds) - 1
    stride = math.ceil(last / _MOST_LABELS)
    ticks = [*range(0, last - stride // 2, stride), last]
    # A little air on both sides, so that points at the ends are whole.
    scale = alt.Scale(domain=[-0.015 * last, 1.015 * last], nice=False)
    axis = alt.Axis(values=ticks, labelExpr=f"{bounds}[datum.value]", labelOverlap="greedy")
    return alt.X("column:Q", title="step of each decision", scale=scale, axis=axis)


def _log_note(is_log: object) -> str:
    return "; log axis" if is_log else ""


def _value_axis(field: str, log_domain: tuple[float, float] | None) -> Any:
    """Return a linear axis that fits its values, or a log axis with a few round ticks."""
    import altair as alt

    # As wide in all charts, so that what is below one another is the same step.
    wide: dict[str, Any] = {"minExtent": _AXIS_WIDTH, "maxExtent": _AXIS_WIDTH}
    if log_domain is None:
        axis = alt.Axis(title=None, tickCount=6, format="~g", **wide)
        return alt.Y(field, axis=axis, scale=alt.Scale(zero=False))
    low, high = log_domain
    decades = math.log10(high / low)
    steps = (1, 2, 5) if decades < 2 else (1, 3) if decades < 3.5 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [float(f"{m}e{p}") for p in powers for m in steps if low <= float(f"{m}e{p}") <= high]
    plain = low >= 1e-3 and high <= 1e4
    axis = alt.Axis(title=None, values=ticks, format="~g" if plain else "~e", **wide)
    return alt.Y(field, axis=axis, scale=alt.Scale(type="log", domain=[low, high], nice=False))


def _ring(rows: list[Row]) -> Any:
    """Return the mark around the weights that are kept."""
    import altair as alt

    return alt.Chart(inline(rows)).mark_point(size=150, style="best", shape="circle", opacity=1)


def _loss_chart(runs: Runs, events: Sequence[tuple[int, str]]) -> Any:
    import altair as alt

    record = runs[0][0]
    rows = placed([row for one, run in runs for row in evaluations(one, run)], record)
    best = placed([row for one, run in runs for row in best_row(one, run)], record)
    gap, marks = _gap(runs), _event_rows(record, events)
    sizes = [row["loss"] for row in rows]
    spread = bool(sizes) and min(sizes) > 0 and max(sizes) > 6 * min(sizes)
    y = _value_axis("loss:Q", (0.9 * min(sizes), 1.1 * max(sizes)) if spread else None)
    x = _columns(record)
    base = alt.Chart(inline(rows)).encode(x=x, y=y, color=_colour(runs))
    tip = [
        alt.Tooltip("run:N"),
        alt.Tooltip("split:N"),
        alt.Tooltip("step:Q"),
        alt.Tooltip("loss:Q", format=".4g"),
    ]
    lines = base.mark_line(strokeWidth=2, interpolate="linear").encode(
        strokeDash=_split(),
        opacity=alt.condition("datum.split === 'training'", alt.value(0.6), alt.value(1)),
    )
    dots = (
        base.mark_point(filled=True, size=26, opacity=1)
        .encode(tooltip=tip)
        .transform_filter("datum.split === 'validation'")
    )
    layers = [lines, dots]
    layers.append(_ring(best).encode(x=x, y=y, tooltip=[tip[0], tip[2], tip[3]]))
    if gap:
        shade = alt.Chart(inline(gap)).mark_area(style="steered", opacity=0.12)
        layers.insert(0, shade.encode(x=x, y=y, y2="other:Q"))
    if marks:
        numbered = alt.Chart(inline(marks)).encode(x=x, y=y)
        what = [alt.Tooltip("step:Q"), alt.Tooltip("what:N")]
        disc = numbered.mark_point(filled=True, size=260, style="event", shape="circle", opacity=1)
        layers.append(disc.encode(tooltip=what))
        layers.append(numbered.mark_text(style="number").encode(text="n:N"))
    told = ["the ring marks the weights that are kept"]
    if gap:
        told.append("shaded: the gap between the runs' validation losses")
    if marks:
        told.append("numbers: see below")
    subtitle = f"{'; '.join(told)}{_log_note(spread)}"
    return alt.layer(*layers).properties(title=chart_title("Loss", subtitle), usermeta=_WIDE)


def _split() -> Any:
    import altair as alt

    return alt.StrokeDash(
        "split:N",
        scale=alt.Scale(domain=["validation", "training"], range=[[1, 0], [3, 3]]),
        legend=alt.Legend(symbolStrokeColor="gray"),
    )


def _gap(runs: Runs) -> list[Row]:
    """Return rows of both runs' validation loss at every step at which one of them has it."""
    if len(runs) < 2:
        return []
    points = [validations(record) for record, _ in runs]
    if min(map(len, points)) < 2:
        return []
    first, last = (max(p[0][0] for p in points), min(p[-1][0] for p in points))
    steps = sorted({step for each in points for step, _ in each if first <= step <= last})
    mine, theirs = (_losses_at(each, steps) for each in points)
    rows = [
        {"step": step, "loss": loss, "other": other}
        for step, loss, other in zip(steps, mine, theirs, strict=True)
    ]
    return placed(rows, runs[0][0])


def _losses_at(points: Sequence[tuple[int, float]], steps: Sequence[int]) -> list[float]:
    found = np.interp(steps, [step for step, _ in points], [loss for _, loss in points])
    return [float(loss) for loss in found]


def _event_rows(record: RunRecord, events: Sequence[tuple[int, str]]) -> list[Row]:
    """Return rows of the numbered events, each on the curve of the validation loss."""
    points = validations(record)
    if not points or not events:
        return []
    losses = _losses_at(points, [step for step, _ in events])
    rows = [
        {"n": n, "step": step, "what": what, "loss": loss}
        for n, ((step, what), loss) in enumerate(zip(events, losses, strict=True), 1)
    ]
    return placed(rows, record)


def _metric_chart(runs: Runs, name: str) -> Any:
    import altair as alt

    record = runs[0][0]
    rows = placed([row for one, run in runs for row in metric_rows(one, run, name)], record)
    best = placed([row for one, run in runs for row in best_row(one, run, name)], record)
    x, y = _columns(record), _value_axis("value:Q", None)
    base = alt.Chart(inline(rows)).encode(x=x, y=y, color=_colour(runs))
    tip = [alt.Tooltip("run:N"), alt.Tooltip("step:Q"), alt.Tooltip("value:Q", format=".4g")]
    ring = _ring(best).encode(x=x, y=y, tooltip=tip)
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
    total = int(steered.head["total_steps"])
    domain = value_domain([*rows, *reference], total) if item["scale"] == "log" else None
    if domain:
        rows = [row for row in rows if row["value"] > 0]
        reference = [row for row in reference if row["value"] > 0]
    clip = domain is not None
    x, y = _columns(steered), _value_axis("value:Q", domain)
    under = alt.Chart(inline(placed(reference, steered))).mark_line(
        style="reference", interpolate="step-after", clip=clip
    )
    path = alt.Chart(inline(placed(rows, steered))).mark_line(
        strokeWidth=2, interpolate="step-after", clip=clip
    )
    moves = placed(move_points(steered, label, name), steered)
    points = alt.Chart(inline(moves)).mark_point(filled=True, size=70, clip=clip, opacity=1)
    shape = alt.Shape(
        "kind:N",
        scale=alt.Scale(domain=_MOVE_KINDS, range=["circle", "diamond", "triangle-down"]),
        legend=alt.Legend(symbolFillColor="gray", symbolStrokeWidth=0, symbolSize=70),
    )
    colour = _colour(runs, legend=False)
    what = "used by the optimiser" if item["kind"] == "lr" else "in force"
    told = f"what was {what}; dotted: the plain schedule{_log_note(domain)}"
    return alt.layer(
        under.encode(x=x, y=y),
        path.encode(x=x, y=y, color=colour),
        points.encode(x=x, y=y, color=colour, shape=shape, tooltip=_move_tip()),
    ).properties(title=chart_title(name, told), usermeta=_WIDE)


def _move_tip() -> list[Any]:
    import altair as alt

    return [
        alt.Tooltip("decision:Q"),
        alt.Tooltip("step:Q"),
        alt.Tooltip("used:N"),
        alt.Tooltip("applied:N", title="peak"),
        alt.Tooltip("proposed:N", title="peak asked for"),
        alt.Tooltip("why:N"),
        alt.Tooltip("validation:N", title="validation loss"),
        alt.Tooltip("reward:N", title="earned"),
    ]
