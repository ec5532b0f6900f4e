"""A run so far as a picture or as text, with nothing but NumPy.

The canvas is a small raster: lines, dots and text, enough for the picture of a run.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from trimtab.envs.episode import Episode

Color = tuple[int, int, int]

# The 5 x 7 dot-matrix letters of character displays: five columns each, lowest bit on top.
_GLYPHS = {
    **{" ": "0000000000", "%": "2313086462", "(": "001c224100", ")": "0041221c00"},
    **{"+": "08083e0808", ",": "0050300000", "-": "0808080808", ".": "0060600000"},
    **{"/": "2010080402", ":": "0036360000", "=": "1414141414", "@": "324979413e"},
    **{"_": "4040404040", "0": "3e5149453e", "1": "00427f4000", "2": "4261514946"},
    **{"3": "2141454b31", "4": "1814127f10", "5": "2745454539", "6": "3c4a494930"},
    **{"7": "0171090503", "8": "3649494936", "9": "064949291e", "a": "2054545478"},
    **{"b": "7f48444438", "c": "3844444420", "d": "384444487f", "e": "3854545418"},
    **{"f": "087e090102", "g": "0c5252523e", "h": "7f08040478", "i": "00447d4000"},
    **{"j": "2040443d00", "k": "7f10284400", "l": "00417f4000", "m": "7c04180478"},
    **{"n": "7c08040478", "o": "3844444438", "p": "7c14141408", "q": "081414187c"},
    **{"r": "7c08040408", "s": "4854545420", "t": "043f444020", "u": "3c4040207c"},
    **{"v": "1c2040201c", "w": "3c4030403c", "x": "4428102844", "y": "0c5050503c"},
    **{"z": "4464544c44"},
}


class Canvas:
    """A white picture to draw on.

    Attributes:
        pixels: (height, width, 3) uint8.
    """

    def __init__(self, width: int, height: int) -> None:
        self.pixels = np.full((height, width, 3), 255, np.uint8)

    def line(
        self, start: tuple[float, float], end: tuple[float, float], color: Color, width: int = 1
    ) -> None:
        """Draw a straight line between two points (x, y) in pixels from the upper left."""
        count = int(max(abs(end[0] - start[0]), abs(end[1] - start[1]))) + 1
        xs = np.rint(np.linspace(start[0], end[0], count)).astype(int)
        ys = np.rint(np.linspace(start[1], end[1], count)).astype(int)
        for dx in range(width):
            for dy in range(width):
                self._put(xs + dx - width // 2, ys + dy - width // 2, color)

    def dot(self, at: tuple[float, float], color: Color, radius: int = 2) -> None:
        """Draw a filled circle."""
        span = np.arange(-radius, radius + 1)
        dx, dy = np.meshgrid(span, span)
        inside = dx**2 + dy**2 <= radius**2 + 1
        self._put(round(at[0]) + dx[inside], round(at[1]) + dy[inside], color)

    def text(
        self, at: tuple[float, float], words: str, color: Color = (60, 60, 60), align: str = "left"
    ) -> None:
        """Write words with their upper edge at a point; letters are 6 pixels wide, 7 high.

        Args:
            at: (x, y) of the left, middle or right end.
            words: Written in small letters; what the font lacks is left blank.
            color: Of the letters.
            align: ``"left"``, ``"middle"`` or ``"right"``.
        """
        size = 6 * len(words)
        left = round(at[0]) - {"left": 0, "middle": size // 2, "right": size}[align]
        for place, letter in enumerate(words.lower()):
            columns = bytes.fromhex(_GLYPHS.get(letter, _GLYPHS[" "]))
            for column, bits in enumerate(columns):
                rows = np.flatnonzero([bits >> row & 1 for row in range(7)])
                self._put(np.full(len(rows), left + 6 * place + column), rows + round(at[1]), color)

    def _put(self, xs: np.ndarray, ys: np.ndarray, color: Color) -> None:
        height, width, _ = self.pixels.shape
        inside = (xs >= 0) & (xs < width) & (ys >= 0) & (ys < height)
        self.pixels[ys[inside], xs[inside]] = color


class Panel:
    """A pair of axes on a canvas, with its frame, ticks and title drawn.

    Args:
        canvas: What to draw on.
        box: Left, top, right and bottom in pixels.
        x_range: Smallest and largest x.
        y_range: Smallest and largest y, which may be equal.
        title: Written above the frame.
        ticks: ``(y, words)`` to write at the left edge.
    """

    def __init__(
        self,
        canvas: Canvas,
        box: tuple[int, int, int, int],
        *,
        x_range: tuple[float, float],
        y_range: tuple[float, float],
        title: str,
        ticks: Sequence[tuple[float, str]],
    ) -> None:
        self._canvas, self._box = canvas, box
        self._x_range, self._y_range = x_range, y_range
        left, top, right, bottom = box
        grey: Color = (170, 170, 170)
        for y, words in ticks:
            height = self.place(x_range[0], y)[1]
            canvas.line((left, height), (right, height), (232, 232, 232))
            canvas.text((left - 4, height - 3), words, align="right")
        canvas.line((left, top), (left, bottom), grey)
        canvas.line((left, bottom), (right, bottom), grey)
        canvas.text((left, top - 13), title)

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Return the pixel of a point; what lies outside is held at the frame."""
        left, top, right, bottom = self._box
        (x_low, x_high), (y_low, y_high) = self._x_range, self._y_range
        across = (x - x_low) / ((x_high - x_low) or 1.0)
        up = (y - y_low) / ((y_high - y_low) or 1.0)
        across, up = min(max(across, 0.0), 1.0), min(max(up, 0.0), 1.0)
        return left + across * (right - left), bottom - up * (bottom - top)

    def curve(self, points: Sequence[tuple[float, float]], color: Color, width: int = 2) -> None:
        """Draw a curve through points; one with a coordinate that is not finite breaks it."""
        pixels = [self.place(x, y) if np.isfinite([x, y]).all() else None for x, y in points]
        for one, other in itertools.pairwise(pixels):
            if one is not None and other is not None:
                self._canvas.line(one, other, color, width)

    def dots(self, points: Sequence[tuple[float, float]], color: Color, radius: int = 2) -> None:
        """Draw a dot at each point that is finite."""
        for x, y in points:
            if np.isfinite([x, y]).all():
                self._canvas.dot(self.place(x, y), color, radius)

    def upright(self, x: float, color: Color) -> None:
        """Draw a line from bottom to top."""
        _, top, _, bottom = self._box
        at = self.place(x, self._y_range[0])[0]
        self._canvas.line((at, top), (at, bottom), color)


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
