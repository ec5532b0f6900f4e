"""The command behind a figure, as a page shows it: without paths of the machine it ran on."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import PurePath, PurePosixPath, PureWindowsPath

__all__ = ["called", "shown_command"]

# An option with its value in one word, and the beginning of a database's URL, stay as they are.
_PARTS = re.compile(r"(--[\w-]+=)?([\w+]+:///)?(.*)", re.DOTALL)


def shown_command(words: Sequence[str]) -> str:
    """Return a command line in which each absolute path is shortened to its last part.

    Args:
        words: The program and its arguments, not quoted.

    >>> shown_command(["/home/me/.venv/bin/trimtab", "compare", "t", "--out", "/home/me/o 1"])
    "trimtab compare t --out 'o 1'"
    """
    begun, rest = [_shortened(word) for word in words[:1]], words[1:]
    if begun == ["__main__.py"]:
        begun = ["python", "-m", PurePath(words[0]).parent.name]
    return shlex.join([*begun, *(_shortened(word) for word in rest)])


def called(module: str, arguments: Sequence[str] | None) -> str:
    """Return how a module of the benchmarks was called.

    Args:
        module: Its full name.
        arguments: What its ``main`` was given; None: those of this process.
    """
    given = sys.argv[1:] if arguments is None else arguments
    return shown_command(["python", "-m", module, *given])


def _shortened(word: str) -> str:
    found = _PARTS.fullmatch(word)
    option, scheme, value = found.groups(default="") if found else ("", "", word)
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(value).is_absolute():
            return f"{option}{scheme}{kind(value).name or value}"
    return word
