"""What commands print, and how they read what was typed."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from trimtab.core.errors import SpecError, unknown_name
from trimtab.core.hyperparameters import Hyperparameter, resolve_hyperparameters

if TYPE_CHECKING:
    from rich.table import Table

    from trimtab.core.protocols import Task
    from trimtab.core.spec import ControlSpec

JSON_HELP = "Print one JSON document on standard output; progress goes to standard error."
STORE_HELP = "Database URL or SQLite file of the record; none keeps no record."


def print_json(document: Any) -> None:
    """Print one document on standard output; values that are not finite become null."""
    import json

    from trimtab.records.store.encoding import to_json

    typer.echo(json.dumps(json.loads(to_json(document)), indent=2, ensure_ascii=False))


def say(words: str) -> None:
    """Print a line on standard error."""
    typer.echo(words, err=True)


def folder(given: str | Path) -> Path:
    """Return the folder that was typed; an option's ``parser=``.

    An empty text, which a script's unset variable leaves, is not taken for the working folder.

    Raises:
        typer.BadParameter: It is empty.

    >>> folder("results").name
    'results'
    """
    if not str(given).strip():
        raise typer.BadParameter(f"{given!r} names no folder; name one, or . for the working one")
    return Path(given)


def is_given(context: typer.Context, option: str) -> bool:
    """Return whether an option was typed, rather than left at its default."""
    source = context.get_parameter_source(option)
    return source is not None and source.name != "DEFAULT"


def say_fewer_decisions(asked: int, runs: Iterable[tuple[str, ControlSpec, int]]) -> None:
    """Say on standard error which runs are too short for the decisions that were asked for.

    Args:
        asked: How many these are.
        runs: Name, spec and optimiser steps of each.
    """
    from trimtab.core.spec import window_ends

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
    from rich.text import Text

    table: Table = _empty_table(title, box.SIMPLE_HEAD)
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(item)) for item in row))
    width = None if sys.stdout.isatty() else 160
    Console(width=width, highlight=False).print(table)


def _empty_table(title: str, style: Any) -> Table:
    from rich.table import Table

    return Table(title=title or None, title_justify="left", box=style, title_style="bold")


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


def names(text: str) -> list[str]:
    """Return the names in a comma-separated list.

    >>> names("lr, weight_decay")
    ['lr', 'weight_decay']
    """
    return [part.strip() for part in text.split(",") if part.strip()]


def store_or_none(store: str) -> str | None:
    """Return the store that was asked for; None for the word none."""
    return None if store.strip().lower() == "none" else store


def assignments(texts: Iterable[str]) -> dict[str, float]:
    """Return name -> value of what was typed as ``lr=1e-5`` or ``lr=1e-5,momentum=0.9``.

    Raises:
        SpecError: A part is no assignment, its value no number, or a name is given twice.
    """
    found: dict[str, float] = {}
    for part in (part for text in texts for part in names(text)):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not (name and equals):
            raise SpecError(f"--start: {part!r} is no assignment; write it as lr=1e-5")
        if name in found:
            raise SpecError(f"--start: {name} is given twice; give it once")
        try:
            found[name] = float(value)
        except ValueError as error:
            raise SpecError(f"--start: {name}={value!r} is no number; write lr=1e-5") from error
    return found


def make_folder_importable(references: Iterable[str]) -> None:
    """Let modules in the working folder be imported if a task is named as ``module:factory``."""
    folder = os.getcwd()  # noqa: PTH109 - sys.path holds text
    if folder not in sys.path and any(":" in reference for reference in references):
        sys.path.insert(0, folder)


def find_task(reference: str, variant: str | None) -> Task:
    """Return a registered task or one from ``module:factory``; the working folder is importable.

    Raises:
        UnknownNameError: There is no such task.
        SpecError: It takes no such variant, or makes no task.
        MissingDependencyError: It needs a package that is not installed.
    """
    from trimtab.core.registry import make_task

    make_folder_importable([reference])
    return make_task(reference, variant=variant, default_member=0)


def start_values(
    task: Task, steered: Sequence[str], start: Mapping[str, float], scale: float | None
) -> tuple[tuple[Hyperparameter, ...], dict[str, float]]:
    """Return the steered hyperparameters at their starts, and the values of those held elsewhere.

    Args:
        task: What is run.
        steered: Names of the hyperparameters to steer.
        start: Start by name; one that is not steered is held at its value.
        scale: Factor between the task's tuned learning rate (else its default) and the start.

    Raises:
        SpecError: A start is not allowed, or the scale contradicts it.
        UnknownNameError: The task has no such hyperparameter.
    """
    offered = {item.name: item for item in task.hyperparameters}
    for name in start:
        if name not in offered:
            raise unknown_name("hyperparameter", name, offered)
    values = dict(start)
    if scale is not None:
        values["lr"] = _scaled_start(task, offered, start, scale)
    chosen = resolve_hyperparameters(steered, offered)
    begun = {name: offered[name].starting_at(value) for name, value in values.items()}
    held = {
        name: item.default
        for name, item in begun.items()
        if name not in {one.name for one in chosen}
    }
    return tuple(begun.get(item.name, item) for item in chosen), held


def _scaled_start(
    task: Task, offered: Mapping[str, Hyperparameter], start: Mapping[str, float], scale: float
) -> float:
    if "lr" in start:
        raise SpecError("--start-scale and --start lr= both set the learning rate; give one")
    if "lr" not in offered:
        raise SpecError(f"--start-scale: task {task.name} has no lr to scale; use --start")
    if not (math.isfinite(scale) and scale > 0):
        raise SpecError(f"--start-scale: {scale!r} is not a positive number; 0.01 is 100 too small")
    tuned = getattr(task, "tuned_lr", None)
    return scale * float(offered["lr"].default if tuned is None else tuned)


def one_thread() -> None:
    """Let numerical libraries loaded from now on use one thread, unless the user said otherwise.

    Two PyTorch threads beside another busy process were measured 10 to 60 times slower than one.
    """
    for variable in (
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "TF_NUM_INTRAOP_THREADS",
        "TF_NUM_INTEROP_THREADS",
    ):
        os.environ.setdefault(variable, "1")
