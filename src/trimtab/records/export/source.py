"""Plain data as Python source: a template's fixed text around literals that name nothing.

What users chose (names of tasks, policies, hyperparameters) reaches a source only through
`ascii`, so that no name can end a text, begin a line or hide characters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).with_name("templates")
_WIDTH = 96


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


def fill_template(name: str, replay: str, constants: Mapping[str, str]) -> str:
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
