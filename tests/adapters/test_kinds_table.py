"""The table of kinds in the documentation says what each framework really does.

``pytest -m framework tests/adapters/test_kinds_table.py --update-golden`` writes it anew.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trimtab.core.hyperparameters import KINDS

pytestmark = pytest.mark.framework

PROGRAM = Path(__file__).with_name("kinds_checks.py")
PAGE = Path(__file__).parents[2] / "docs" / "kinds.md"
BEGIN, END = "<!-- table: tests/adapters/test_kinds_table.py -->\n", "\n<!-- end of table -->"
COLUMNS = {
    "torch": "PyTorch loop",
    "transformers": "Transformers",
    "lightning": "Lightning",
    "keras-tensorflow": "Keras on TensorFlow",
    "keras-jax": "Keras on JAX",
    "keras-torch": "Keras on PyTorch",
}
WORDS = {"yes": "yes", "object": "by object", "refused": "–"}
Table = dict[str, dict[str, str]]  # kind -> framework -> cell


def split_page(text: str) -> tuple[str, str, str]:
    before, _, rest = text.partition(BEGIN)
    inside, _, after = rest.partition(END)
    assert rest, f"{PAGE.name} has no line {BEGIN.strip()!r}"
    return before, inside, after


def read_table(inside: str) -> Table:
    table: Table = {kind: dict.fromkeys(COLUMNS, "?") for kind in KINDS}
    for line in inside.splitlines()[2:]:
        kind, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        table[kind.strip("`")] = dict(zip(COLUMNS, cells, strict=True))
    return table


def written(table: Table) -> str:
    lines = [f"| kind | {' | '.join(COLUMNS.values())} |", "|---" * (len(COLUMNS) + 1) + "|"]
    lines += [f"| `{kind}` | {' | '.join(row.values())} |" for kind, row in table.items()]
    return "\n".join(lines)


def outcomes(framework: str) -> dict[str, tuple[str, str]]:
    settings = {"TF_NUM_INTRAOP_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, str(PROGRAM), framework],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, tuple[str, str]] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


@pytest.mark.parametrize("framework", COLUMNS)
def test_the_table_says_what_the_framework_does(
    framework: str, request: pytest.FixtureRequest
) -> None:
    for package in framework.split("-"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    found = outcomes(framework)
    ignored = [kind for kind, (outcome, _) in found.items() if outcome == "ignored"]
    assert not ignored, f"{framework} ignores {ignored}, and nobody is told"

    before, inside, after = split_page(PAGE.read_text(encoding="utf-8"))
    table = read_table(inside)
    for kind in KINDS:
        table[kind][framework] = WORDS[found[kind][0]]
    if request.config.getoption("--update-golden"):
        PAGE.write_text(before + BEGIN + written(table) + END + after, encoding="utf-8")
    assert written(table) == split_page(PAGE.read_text(encoding="utf-8"))[1]


def test_every_refusal_says_what_can_be_steered_instead() -> None:
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    from trimtab.adapters.torch.actuators import find_actuators
    from trimtab.core.errors import TrimtabError

    with pytest.raises(TrimtabError, match=r"choose from .*weight_decay"):
        find_actuators(("other",), optimizer=None, model=None, learning_rate=1e-3)  # type: ignore[arg-type]
