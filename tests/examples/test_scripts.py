"""Each script can be pasted: it is short, brings its own data, and runs as it stands."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
TO_PASTE = (
    "keras_fit.py",
    "lightning_trainer.py",
    "own_task.py",
    "torch_loop.py",
    "transformers_trainer.py",
)


def output(folder: Path, script: str, *arguments: str) -> str:
    command = [sys.executable, "-W", "ignore", str(EXAMPLES / script), *arguments]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert list(folder.iterdir()) == []  # nothing is left behind
    return ended.stdout


@pytest.mark.parametrize("script", TO_PASTE)
def test_a_script_to_paste_has_fewer_than_forty_lines_and_stands_alone(script: str) -> None:
    text = (EXAMPLES / script).read_text(encoding="utf-8")
    imported = {
        (node.module or "") if isinstance(node, ast.ImportFrom) else node.names[0].name
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }

    assert len(text.splitlines()) < 40
    assert not any(name.startswith(("tests", "examples", "benchmarks")) for name in imported)


def test_the_torch_loop_ends_far_below_chance(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    found = re.search(r"best: loss ([0-9.]+), accuracy", output(tmp_path, "torch_loop.py"))

    assert found is not None
    assert float(found[1]) < 2.30 / 3  # ten digits: 2.30 nats


@pytest.mark.framework
def test_the_keras_fit_ends_far_below_chance(tmp_path: Path) -> None:
    pytest.importorskip("keras")
    pytest.importorskip("tensorflow")
    last = output(tmp_path, "keras_fit.py", "--epochs", "3").splitlines()[-1]
    found = re.search(r"'loss': ([0-9.]+)", last)

    assert found is not None
    assert float(found[1]) < 2.30 / 3
