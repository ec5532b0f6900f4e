"""The notebook runs from the first cell to the last, and shows what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "first_run.ipynb"
LARGEST = 200_000  # bytes, outputs included


@pytest.fixture
def cells() -> list[dict[str, Any]]:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_stays_small_and_carries_no_outputs(cells):
    assert NOTEBOOK.stat().st_size < LARGEST
    assert all(cell["outputs"] == [] for cell in cells)


def test_every_cell_runs_and_the_steered_run_ends_lower(cells, capsys):
    altair = pytest.importorskip("altair")
    pytest.importorskip("sklearn")
    sources = ["".join(cell["source"]) for cell in cells]
    assert "steps = 400" in sources[0]
    sources[0] = sources[0].replace("steps = 400", "steps = 120")
    space: dict[str, Any] = {}
    renderer = altair.renderers.active
    try:
        for source, cell in zip(sources, cells, strict=True):
            exec(compile(source, cell["id"], "exec"), space)
    finally:
        altair.renderers.enable(renderer)

    assert space["steered_test"]["loss"] < space["alone_test"]["loss"]
    assert len(space["steered"].decisions) == 20
    assert "rollbacks:" in capsys.readouterr().out
    chart = space["lines"](space["losses"], "validation loss").to_dict()
    assert {row["run"] for row in chart["data"]["values"]} == {"left alone", "steered"}
