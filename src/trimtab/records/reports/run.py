"""A run's report: one HTML file that holds all it shows, and asks the network for nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trimtab.core.guard import count_undone
from trimtab.records.reports import page
from trimtab.records.reports.page import text
from trimtab.records.reports.run_charts import (
    charts_of,
    figures_of,
    is_plain,
    label_of,
    spelled,
    steered_names,
    used_values,
)
from trimtab.records.reports.run_story import (
    Grounds,
    beside,
    conditions,
    events_of,
    followed,
    largest,
    moved_most,
    number,
    percent,
    seen,
    times,
    verdict,
    went_back,
    what_happened,
)
from trimtab.records.store.rows import DecisionRecord, RunRecord

Known = Sequence[Grounds | None]


def write_report(
    path: Path, record: RunRecord, other: RunRecord | None = None, grounds: Known = ()
) -> None:
    """Write a run's report to a file, replacing it.

    Args:
        path: The HTML file.
        record: The run.
        other: A run to show beside it.
        grounds: What each decision rests on, where it is known.

    Raises:
        MissingDependencyError: The extra ``report`` is not installed.
        SpecError: The file cannot be written.
    """
    page.write_file(path, report_html(record, other, grounds).encode())


def write_picture(path: Path, record: RunRecord, other: RunRecord | None = None) -> None:
    """Write the charts of a report as one picture on white.

    Args:
        path: File that ends in ``.png`` or ``.svg``.
        record: The run.
        other: A run to show beside it.

    Raises:
        MissingDependencyError: The extra ``report`` is not installed.
        SpecError: The ending is another one, or the file cannot be written.
    """
    page.require_report_extra()
    page.draw(path, page.sheet_of(charts_of(record, other, events_of(record))))


def report_html(record: RunRecord, other: RunRecord | None = None, grounds: Known = ()) -> str:
    """Return the page; every name that a user chose is escaped.

    Raises:
        MissingDependencyError: The extra ``report`` is not installed.
    """
    page.require_report_extra()
    events = events_of(record)
    told = (
        f'<section class="sheet story"><p><b>What happened.</b> {text(what_happened(record))}</p>'
    )
    if other is None and not is_plain(record):
        told += f"<p>{_how_to_compare(record)}</p>"
    return page.document(
        record.title,
        f"{_header(record, other)}{told}{_numbered(events)}</section>{_cards(record, other)}",
        charts_of(record, other, events),
        f"{_rescues(record)}<h2>Decisions</h2>"
        f"{decisions_table(record, other, grounds)}<h2>The run</h2>{_about(record, other)}",
    )


def _how_to_compare(record: RunRecord) -> str:
    """Return how to make the run that this one is compared with, as HTML."""
    kept = "" if record.id is None else f" {record.id}"
    return (
        "Whether that was better than the plain schedule, this run alone cannot say. Run it again "
        "with the same seed, data and weights and the policy off (<code>--policy none</code>, "
        "<code>policy=None</code>), then "
        f"<code>trimtab report{kept} --against NUMBER</code>."
    )


def _numbered(events: Sequence[tuple[int, str]]) -> str:
    if not events:
        return ""
    items = "".join(f"<li>step {step}: {text(what)}</li>" for step, what in events)
    return f'<p>Numbered on the curve of the loss:</p><ol class="events">{items}</ol>'


# Rescues.


def _rescues(record: RunRecord) -> str:
    """Return a card for each fault that the run was rescued from, as HTML."""
    found = list(record.figures.get("events") or [])
    if not found:
        return ""
    return f"<h2>Rescues</h2>{''.join(rescue_card(event) for event in found)}"


def rescue_card(event: Mapping[str, Any]) -> str:
    """Return what happened, why, and what was done and was not, as HTML.

    Args:
        event: Of a rescue, as its ``to_dict`` gives it, with its ``sentence`` where there is one.
    """
    acted = event.get("acted", True)
    done = str(event["treatment"]) if acted else f"nothing (dry run; else: {event['treatment']})"
    if event.get("restored") is not None:
        lost = event.get("updates_lost", 0)
        done += f": the state of step {event['restored']} was put back, {lost} updates were lost"
    if event.get("rate_factor", 1.0) != 1.0:
        done += f"; learning rates are multiplied by {number(event['rate_factor'], 3)} from here on"
    rows = [("why", event.get("evidence")), ("where", event.get("where"))]
    rows += [("batch", event.get("batch")), ("done", done)]
    rows += [("not done", event.get("not_done")), ("in short", event.get("sentence"))]
    shown = [(name, text(value)) for name, value in rows if value not in (None, "")]
    for name, key in (("losses before", "losses"), ("gradient norms", "gradient_norms")):
        line = sparkline(event.get(key) or [])
        if line:
            shown.append((name, line))
    return (
        f'<div class="rescue"><h3>Step {text(event["step"])}: {text(event["fault"])}</h3>'
        f"{page.details(shown)}</div>"
    )


def sparkline(values: Sequence[Any], width: int = 240, height: int = 44) -> str:
    """Return the finite ones of some numbers as a small chart, with the first and the last one."""
    points = [
        (at, float(value))
        for at, value in enumerate(values)
        if isinstance(value, int | float) and math.isfinite(value)
    ]
    if len(points) < 2:
        return ""
    low, high = min(v for _, v in points), max(v for _, v in points)
    across, up = (width - 4) / max(len(values) - 1, 1), (height - 4) / ((high - low) or 1.0)
    path = " ".join(f"{2 + across * at:.1f},{height - 2 - up * (v - low):.1f}" for at, v in points)
    words = f"{number(points[0][1], 3)} to {number(points[-1][1], 3)}"
    return (
        f'<svg class="spark" viewBox="0 0 {width} {height}" role="img" aria-label="{words}">'
        f'<polyline points="{path}"/></svg> {words}, at most {number(high, 3)}'
    )


# Decisions.


def decisions_table(record: RunRecord, other: RunRecord | None = None, grounds: Known = ()) -> str:
    """Return the table of a run's decisions as HTML.

    Each with what it saw, what moved the policy, how sure it was, and what followed.

    Args:
        record: The run.
        other: A run whose same windows are shown beside what followed.
        grounds: What each decision rests on, where it is known.
    """
    names = steered_names(record)
    columns = _Columns(record, other, grounds)
    numbers = ["step", *(heading for name in names for heading in (f"{name} used", "× or ÷"))]
    words = ["what was seen", *(["what moved the policy most", "confidence"] if grounds else [])]
    words += ["next window, validation", *([label_of(other, record)] if other else [])]
    rows = [columns.row(at, names) for at in range(len(record.decisions))]
    return page.table(page.heads((), numbers, words), rows).replace("<table>", _STACK, 1) + (
        f"<p class=note>{_OCCLUSION}</p>" if grounds else ""
    )


_STACK = '<table class="stack">'
_OCCLUSION = (
    "What moved the policy most: how far its move, in decades of the value, changes when a group "
    "of what it sees is hidden from it at this decision and all before. Confidence: how it "
    "spread over its seven moves, from the largest down (left) to the largest up (right). × or ÷ "
    "is the move against the schedule; the arrow follows the value used."
)


class _Columns:
    """The cells of a run's decisions."""

    def __init__(self, record: RunRecord, other: RunRecord | None, grounds: Known) -> None:
        self._record, self._other, self._grounds = record, other, grounds
        self._used = {name: used_values(record, name) for name in steered_names(record)}
        self._followed, self._beside = followed(record), beside(record, other)
        self._largest = largest(self._followed)

    def row(self, at: int, names: Sequence[str]) -> str:
        """Return the row of decision number ``at``."""
        item = self._record.decisions[at]
        grounds = self._grounds[at] if at < len(self._grounds) else None
        line = _cell("step", str(item.step), "n")
        factors, earlier = {}, {}
        for name in names:
            before = self._record.decisions[at - 1].applied if at else self._record.head["start"]
            earlier[name] = float(before[name])
            factors[name] = _factor(earlier[name], item.applied[name])
            line += self._value(name, at) + self._move(name, item, earlier[name])
        line += _cell("seen", text(seen(self._record, at)))
        if self._grounds:
            line += self._moved(names, factors, grounds)
        line += _cell(
            "next window", _bar(self._followed[at], self._largest), title=self._earned(at)
        )
        if self._other is not None:
            line += _cell(label_of(self._other, self._record), _signed(self._beside[at]), "beside")
        return f"<tr{' class=back' if item.restored else ''}>{line}</tr>"

    def _value(self, name: str, at: int) -> str:
        now, before = self._used[name][at], self._used[name][at - 1] if at else math.nan
        turn = "up" if now > before * 1.001 else "down" if now < before * 0.999 else ""
        arrow = {"up": " ↑", "down": " ↓", "": "  "}[turn]
        return _cell(f"{name} used", f"{number(now, 3)}{arrow}", f"n {turn}")

    def _move(self, name: str, item: DecisionRecord, before: float) -> str:
        now = item.applied[name]
        factor = _factor(before, now)  # none where one of them is 0
        moved = times(factor) if factor > 0 else "held" if now == before else f"{now - before:+.2g}"
        why = "; ".join(part for part in (item.why_of(name), "given up" * item.terminated) if part)
        below = f"<br><small>{text(why)}</small>" if why else ""
        return _cell("× or ÷", f"<b>{moved}</b>{below}", "n move")

    def _moved(
        self, names: Sequence[str], factors: Mapping[str, float], grounds: Grounds | None
    ) -> str:
        said, bars = [], []
        for name in names:
            begun = f"{name}: " if len(names) > 1 else ""
            said.append(f"{begun}{moved_most(grounds, name, factors[name])}")
            bars.append(_spread(grounds.probabilities.get(name, ())) if grounds else "–")
        return _cell("moved most by", text("; ".join(said))) + _cell("confidence", " ".join(bars))

    def _earned(self, at: int) -> str:
        later = self._record.decisions[at + 1 : at + 2]
        earned = (
            later[0].reward if later else (self._record.figures.get("last") or {}).get("reward")
        )
        known = isinstance(earned, float) and math.isfinite(earned)
        return f"earned {earned:+.3f} nats" if known else ""


