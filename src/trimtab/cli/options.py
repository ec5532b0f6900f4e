"""The options that several commands take, and how what was typed is read."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from trimtab.core.errors import SpecError, unknown_name
from trimtab.core.hyperparameters import Hyperparameter, resolve_hyperparameters
from trimtab.core.protocols import Task
from trimtab.core.registry import make_task

DEFAULT_STORE = "sqlite:///trimtab.db"
DEFAULT_POLICY = "trimtab-1"
HIGHEST_SEED = 2**31 - 1  # what every library of the tasks takes

TaskName = Annotated[
    str, typer.Argument(help="A task's name (trimtab tasks), module:factory or file.py:factory.")
]
StudyName = Annotated[str, typer.Argument(help="Name of a study (trimtab studies).")]
Variant = Annotated[str | None, typer.Option(help="Size of the task: tiny, small or default.")]
Policy = Annotated[str, typer.Option(help="A policy's name, or a policy file.")]
Steered = Annotated[str, typer.Option(help="What is steered, separated by commas.")]
Start = Annotated[
    list[str] | None,
    typer.Option(help="Start values, such as lr=1e-5, by commas; may be repeated."),
]
_SCALE = typer.Option(help="Start at this factor times the task's tuned learning rate.")
StartScale = Annotated[float | None, _SCALE]
GivenStartScale = Annotated[float, _SCALE]
Seed = Annotated[
    int, typer.Option(help="First or only seed; all that is drawn at random follows from it.")
]
LrRange = Annotated[
    str | None,
    typer.Option(help="Learning rates that it stays between, such as 1e-5..1e-3."),
]
Store = Annotated[
    str,
    typer.Option(
        help="Database URL or SQLite file of the record; none keeps no record.",
        envvar="TRIMTAB_STORE",
    ),
]
StudyStore = Annotated[
    str, typer.Option(help="Database URL or SQLite file of the studies.", envvar="TRIMTAB_STORE")
]
AsJson = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print one JSON document on standard output; progress goes to standard error.",
    ),
]


def folder_option(words: str) -> Any:
    """Return an option that takes a folder.

    Args:
        words: Its help.
    """
    return typer.Option(help=words, parser=folder, metavar="<path>")


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


def names(text: str) -> list[str]:
    """Return the names in a comma-separated list.

    >>> names("lr, weight_decay")
    ['lr', 'weight_decay']
    """
    return [part.strip() for part in text.split(",") if part.strip()]


def store_or_none(store: str) -> str | None:
    """Return the store that was asked for; None for the word none."""
    return None if store.strip().lower() == "none" else store


def required_store(store: str, words: str) -> str:
    """Return the store that was asked for, where one is needed.

    Args:
        store: As it was typed.
        words: Why the word none will not do, and what to do.

    Raises:
        SpecError: It is the word none.
    """
    if store_or_none(store) is None:
        raise SpecError(f"--store: {words}")
    return store


def store_again(store: str | None) -> str:
    """Return what has to be typed after another command to name the same store."""
    return "" if store in (None, DEFAULT_STORE) else f" --store {store}"


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
        raise SpecError(
            f"--start-scale: {scale!r} is not a positive number; 0.01 starts 100 times too low"
        )
    tuned = getattr(task, "tuned_lr", None)
    return scale * float(offered["lr"].default if tuned is None else tuned)


def require_seed(seed: int, count: int = 1) -> None:
    """Refuse a seed that some library does not take.

    Args:
        seed: The first one, as it was typed.
        count: How many are counted on from it.

    Raises:
        SpecError: It is such a one, or a later one is.
    """
    if seed < 0:
        raise SpecError(f"--seed: {seed} is below 0; give a whole number from 0")
    last = seed + count - 1
    if last > HIGHEST_SEED:
        which = "" if last == seed else f", the last of {count} from {seed},"
        raise SpecError(f"--seed: {last}{which} is above {HIGHEST_SEED}; give a lower one")


def renamed(old: str, given: str | None, new: str, value: str | None) -> str | None:
    """Return what was typed for an option that has a new name, and say so if the old one was used.

    Raises:
        SpecError: Both were.
    """
    if given is None:
        return value
    if value is not None:
        raise SpecError(f"{old} and {new} are one option; give {new} alone")
    typer.echo(f"trimtab: warning: {old} is now called {new}; it means the same", err=True)
    return given


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


def rates_between(text: str | None) -> tuple[float, float] | None:
    """Return the two learning rates in ``LOW..HIGH``.

    Raises:
        SpecError: The text does not read so.
    """
    from trimtab.core.ranges import checked_range

    if text is None:
        return None
    low, _, high = text.partition("..")
    try:
        return checked_range((float(low), float(high)))
    except (ValueError, SpecError) as error:
        raise SpecError(
            f"--lr-range: {text!r} is not two learning rates above 0, the lower one first; write "
            "such as 1e-5..1e-3"
        ) from error
