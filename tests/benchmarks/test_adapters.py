"""The table of what steering is worth through each adapter, from rows made by hand."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks import adapters
from benchmarks.adapters import TASKS, Unit, missing, table


def row(policy: str, seed: int, loss: float, *, factor: float = 0.01) -> dict[str, Any]:
    unit = asdict(Unit("torch", "small", policy, factor, seed))
    return unit | {"test": {"loss": loss, "accuracy": 0.5}, "seconds": 3.0}


def test_runs_are_paired_by_seed() -> None:
    rows = [row("none", 0, 2.0), row("none", 1, 1.0), row("none", 2, 9.0)]
    rows += [row("p", 0, 1.0), row("p", 1, 1.5), row("q", 2, 0.0), row("p", 0, 5.0, factor=100.0)]
    (line,) = table(rows, "p")

    assert (line["adapter"], line["task"], line["factor"]) == ("torch", TASKS["torch"], 0.01)
    assert (line["seeds"], line["wins"]) == (2, 1)
    assert (line["unsteered"], line["steered"], line["difference"]) == (1.5, 1.25, -0.25)
    assert line["standard_error"] == pytest.approx(0.75)


def test_a_ruined_run_counts_as_infinitely_bad() -> None:
    (line,) = table([row("none", 0, math.nan), row("p", 0, 1.0)], "p")

    assert line["unsteered"] == math.inf
    assert (line["wins"], line["standard_error"]) == (1, None)


def test_what_was_made_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    units = [Unit("torch", "small", name, 0.01, 0) for name in ("none", "p")]
    assert missing(units, [row("none", 0, 1.0)]) == units[1:]

    made: list[Unit] = []
    monkeypatch.setattr(adapters, "_make", lambda wanted, jobs, out: made.extend(wanted) or [])
    kept = tmp_path / "kept.jsonl"
    kept.write_text(json.dumps(row("none", 0, 2.0)) + "\n" + json.dumps(row("p", 0, 1.0)) + '\n{"a')
    out = tmp_path / "table.md"
    options = ["--policy", "p", "--seeds", "1", "--adapters", "torch", "--factors", "0.01,100"]
    assert adapters.main([*options, "--out", str(kept), "--table", str(out)]) == 0

    assert [(unit.factor, unit.policy) for unit in made] == [(100.0, "none"), (100.0, "p")]
    assert "| torch | tabular/letters | x0.01 | 2.000 (0.500) | 1.000 (0.500) |" in out.read_text()
    assert "-1.000" in capsys.readouterr().out


def test_an_unknown_adapter_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        adapters.main(["--adapters", "torch,mxnet"])
    assert caught.value.code == 2
    assert "unknown mxnet (have: torch," in capsys.readouterr().err
