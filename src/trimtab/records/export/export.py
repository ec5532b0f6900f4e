"""A run's schedule as files that replay it without trimtab: JSON, and code for four frameworks.

Code is a template's fixed text around plain data, written as literals that name nothing. What users
chose (names of tasks, policies, hyperparameters) reaches a source only through `ascii`, so that no
name can end a text, begin a line or hide characters.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any

from trimtab.core.errors import SpecError, StoreError, unknown_name
from trimtab.records.array_files import write_whole
from trimtab.records.export.schedule import Replay, replay_of
from trimtab.records.store.rows import RunRecord

EXPORT_FORMAT = "trimtab-schedule-1"

_FOLDER = Path(__file__).with_name("templates")
_WIDTH = 96


@dataclass(frozen=True)
class ExportTarget:
    """What is written for one framework.

    Attributes:
        file: Name of the file.
        places: Kind of hyperparameter -> where the framework keeps it, under its own name.
    """

    file: str
    places: Mapping[str, str]


_GROUPS = {kind: kind for kind in ("lr", "weight_decay", "momentum", "beta1")}

EXPORT_TARGETS: Mapping[str, ExportTarget] = MappingProxyType(
    {
        "json": ExportTarget("schedule.json", {}),
        "torch": ExportTarget("schedule_torch.py", _GROUPS),
        "keras": ExportTarget("schedule_keras.py", {**_GROUPS, "beta1": "beta_1"}),
        "transformers": ExportTarget("schedule_transformers.py", {**_GROUPS, "clip": "clip"}),
        "optax": ExportTarget(
            "schedule_optax.py", {**_GROUPS, "lr": "learning_rate", "beta1": "b1"}
        ),
    }
)
"""Name of a target -> what is written for it."""


def export_run(
    record: RunRecord, targets: Iterable[str], folder: Path, *, all_steps: bool = False
) -> dict[str, Path]:
    """Write a run's schedule for each target and return target -> file.

    Args:
        record: The run.
        targets: Names in `EXPORT_TARGETS`.
        folder: Where the files go; made if it is missing, files of the same name are replaced.
        all_steps: Keep the steps that rollbacks undid as well.

    Raises:
        UnknownNameError: A target has no such name.
        SpecError: No target is asked for, or the folder cannot be written.
        StoreError: The record holds no schedule that could be replayed.
    """
    wanted = list(dict.fromkeys(targets))
    for name in wanted:
        if name not in EXPORT_TARGETS:
            raise unknown_name("export", name, EXPORT_TARGETS)
    if not wanted:
        raise SpecError(f"--to: nothing is asked for; name some of {', '.join(EXPORT_TARGETS)}")
    replay = replay_of(record, all_steps=all_steps)
    texts = {name: export_text(replay, name) for name in wanted}
    paths: dict[str, Path] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            paths[name] = folder / EXPORT_TARGETS[name].file
            write_whole(paths[name], text.encode())
    except OSError as error:
        raise SpecError(
            f"{folder}: the export cannot be written ({error.strerror or error}); "
            "choose a folder that can be with --out"
        ) from error
    return paths


def export_text(replay: Replay, target: str) -> str:
    """Return the content of one target's file.

    Raises:
        StoreError: The record's head holds something that is no plain data.
    """
    try:
        if target == "json":
            return _json(replay)
        # Lists of numbers first become text, so that each is as short as it can be.
        constants = {
            "ABOUT": literal({**replay.about, **_facts(replay)}),
            "KINDS": literal(dict(replay.kinds)),
            "PLACES": literal(_places(replay, EXPORT_TARGETS[target])),
            "N_STEPS": literal(len(replay.steps)),
            "VALUES": _table(replay),
        }
    except (TypeError, ValueError) as error:
        raise StoreError(f"the run's record cannot be exported: {error}") from error
    return _fill_template(target, _sentences(replay), constants)


def _json(replay: Replay) -> str:
    document = {
        "format": EXPORT_FORMAT,
        "about": dict(replay.about),
        "hyperparameters": [{"name": n, "kind": kind} for n, kind in replay.kinds.items()],
        "n_steps": len(replay.steps),
        **_facts(replay),
        "values": dict(replay.values),
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def _facts(replay: Replay) -> dict[str, object]:
    return {
        "replays": "all steps" if replay.all_steps else "surviving steps",
        "lost": [list(stretch) for stretch in replay.lost],
        "best_after": replay.best_after,
        "rebuilt": replay.rebuilt,
    }


def _table(replay: Replay) -> str:
    lines = [
        f"    {literal(name)}: {number_list(column, indent=4)},\n"
        for name, column in replay.values.items()
    ]
    return "{\n" + "".join(lines) + "}"


def _places(replay: Replay, target: ExportTarget) -> dict[str, str]:
    """Return place -> name of the hyperparameter that belongs there.

    Of two hyperparameters of one kind the one that is called like the kind is taken; if none is,
    neither, for nothing tells them apart.
    """
    found: dict[str, str] = {}
    for kind, place in target.places.items():
        names = [name for name, its_kind in replay.kinds.items() if its_kind == kind]
        chosen = kind if kind in names else names[0] if len(names) == 1 else None
        if chosen is not None:
            found[place] = chosen
    return found


def _sentences(replay: Replay) -> str:
    """Return what replaying means for this run; numbers and words of ours, nobody's names."""
    n_steps = len(replay.steps)
    n_lost = sum(last - first + 1 for first, last in replay.lost)
    lines = ["Written by trimtab, and used without it; ABOUT says of which run."]
    if not n_lost:
        lines.append(f"These are all {n_steps} steps of the run.")
    elif replay.all_steps:
        lines.append(
            f"These are all {n_steps} steps of the run, {n_lost} of which going back undid (lost "
            "in ABOUT,\ncounted from 0). Nothing rolls back here: where the run diverged, a replay "
            "may diverge too."
        )
    else:
        lines.append(
            f"The run went back to an earlier state {len(replay.lost)} times, which undid "
            f"{n_lost} steps (lost in ABOUT,\ncounted from 0). They are left out: these are the "
            f"{n_steps} steps that led to its last weights."
        )
    if replay.best_after is not None:
        lines.append(f"Validation was best after {replay.best_after} of these steps.")
    if replay.rebuilt:
        lines.append(
            "The run was killed; the values are worked out from its decisions, up to the last one."
        )
    lines.append("The data's order and random state are not replayed, only the values.")
    return "\n".join(lines)


