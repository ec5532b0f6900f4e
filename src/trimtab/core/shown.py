"""How a decision and a run show themselves: in one line, in a few lines of text, in a notebook."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from typing import Any

from trimtab.core.guard import count_undone

_MOST_METRICS = 3
_LAST_DECISIONS = 3


def decision_line(decision: Any, before: Any = None) -> str:
    """Return a decision in one line: step, validation, the values used, how they moved, and why.

    Args:
        decision: The `Decision` that is shown.
        before: The one before it; None for the first.
    """
    loss = float(decision.measured.get("loss", decision.metrics.val_loss))
    parts = [f"decision {decision.index + 1}, step {decision.step}"]
    told = f"validation {loss:.4g}" if math.isfinite(loss) else "loss not finite"
    if before is not None and math.isfinite(loss):
        last = float(before.measured.get("loss", before.metrics.val_loss))
        if math.isfinite(last) and last:
            told += f" ({100 * (loss - last) / abs(last):+.1f} %)"
    parts.append(told)
    for name, peak in decision.applied.items():
        words = f"{name} {decision.used.get(name, peak):.3g}"
        old = 0.0 if before is None else before.applied.get(name, 0.0)
        if old > 0 and peak > 0:
            words += f" ({moved(peak / old)})"
        parts.append(words)
    return "  ".join([*parts, *filter(None, [decision.why()])])


def moved(factor: float) -> str:
    """Return a factor as what a value is multiplied or divided by; "held" for less than a percent.

    >>> moved(1.5), moved(0.01), moved(1.0)
    ('x 1.5', '÷ 100', 'held')
    """
    if abs(math.log(factor)) < 0.01:
        return "held"
    return f"x {factor:.3g}" if factor > 1 else f"÷ {1 / factor:.3g}"


def summary_lines(summary: Any) -> list[str]:
    """Return a run's `Summary` in at most ten lines."""
    if not summary.decisions and not summary.spent_steps:
        return ["not begun"]
    state = "gave up: too many divergences" if summary.diverged else "under way"
    state = "finished" if summary.finished and not summary.diverged else state
    lines = [f"{state}: {summary.spent_steps} steps, {len(summary.decisions)} decisions"]
    if summary.best:
        lines.append(f"best, at step {summary.best.get('step', 0)}: {_metrics(summary.best)}")
    if summary.last:
        lines.append(f"last: {_metrics(summary.last)}")
    if summary.restores:
        undone = count_undone(item.reason for item in summary.decisions)
        policy = max(summary.restores - summary.rollbacks - undone, 0)
        windows = f", short windows undone {undone}" if undone else ""
        back = f"policy {policy}, guard {summary.rollbacks}{windows}"
        lines.append(f"went back: {summary.restores} ({back})")
    if summary.events:
        lines.append(f"rescued from {len(summary.events)} faults")
    shown = summary.decisions[-_LAST_DECISIONS:]
    first = len(summary.decisions) - len(shown)
    for at, decision in enumerate(shown, first):
        lines.append(decision_line(decision, summary.decisions[at - 1] if at else None))
    return lines


def _metrics(values: Mapping[str, float]) -> str:
    left_out = ("step", "examples", "train_loss", "reward")
    kept = [(name, value) for name, value in values.items() if name not in left_out]
    return ", ".join(f"{name} {value:.4g}" for name, value in kept[:_MOST_METRICS])


def as_html(title: str, lines: list[str]) -> str:
    """Return lines of text for a notebook, escaped."""
    body = "<br>".join(map(html.escape, lines))
    return f"<div><b>{html.escape(title)}</b><br>{body}</div>"


class ShowsRun:
    """What every controller and callback shows of its run, by its ``summary``."""

    @property
    def summary(self) -> Any:
        """The run so far."""
        raise NotImplementedError

    def __repr__(self) -> str:
        """Return the run in at most ten lines."""
        first, *rest = summary_lines(self.summary)
        return "\n  ".join([f"{type(self).__name__}: {first}", *rest])

    def _repr_html_(self) -> str:
        return as_html(type(self).__name__, summary_lines(self.summary))

    def plot(self) -> Any:
        """Return the run so far as a chart: validation loss, and each value used; see `Summary`."""
        return self.summary.plot()
