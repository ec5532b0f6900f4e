"""A run so far as a picture or as text, with nothing but NumPy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from trimtab.envs.canvas import Canvas, Color, Panel
from trimtab.envs.episode import Episode

_WIDTH, _HEIGHT = 640, 480
_VALIDATION: Color = (31, 84, 158)
_TRAINING: Color = (190, 170, 120)
_RESTORE: Color = (205, 60, 50)
_PATHS: tuple[Color, ...] = ((20, 130, 90), (150, 70, 160), (200, 120, 20), (90, 90, 90))
_LOWEST = -4.0  # coordinates further below their start are drawn at the frame


def _log(value: float) -> float:
    return math.log10(value) if math.isfinite(value) and value > 0 else math.nan


def _losses(episode: Episode) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Return (step, log10 loss) of validation and training."""
    step, validation, training = 0.0, [], []
    for metrics in episode.metrics:
        step += float(metrics.steps)
        validation.append((step, _log(float(metrics.val_loss))))
        middle = step - float(metrics.steps) / 2
        training.append((middle, _log(float(metrics.train_loss))))
    return validation, training


def _range(values: Sequence[float], least: float) -> tuple[float, float]:
    """Return bounds with a margin around the finite values, at least ``least`` apart."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    margin = max(0.06 * (high - low), (least - (high - low)) / 2)
    return low - margin, high + margin


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    return [low + (high - low) * (place + 0.5) / count for place in range(count)]


def draw_episode(episode: Episode) -> np.ndarray:
    """Return (480, 640, 3) uint8: losses above, the paths of the hyperparameters below.

    Red lines are restores of the best weights; the big dot is the best validation loss.
    """
    session = episode.session
    canvas = Canvas(_WIDTH, _HEIGHT)
    best = session.summary.best
    canvas.text(
        (16, 10),
        f"{episode.task.name}   step {session.steps_done} of {session.total_steps}   "
        f"decision {session.decisions_made} of {len(session.ends)}",
    )
    canvas.text(
        (_WIDTH - 16, 10),
        "diverged" if session.terminated else f"best at step {best.get('step', 0):.0f}",
        _RESTORE if session.terminated else _VALIDATION,
        align="right",
    )
    panels = [_draw_losses(canvas, episode), _draw_paths(canvas, episode)]
    for decision in episode.decisions:
        if decision.restored:
            for panel in panels:
                panel.upright(decision.step, _RESTORE)
    return canvas.pixels


def _draw_losses(canvas: Canvas, episode: Episode) -> Panel:
    validation, training = _losses(episode)
    low, high = _range([y for _, y in validation + training], least=0.2)
    panel = Panel(
        canvas,
        (64, 48, _WIDTH - 16, 248),
        x_range=(0, episode.session.total_steps),
        y_range=(low, high),
        title="loss",
        ticks=[(y, f"{10**y:.3g}") for y in _ticks(low, high)],
    )
    canvas.text((_WIDTH - 16, 35), "validation", _VALIDATION, align="right")
    canvas.text((_WIDTH - 90, 35), "training", _TRAINING, align="right")
    panel.curve(training, _TRAINING)
    panel.curve(validation, _VALIDATION)
    panel.dots(validation, _VALIDATION)
    known = [point for point in validation if math.isfinite(point[1])]
    if known:
        panel.dots([min(known, key=lambda point: point[1])], _VALIDATION, radius=5)
    return panel


def _paths(episode: Episode) -> list[tuple[str, list[tuple[float, float]]]]:
    """Return for each hyperparameter its name and (step, coordinate relative to its start)."""
    paths = []
    for item in episode.session.spec.hyperparameters:
        start, points = item.to_coordinate(item.default), []
        for row in episode.session.summary.schedule:
            value = row[item.name]
            known = math.isfinite(value) and (value > 0 or item.scale != "log")
            moved = item.to_coordinate(value) - start if known else math.nan
            points.append((row["step"], max(moved, _LOWEST)))
        paths.append((item.name, points))
    return paths


def _draw_paths(canvas: Canvas, episode: Episode) -> Panel:
    paths = _paths(episode)
    low, high = _range([0.0, *(y for _, points in paths for _, y in points)], least=1.0)
    total = episode.session.total_steps
    panel = Panel(
        canvas,
        (64, 292, _WIDTH - 16, 452),
        x_range=(0, total),
        y_range=(low, high),
        title="decades (or shares of the range) from the start",
        ticks=[(y, f"{y:+.1f}") for y in _ticks(low, high)],
    )
    for x in range(5):
        step = total * x // 4
        canvas.text((panel.place(step, low)[0], 458), str(step), align="middle")
    panel.curve([(0, 0.0), (total, 0.0)], (150, 150, 150), width=1)
    for place, (name, points) in enumerate(paths):
        color = _PATHS[place % len(_PATHS)]
        panel.curve(points, color)
        canvas.text((_WIDTH - 16, 279 + 10 * place), name, color, align="right")
    return panel


def write_episode(episode: Episode) -> str:
    """Return the run so far as text: one line a decision, and where it stands."""
    names = [item.name for item in episode.session.spec.hyperparameters]
    lines = [f"{'step':>6}  {'validation':>11}  " + "  ".join(f"{name:>12}" for name in names)]
    for decision in episode.decisions:
        values = "  ".join(f"{decision.applied[name]:12.4g}" for name in names)
        loss = float(decision.metrics.val_loss)
        lines.append(f"{decision.step:>6}  {loss:11.5g}  {values}  {decision.why()}".rstrip())
    session = episode.session
    end = "diverged" if session.terminated else "finished" if episode.over else "running"
    lines.append(f"{session.steps_done:>6}  {float(episode.metrics[-1].val_loss):11.5g}  {end}")
    return "\n".join(lines) + "\n"
