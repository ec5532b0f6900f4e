"""The example of a steered loop is short and learns; the benchmark of its cost tells apart."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from benchmarks import overhead

EXAMPLE = Path(__file__).parents[2] / "examples" / "torch_loop.py"
ROW = {
    "name",
    "steps",
    "ms_per_step",
    "steering_us_per_step",
    "share",
    "ordinary_step_us",
    "decision_ms",
    "paired_us_per_step",
    "snapshot_share",
    "validation_share",
    "within_limits",
}


@pytest.mark.filterwarnings("ignore:policy 'trimtab-1' is not in this installation")
def test_the_example_is_short_and_its_run_is_steered_to_the_end(capsys):
    ran = runpy.run_path(str(EXAMPLE))

    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) < 40
    assert ran["summary"].finished
    assert len(ran["summary"].decisions) == 20
    assert ran["validate"]()["loss"] == ran["summary"].best["loss"]
    assert "best: loss" in capsys.readouterr().out


def test_the_benchmark_gives_one_row_a_task(capsys, monkeypatch):
    tiny = {"tiny": lambda: overhead.perceptron([4, 8, 2], 8, 60)}
    monkeypatch.setattr(overhead, "LOOPS", tiny)
    monkeypatch.setattr(overhead.torch, "set_num_threads", lambda _: None)
    assert overhead.main(["--json", "--tasks", "tiny", "--policy", "random"]) == 0

    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert set(row) == ROW
    assert row["name"] == "tiny"
    assert 0 < row["steering_us_per_step"] < 1e3 * row["ms_per_step"] * 10


def test_what_the_clock_adds_is_small_and_known():
    assert 0 < overhead.instrument_seconds(200) < 1e-3


def test_the_mean_over_steps_is_made_of_each_kinds_median():
    seconds = [1.0, 1.0, 2.0, 9.0, 1.0, 50.0, 2.0, 11.0]

    mean, ordinary, last = overhead.usual_mean(seconds, [4, 8])

    assert (ordinary, last) == (1.0, 10.0)
    assert mean == (4 * 1.0 + 2 * 2.0 + 2 * 10.0) / 8