# Source.


def literal(value: Any, indent: int = 0) -> str:
    """Return a Python expression of plain data; mappings take one line an item.

    Args:
        value: None, booleans, finite numbers, texts, and lists and mappings of them.
        indent: Columns by which the lines after the first are moved in.

    Raises:
        TypeError: Something else is in it.
        ValueError: A number is not finite.

    >>> print(literal({"task": "a'b", "seed": 0}))
    {
        "task": "a'b",
        "seed": 0,
    }
    """
    if value is None or isinstance(value, bool):
        return repr(value)
    if isinstance(value, int | float):
        if not math.isfinite(value):
            raise ValueError(f"{value!r} is not finite and has no literal")
        return repr(float(value) if isinstance(value, float) else int(value))
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, Mapping):
        margin = " " * (indent + 4)
        lines = [
            f"{margin}{literal(str(key))}: {literal(item, indent + 4)},\n"
            for key, item in value.items()
        ]
        return "{\n" + "".join(lines) + " " * indent + "}" if lines else "{}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(literal(item, indent + 4) for item in value) + "]"
    raise TypeError(f"{type(value).__name__} has no literal")


def _quoted(text: str) -> str:
    """Return the literal of a text as formatters write it, ASCII only."""
    written = ascii(text)
    if written[0] == "'" and '"' not in text:
        return f'"{written[1:-1]}"'
    return written


def number_list(values: Sequence[float], indent: int = 0) -> str:
    """Return an expression of a list of float64, exact; equal neighbours are counted if shorter.

    >>> print(number_list([0.1, 0.1, 0.1, 0.1, 0.2]))
    [
        *[0.1] * 4,
        *[0.2] * 1,
    ]
    """
    runs = [(text, len(list(group))) for text, group in groupby(repr(float(v)) for v in values)]
    margin = " " * (indent + 4)
    if 2 * len(runs) < len(values):
        lines = [f"*[{text}] * {count}," for text, count in runs]
    else:
        lines = _wrapped([f"{value!r}," for value in map(float, values)], _WIDTH - indent)
    return "[\n" + "".join(f"{margin}{line}\n" for line in lines) + " " * indent + "]"


def _wrapped(words: Sequence[str], width: int) -> list[str]:
    lines: list[str] = []
    line = ""
    for word in words:
        if line and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}" if line else word
    return [*lines, line] if line else lines


def _fill_template(name: str, replay: str, constants: Mapping[str, str]) -> str:
    """Return the source of one export.

    Args:
        name: Of the file in ``templates``, without its ending.
        replay: Sentences of ours for its docstring; never a text that somebody else chose.
        constants: Name in the source -> expression, from `literal` and `number_list`.
    """
    text = (_FOLDER / f"{name}.txt").read_text(encoding="utf-8")
    head, _, body = text.partition("@@CONSTANTS@@\n")
    shared = (_FOLDER / "values.txt").read_text(encoding="utf-8")
    lines = [f"{key} = {expression}\n" for key, expression in constants.items()]
    return "".join([head.replace("@@REPLAY@@", replay), *lines, shared, body])