def _cell(label: str, content: str, kind: str = "", title: str = "") -> str:
    """Return a cell that says what it is where a narrow page shows no heads."""
    marks = f' class="{kind}"' if kind else ""
    tip = f' title="{text(title)}"' if title else ""
    return f'<td{marks} data-label="{text(label)}"{tip}>{content}</td>'


def _factor(before: float, now: float) -> float:
    return now / before if before > 0 and now > 0 else math.nan


def _signed(change: float) -> str:
    if not math.isfinite(change):
        return "–"
    return f"{'−' if change < 0 else '+'}{percent(change)}"


def _bar(change: float, most: float) -> str:
    """Return a change as a bar, green where the loss fell, and a number."""
    if not math.isfinite(change):
        return "–"
    width = 100 * min(abs(change) / most, 1.0)
    kind = "good" if change < 0 else "bad"
    return (
        f'<span class="bar"><i class="{kind}" style="width:{width:.0f}%"></i></span>'
        f"{_signed(change)}"
    )


def _spread(probabilities: Sequence[float]) -> str:
    """Return probabilities as a small bar chart, the likeliest one at full height."""
    if not len(probabilities):
        return "–"
    most = max(probabilities)
    words = ", ".join(f"{p:.2f}" for p in probabilities)
    bars = "".join(
        f'<rect x="{7 * at}" y="{18 * (1 - p / most):.1f}" width="6" height="{18 * p / most:.1f}"/>'
        for at, p in enumerate(probabilities)
    )
    return f'<svg class="spread" viewBox="0 0 48 18" role="img" aria-label="{words}">{bars}</svg>'


