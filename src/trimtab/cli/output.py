"""What commands print: tables, JSON, and runs as they go on.

A run that goes on is a live panel on a terminal, and plain lines everywhere else.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import typer

from trimtab.core.decision import Progress
from trimtab.core.protocols import Task
from trimtab.core.spec import ControlSpec, window_ends

if TYPE_CHECKING:
    from rich.console import Group
    from rich.live import Live
    from rich.panel import Panel
    from rich.progress import Progress as Bar


_BLOCKS = "▁▂▃▄▅▆▇█"
_STYLES = ("cyan", "magenta", "green", "yellow")


def print_json(document: Any) -> None:
    """Print one document on standard output; values that are not finite become null."""
    import json

    from trimtab.records.store.encoding import to_json

    typer.echo(json.dumps(json.loads(to_json(document)), indent=2, ensure_ascii=False))


def say(words: str) -> None:
    """Print a line on standard error."""
    typer.echo(words, err=True)


@contextmanager
def interruptible(how: Callable[[], str]) -> Iterator[None]:
    """On Ctrl-C say how to go on, and leave with status 130.

    Args:
        how: Gives the words, which follow *interrupted*.

    Raises:
        typer.Exit: It was interrupted.
    """
    try:
        yield
    except KeyboardInterrupt:
        say(f"trimtab: interrupted{how()}")
        raise typer.Exit(130) from None


def say_notice(task: Task) -> str:
    """Say on standard error what a task's data asks to be told, and return it; empty if nothing."""
    notice = str(getattr(task, "notice", ""))
    if notice:
        say(notice)
    return notice


def say_fewer_decisions(asked: int, runs: Iterable[tuple[str, ControlSpec, int]]) -> None:
    """Say on standard error which runs are too short for the decisions that were asked for.

    Args:
        asked: How many these are.
        runs: Name, spec and optimiser steps of each.
    """
    fewer: dict[str, None] = {}
    for name, spec, steps in runs:
        count = len(window_ends(spec, steps))
        if count < asked:
            most = "a step" if spec.least_steps == 1 else f"in {spec.least_steps} steps"
            fewer[f"{name} has {count}, since its {steps} steps allow one {most}"] = None
    if fewer:
        say(f"--decisions {asked}: {'; '.join(fewer)}")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str = "") -> None:
    """Print a table on standard output, its texts as they are."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=title or None, title_justify="left", box=box.SIMPLE_HEAD, title_style="bold"
    )
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(item)) for item in row))
    width = None if sys.stdout.isatty() else 160
    Console(width=width, highlight=False).print(table)


def number(value: Any) -> str:
    """Return a figure in as few digits as it needs to be read.

    >>> number(0.41234), number(1.2e-05), number(200.0), number(None)
    ('0.4123', '1.2e-05', '200', '–')
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    size = abs(float(value))
    if size and not 1e-3 <= size < 1e5:
        return f"{float(value):.3g}"
    return f"{float(value):.4g}" if size < 1000 else f"{float(value):.0f}"


def clock(seconds: float) -> str:
    """Return a length of time in minutes and seconds.

    >>> clock(125.0), clock(float("nan"))
    ('2:05', '–')
    """
    if not math.isfinite(seconds):
        return "–"
    return f"{int(seconds // 60)}:{int(seconds % 60):02d}"


