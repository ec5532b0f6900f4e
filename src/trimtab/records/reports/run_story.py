"""What a run's report says in words: the verdict, what happened, what each decision saw.

Facts of the record only: nothing here guesses at a cause.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from trimtab.core.features import GLOBAL_FEATURES
from trimtab.core.guard import Reason
from trimtab.records.reports.run_charts import (
    figures_of,
    is_plain,
    label_of,
    spelled,
    steered_names,
    used_values,
    validations,
)
from trimtab.records.store.rows import DecisionRecord, RunRecord

_PLACE = {name: at for at, (name, *_) in enumerate(GLOBAL_FEATURES)}
_LEAST_EFFECT = 0.1  # decades
_LOW_NOISE, _HIGH_NOISE = 0.02, 0.1  # nats
_SEEN_GRADIENT = 0.3  # decades


@dataclass(frozen=True)
class Grounds:
    """What a policy's answer at one decision rests on, by hyperparameter.

    Attributes:
        probabilities: Of its seven moves, from the largest down to the largest up.
        effects: Group of features -> how much higher the move is with it, in decades.
    """

    probabilities: Mapping[str, Sequence[float]]
    effects: Mapping[str, Mapping[str, float]]


# Numbers in words.


def number(value: Any, digits: int = 4) -> str:
    """Return a number for people: few digits, a power of ten where it is tiny or huge."""
    if not isinstance(value, int | float) or isinstance(value, bool) or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    if not 1e-3 <= abs(value) < 1e5:
        return f"{value:.{max(digits - 2, 1)}e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.{digits}g}"


def percent(share: float) -> str:
    """Return a share without its sign, in percent.

    >>> percent(-0.187), percent(0.0042)
    ('19 %', '0.4 %')
    """
    size = 100 * abs(share)
    if size > 1000:
        return "over 1000 %"
    return f"{size:.0f} %" if size >= 10 else f"{size:.1f} %"


def times(factor: float) -> str:
    """Return a factor as what a value is multiplied or divided by.

    >>> times(1.5), times(0.01), times(1.0)
    ('× 1.5', '÷ 100', 'held')
    """
    if not factor > 0 or not math.isfinite(factor):
        return "–"
    if abs(math.log(factor)) < 1e-3:
        return "held"
    size = max(factor, 1 / factor)
    shown = f"{size:.0f}" if 99.5 <= size < 1e5 else number(size, 2)
    return f"{'×' if factor > 1 else '÷'} {shown}"


def change_of(before: float, after: float) -> float:
    """Return a loss's relative change, nan where it is not known."""
    if not all(map(math.isfinite, (before, after))) or before == 0:
        return math.nan
    return (after - before) / abs(before)


# The verdict.


def verdict(record: RunRecord, other: RunRecord | None) -> str:
    """Return in one line how the run ended, and how that compares with the other one."""
    name, value = _measure(record)
    begun = name_of(record)
    if value is None:
        return f"{begun}: {record.status}, nothing measured yet"
    split = "test" if record.figures.get("test") else "validation"
    words = f"{begun}: {split} {spelled(name)} {number(value, 3)}"
    if record.status not in ("finished", "running"):
        words += f" ({record.status})"
    theirs = None if other is None else figures_of(other).get(name)
    if other is not None and bool(other.figures.get("test")) != (split == "test"):
        theirs = None
    if other is None or not isinstance(theirs, int | float) or not math.isfinite(theirs):
        return words
    return f"{words}, {_compared(record, name, value, float(theirs))} {_than(record, other)}"


def _measure(record: RunRecord) -> tuple[str, float | None]:
    figures = figures_of(record)
    monitor = str(record.head["monitor"])
    for name in ("loss", monitor, *figures):
        value = figures.get(name)
        if name not in ("step", "examples") and isinstance(value, int | float):
            return name, float(value)
    return monitor, None


def _compared(record: RunRecord, name: str, mine: float, theirs: float) -> str:
    change = change_of(theirs, mine)
    if math.isnan(change):
        return f"against {number(theirs, 3)} with"
    if abs(change) < 0.005:
        return "the same as with"
    way = "lower" if change < 0 else "higher"
    worse = (change > 0) == (name == "loss" or record.head["mode"] == "min")
    return f"{percent(change)} {way} than with{' (worse)' if worse else ''}"


def _than(record: RunRecord, other: RunRecord) -> str:
    label = label_of(other, record)
    return f"the {label}" if is_plain(other) else label