# Where it comes from.


def origin_rows(head: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the rows of `details` that say by what versions of the code a run was made."""
    versions = ", ".join(f"{name} {version}" for name, version in head["versions"].items())
    return [("versions", text(versions)), ("commit", page.code(head["git_commit"] or "–"))]


def notice_rows(head: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the rows of `details` that repeat what a run's data asks to be told."""
    return [(f"notice ({name})", text(words)) for name, words in head["notices"].items()]


def day_of(seconds: float) -> str:
    """Return a moment in words.

    >>> day_of(0.0)
    '01 January 1970, 00:00 UTC'
    """
    return time.strftime("%d %B %Y, %H:%M UTC", time.gmtime(seconds))


def _header(record: RunRecord, other: RunRecord | None) -> str:
    head = record.head
    variant = f" ({head['variant']})" if head["variant"] else ""
    words = [
        conditions(record, other)[:-1],
        f"{head['policy']} on the schedule {head['reference']}",
        f"seed {head['seed']}",
        f"{len(record.decisions)} decisions over {head['total_steps']} steps",
    ]
    if head["watch_only"]:
        words.append("watching only: nothing was changed")
    if other is not None:
        words.append(f"beside {other.title}")
    mark = ("" if record.id is None else f"run {record.id} · ") + day_of(head["started_at"])
    mark = f"{head['task']}{variant} · {mark}"
    return page.header(mark, verdict(record, other), f"{'; '.join(words)}.", record.status)


def _cards(record: RunRecord, other: RunRecord | None) -> str:
    """Return the row of cards: metrics of the best weights, then what the run cost."""
    split = "test" if record.figures.get("test") else "validation"
    beside = {} if other is None else figures_of(other)
    rows = [
        (f"{split} {spelled(name)}", number(value), beside.get(name))
        for name, value in figures_of(record).items()
        if name not in ("examples", "step")
    ][:4]
    costs = (("steps", "spent_steps"), ("compute in runs", "spent"), ("seconds", "seconds"))
    for label, key in costs:
        if key in record.figures:
            value = record.figures[key]
            shown = f"{value:.1f}" if key == "seconds" else number(value, 3)
            rows.append((label, shown, None if other is None else other.figures.get(key)))
    undone, others = (
        None if each is None else count_undone(item.reasons for item in each.decisions)
        for each in (record, other)
    )
    if undone or others:
        rows.append(("short windows undone", number(undone), others))
    best = (record.figures.get("best") or {}).get("step")
    if best is not None:
        rows.append(("best at step", number(best), None))
    other_label = "" if other is None else label_of(other, record)
    told = [
        (name, value, "" if theirs is None else f"{other_label} {number(theirs, 3)}")
        for name, value, theirs in rows
    ]
    back = went_back(record)
    if record.decisions and not is_plain(record):
        by = ", ".join(f"{who} {count}" for who, count in back.items())
        told.append(("went back", str(sum(back.values())), by))
    return page.cards(told)


def _about(record: RunRecord, other: RunRecord | None) -> str:
    head = record.head
    took = ""
    if head.get("finished_at"):
        took = f", {head['finished_at'] - head['started_at']:.1f} s"
    rows = [
        *notice_rows(head),
        ("command", page.code(head["command"])),
        ("seed", text(head["seed"])),
        *origin_rows(head),
        ("contract", page.code(head["spec_hash"])),
        ("host", text(f"{head['host']}{took}")),
    ]
    if other is not None:
        rows.append(("beside", f"{text(other.title)}, {page.code(other.head['command'])}"))
    return page.details(rows)
