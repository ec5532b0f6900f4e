"""Warnings stand at the line of the user's own code, however deep in the package they begin."""

from __future__ import annotations

from pathlib import Path

import pytest

import trimtab
from trimtab.core.notices import tell

PACKAGE = Path(trimtab.__file__).parent


@pytest.mark.parametrize(
    ("place", "is_ours"),
    [
        ("search/study/deeper.py", True),
        ("shallow.py", True),
        ("../trimtab_of_a_user/loop.py", False),
    ],
)
def test_a_warning_is_told_at_the_first_line_outside_the_package(place: str, is_ours: bool) -> None:
    here: dict[str, object] = {"tell": tell}
    where = str((PACKAGE / place).resolve())
    exec(compile("def call():\n    tell('look')", where, "exec"), here)
    with pytest.warns(match="look") as told:
        here["call"]()  # type: ignore[operator]
    assert told[0].filename == (__file__ if is_ours else where)
