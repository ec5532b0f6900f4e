"""The workflows can do what they say: actions pinned by commit, steps that are make targets."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PINNED = re.compile(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")


def values(text: str, key: str) -> list[str]:
    """Return what stands after a key, wherever it stands."""
    return re.findall(rf"^\s*(?:- )?{key}: (.+)$", text, re.MULTILINE)


@pytest.mark.parametrize("file", WORKFLOWS, ids=[file.stem for file in WORKFLOWS])
def test_every_action_is_pinned_by_its_commit(file: Path) -> None:
    used = values(file.read_text(encoding="utf-8"), "uses")
    assert used
    assert [action for action in used if not PINNED.fullmatch(action)] == []


@pytest.mark.parametrize("file", WORKFLOWS, ids=[file.stem for file in WORKFLOWS])
def test_every_step_is_a_target_of_the_makefile(file: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    commands = " && ".join(values(file.read_text(encoding="utf-8"), "run")).split(" && ")
    targets = [command.split()[1] for command in commands if command.startswith("make ")]
    assert targets
    for target in targets:
        pattern = re.sub(r"\$\{\{$", "%", target)  # a framework of the matrix
        assert re.search(rf"^{pattern}:", makefile, re.MULTILINE), f"make {target} does not exist"
