"""The examples for trainers run as they stand, and end where a tuned run would."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.framework
@pytest.mark.parametrize(("name", "chance"), [("transformers", 0.69), ("lightning", 0.69)])
def test_an_example_ends_far_below_chance(tmp_path: Path, name: str, chance: float) -> None:
    pytest.importorskip(name)
    command = [sys.executable, "-W", "ignore", str(EXAMPLES / f"{name}_trainer.py")]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    loss = re.search(r"'loss': ([0-9.e-]+)\}", ended.stdout.splitlines()[-1])
    assert loss is not None
    assert float(loss[1]) < chance / 2
    assert list(tmp_path.iterdir()) == []