def name_of(record: RunRecord) -> str:
    """Return what was done with the run, as the begin of a sentence."""
    if record.head["watch_only"]:
        return "Watched only"
    policy = str(record.head["policy"])
    if is_plain(record):
        return "Plain schedule"
    if policy == "guard":
        return "Guarded"
    if policy.startswith("trimtab"):
        return "Steered"
    return f"Steered by {policy}"


def conditions(record: RunRecord, other: RunRecord | None) -> str:
    """Return under which conditions the verdict holds."""
    if other is None:
        return "One run and one seed; nothing to compare it with."
    told = []
    spent = [each.figures.get("spent_steps") for each in (record, other)]
    if None not in spent:
        same = spent[0] == spent[1]
        told.append(
            f"the same {spent[0]} steps" if same else f"{spent[0]} steps against {spent[1]}"
        )
    seconds = [each.figures.get("seconds") for each in (record, other)]
    if None not in seconds:
        told.append(f"{seconds[0]:.0f} s against {seconds[1]:.0f} s")
    for key, what in (("task", "task"), ("seed", "seed"), ("start", "start")):
        if record.head[key] != other.head[key]:
            told.append(f"another {what}: these two runs are not comparable in this")
    told.append("one seed: an example, not a proof")
    return f"{'; '.join(told)}.".capitalize()


# What happened.


def went_back(record: RunRecord) -> dict[str, int]:
    """Return how often the best weights were put back, by whom: policy, guard."""
    bits = [_bits(item) for item in record.decisions if item.restored]
    guard = sum(bool(each & Reason.ROLLBACK) for each in bits)
    policy = sum(bool(each & Reason.RESTORE) and not each & Reason.ROLLBACK for each in bits)
    return {"policy": policy, "guard": max(guard, int(record.figures.get("rollbacks") or 0))}


def _bits(item: DecisionRecord) -> int:
    found = 0
    for each in item.reasons.values():
        found |= int(each)
    return found


def what_happened(record: RunRecord) -> str:
    """Return in a few sentences what was done in the run."""
    told = [_start(record)]
    told += [_path(record, name) for name in steered_names(record) if record.decisions]
    back = went_back(record)
    if sum(back.values()):
        steps = [str(item.step) for item in record.decisions if item.restored][:6]
        where = f" (after step {', '.join(steps)})" if steps else ""
        told.append(
            f"Went back to the best weights {_often(sum(back.values()))}{where}: "
            f"policy {back['policy']}, guard {back['guard']}."
        )
    events = record.figures.get("events") or []
    if events:
        told.append(f"Rescued from {len(events)} fault{'s' * (len(events) > 1)}, shown below.")
    best = (record.figures.get("best") or {}).get("step")
    if best is not None:
        told.append(f"Best weights: step {number(best)}.")
    return " ".join(part for part in told if part)


