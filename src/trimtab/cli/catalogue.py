"""What tasks of trimtab say of themselves, without loading a framework: read from a file.

``tests/cli/test_catalogue.py`` writes ``catalogue.json`` from the tasks, and holds it to them.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from importlib import resources
from importlib.util import find_spec
from typing import Any

from trimtab.core.registry import place_of


def rows_by_variant(name: str) -> Mapping[str, dict[str, Any]] | None:
    """Return what a task says of itself, by variant, the usual one as an empty string.

    None for a task that is not in the file, that another package registers under its name, or that
    lacks a package here: it has to speak for itself.
    """
    entry = _catalogue().get(name)
    if entry is None or place_of("task", name) != entry["place"]:
        return None
    if any(find_spec(module) is None for module in entry["modules"]):
        return None
    rows: Mapping[str, dict[str, Any]] = entry["rows"]
    return rows


@functools.cache
def _catalogue() -> dict[str, dict[str, Any]]:
    file = resources.files("trimtab.cli").joinpath("catalogue.json")
    read: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    return read