def progress_bar(description: str = "") -> Bar:
    """Return a bar on standard error, whose tasks have a field ``note``; use it in a ``with``."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn(description),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
    )


def sparkline(values: list[float], width: int = 40) -> str:
    """Return the last ``width`` values as a line of blocks, the lowest the lowest; nan is ``×``.

    >>> sparkline([3.0, 2.0, float("nan"), 1.0])
    '█▄×▁'
    """
    shown = values[-width:]
    finite = [value for value in shown if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(
        _BLOCKS[int((value - low) * scale)] if math.isfinite(value) else "×" for value in shown
    )


def seconds_left(told: Sequence[Progress]) -> float:
    """Return how many seconds the rest takes, by least squares over the last windows.

    A window takes a time of its own, for its validation, and a time for each of its steps; short
    windows come first, so the mean pace of the run so far would promise far too much.

    Args:
        told: What the run has told so far, in order; nan before its first window.
    """
    pairs = list(itertools.pairwise(told))[-8:]
    if not pairs:
        return math.nan
    now = told[-1]
    steps = np.array([later.step - sooner.step for sooner, later in pairs], np.float64)
    seconds = np.array([later.seconds - sooner.seconds for sooner, later in pairs])
    left = now.total_steps - now.step
    windows = max(now.total_windows - len(told) + 1, 0)
    if np.ptp(steps) < 0.5 * steps.mean():
        return float(seconds.mean() / steps.mean() * left)
    design = np.stack([steps, np.ones_like(steps)], axis=1)
    pace, apiece = np.linalg.lstsq(design, seconds, rcond=None)[0]
    return max(float(max(pace, 0.0) * left + max(apiece, 0.0) * windows), 0.0)


def _moves(progress: Progress) -> str:
    """Return in words what the last decision did, and why it is not what was proposed."""
    decision = progress.decision
    if decision is None:
        return "done"
    values = decision.used or decision.applied
    parts = [f"{name} {number(value)}" for name, value in values.items()]
    text = f"decision {decision.index + 1}: " + ", ".join(parts)
    return f"{text} ({decision.why()})" if decision.why() else text


def _scores(measured: Mapping[str, float], watched: str) -> list[tuple[str, float]]:
    others = [(k, v) for k, v in measured.items() if k not in (watched, "examples")]
    return [(watched, measured.get(watched, math.nan)), *others[:3]]


class Display:
    """Shows runs side by side on standard error while they go on; use it in a ``with`` block.

    Args:
        names: What each run is called, in order, with the metric that it watches.
        title: Line above them on a terminal.
    """

    def __init__(self, names: Mapping[str, str], title: str = "") -> None:
        self._watched = dict(names)
        self._title = title
        self._told: dict[str, list[Progress]] = {name: [] for name in names}
        self._live: Live | None = None

    def __enter__(self) -> Display:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            console = Console(stderr=True, highlight=False)
            self._live = Live(self._render(), console=console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.update(self._render())
            self._live.stop()

    def update(self, name: str, progress: Progress) -> None:
        """Show where a run stands."""
        self._told[name].append(progress)
        if self._live is not None:
            self._live.update(self._render())
        else:
            say(self._line(name, progress))

    def _line(self, name: str, progress: Progress) -> str:
        label = f"{name}: " if len(self._watched) > 1 else ""
        scores = _scores(progress.measured, self._watched[name])
        train = float(progress.metrics.train_loss)
        told = [f"train {number(train)}"] if math.isfinite(train) else []
        told += [f"{key} {number(value)}" for key, value in scores]
        told += [f"{key} now {number(value)}" for key, value in progress.values.items()]
        left = clock(seconds_left(self._told[name]))
        return (
            f"{label}step {progress.step}/{progress.total_steps}  {'  '.join(told)}  "
            f"| {_moves(progress)} | {left} left"
        )

    def _render(self) -> Group:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        panels = [
            self._panel(name, _STYLES[index % len(_STYLES)])
            for index, name in enumerate(self._watched)
        ]
        body: Any = panels[0]
        if len(panels) > 1:
            body = Table.grid(expand=True)
            for _ in panels:
                body.add_column(ratio=1)
            body.add_row(*panels)
        return Group(*([Text(self._title, style="bold")] if self._title else []), body)

    def _panel(self, name: str, style: str) -> Panel:
        from rich.console import Group
        from rich.panel import Panel
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        told = self._told[name]
        progress = told[-1] if told else None
        lines: list[Any] = [Text("preparing …", style="dim")]
        if progress is not None:
            best = progress.best.get(self._watched[name], math.nan)
            scores = _scores(progress.measured, self._watched[name])
            lines = [
                Text.assemble(
                    *(
                        part
                        for key, value in scores
                        for part in ((f"{key} ", "dim"), (f"{number(value)}   ", "bold"))
                    )
                ),
                Text(sparkline([float(item.metrics.val_loss) for item in told]), style=style),
                Text(f"best {number(best)} at step {number(progress.best.get('step'))}", "dim"),
                *(
                    Text.assemble((f"{key} ", "dim"), (number(value), "bold"))
                    for key, value in progress.values.items()
                ),
                Text(_moves(progress), style="dim"),
                Text(
                    f"step {progress.step} of {progress.total_steps} · "
                    f"{clock(seconds_left(told))} left",
                    style="dim",
                ),
                # Last, for it ends no line of its own.
                ProgressBar(
                    progress.total_steps,
                    progress.step,
                    complete_style=style,
                    finished_style=style,
                ),
            ]
        return Panel(
            Group(*lines), title=Text(name, style="bold"), title_align="left", border_style=style
        )