def _often(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _start(record: RunRecord) -> str:
    starts = ", ".join(f"{name} {number(v, 2)}" for name, v in record.head["start"].items())
    scale = record.head["start_scale"]
    if scale is None or scale == 1:
        tuned = ", the tuned rate" if scale == 1 else ""
    else:
        way = "above" if scale > 1 else "below"
        tuned = f", {number(max(scale, 1 / scale), 3)} times {way} the tuned rate"
    return f"Started at {starts}{tuned}."


def _path(record: RunRecord, name: str) -> str:
    values = used_values(record, name)
    known = [(item.step, value) for item, value in zip(record.decisions, values, strict=True)]
    if not known:
        return ""
    peaks = [float(record.head["start"][name]), *(i.applied[name] for i in record.decisions)]
    up = sum(after > 1.1 * before for before, after in pairwise(peaks))
    down = sum(after < before / 1.1 for before, after in pairwise(peaks))
    top = max(known, key=lambda pair: pair[1])
    return (
        f"The {name} used began at {number(known[0][1], 2)}, was at most {number(top[1], 2)} "
        f"(step {top[0]}) and {number(known[-1][1], 2)} at the last decision. Of {len(known)} "
        f"decisions {up} raised it against the schedule, {down} lowered it, and "
        f"{len(known) - up - down} held it within 10 %."
    )


def events_of(record: RunRecord) -> list[tuple[int, str]]:
    """Return what is numbered on the curve: step, and what happened there, in order."""
    found: list[tuple[int, str]] = []
    for item in record.decisions:
        bits = _bits(item)
        if bits & Reason.ROLLBACK:
            found.append((item.step, "guard: the best weights were put back, the rate cut"))
        elif bits & Reason.UNDONE:
            found.append((item.step, "the short window before it was undone"))
        elif item.restored:
            found.append((item.step, "the policy went back to the best weights"))
        if item.terminated:
            found.append((item.step, "given up after too many divergences"))
    for event in record.figures.get("events") or []:
        found.append((int(event["step"]), f"rescue: {event['fault']}; {event['treatment']}"))
    return sorted(found, key=lambda pair: pair[0])


# One decision.


def seen(record: RunRecord, at: int) -> str:
    """Return what decision number ``at`` saw, as facts."""
    item = record.decisions[at]
    loss = _loss(item)
    if float(item.metrics.finite) < 1 or not math.isfinite(loss):
        return "the loss was not finite"
    if at == 0:
        return f"before the first step: validation {number(loss, 3)}"
    told = []
    change = change_of(_loss(record.decisions[at - 1]), loss)
    if not math.isnan(change):
        way = "fell" if change < 0 else "rose"
        size = "did not move" if abs(change) < 5e-4 else f"{way} {percent(change)}"
        told.append(f"validation {size} to {number(loss, 3)}")
    else:
        told.append(f"validation {number(loss, 3)}")
    best = min(_loss(one) for one in record.decisions[: at + 1] if math.isfinite(_loss(one)))
    over = change_of(best, loss)
    if over > 0.02:
        told.append(f"{percent(over)} above the best")
    return ", ".join([*told, *_noise(item, at), *_gradients(item)])


def _loss(item: DecisionRecord) -> float:
    return float(item.measured.get("loss", item.metrics.val_loss))


def _feature(item: DecisionRecord, name: str) -> float:
    place = _PLACE[name]
    return float(item.observation[place]) if len(item.observation) > place else 0.0


def _noise(item: DecisionRecord, at: int) -> list[str]:
    noise = _feature(item, "val_noise") / 4
    if at < 2 or noise <= 0:
        return []
    word = "low" if noise < _LOW_NOISE else "high" if noise > _HIGH_NOISE else "moderate"
    return [f"noise {word}"]


def _gradients(item: DecisionRecord) -> list[str]:
    change = _feature(item, "grad_change")
    if abs(change) < _SEEN_GRADIENT:
        return []
    return [f"gradients {times(10.0**change)}"]


def moved_most(grounds: Grounds | None, name: str, factor: float) -> str:
    """Return the two groups of features that moved the policy most, or that it held."""
    if grounds is None or name not in grounds.effects:
        return "–"
    effects = sorted(grounds.effects[name].items(), key=lambda pair: -abs(pair[1]))
    large = [(group, size) for group, size in effects if abs(size) >= _LEAST_EFFECT][:2]
    if large:
        return ", ".join(
            f"{group} {'↑' if size > 0 else '↓'} {abs(size):.2f}" for group, size in large
        )
    held = factor > 0 and abs(math.log(factor)) <= math.log(1.1)
    return "held within 10 %" if held else "no group above 0.1"


def followed(record: RunRecord) -> list[float]:
    """Return the relative change of the validation loss in the window after each decision."""
    points = validations(record)
    losses = dict(points)
    ends = [*(item.step for item in record.decisions[1:]), points[-1][0] if points else -1]
    return [
        change_of(losses.get(item.step, math.nan), losses.get(end, math.nan))
        if end > item.step
        else math.nan
        for item, end in zip(record.decisions, ends, strict=False)
    ]


def beside(record: RunRecord, other: RunRecord | None) -> list[float]:
    """Return the other run's change in the same windows, from its losses nearest in between."""
    points = [] if other is None else validations(other)
    mine = [step for step, _ in validations(record)]
    ends = [*(item.step for item in record.decisions[1:]), mine[-1] if mine else -1]
    if len(points) < 2:
        return [math.nan] * len(record.decisions)
    steps, losses = np.array([s for s, _ in points]), np.array([loss for _, loss in points])
    found = []
    for item, end in zip(record.decisions, ends, strict=False):
        inside = steps[0] <= item.step < end <= steps[-1]
        pair = np.interp([item.step, end], steps, losses)
        found.append(change_of(float(pair[0]), float(pair[1])) if inside else math.nan)
    return found


def largest(values: Iterable[float]) -> float:
    """Return the largest size among those that are known, from 1 to 100 percent."""
    known = [abs(value) for value in values if math.isfinite(value)]
    return min(max([*known, 0.01]), 1.0)
