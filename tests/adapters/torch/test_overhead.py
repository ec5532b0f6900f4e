"""The example of a steered loop is short and learns; the benchmark of its cost tells apart."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import overhead, overhead_clock

EXAMPLE = Path(__file__).parents[3] / "examples" / "torch_loop.py"
ROW = {
    "name",
    "variant",
    "adapter",
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


@pytest.mark.framework
@pytest.mark.parametrize("name", ["keras/credit", "trainer:text/newsgroups"])
def test_the_benchmark_measures_inside_trainers(name):
    program = [sys.executable, "-m", "benchmarks.overhead", "--json", "--policy", "random"]
    done = subprocess.run(
        [*program, "--variant", "tiny", "--tasks", name],
        cwd=Path(__file__).parents[3],
        env=os.environ | {"JAX_NUMPY_RANK_PROMOTION": "allow", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    if "is not installed" in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])
    assert done.returncode == 0, done.stderr[-2000:]

    (row,) = json.loads(done.stdout)["rows"]
    assert set(row) == ROW
    assert row["name"] == name
    usual = row["ordinary_step_us"]  # None if each step is one of a window's last two
    assert usual is None or 0 < usual < 1e3 * row["decision_ms"]
    assert row["validation_share"] > 0


def test_the_mean_over_steps_is_made_of_each_kinds_median():
    seconds = [1.0, 1.0, 2.0, 9.0, 1.0, 50.0, 2.0, 11.0]

    mean, ordinary, last = overhead_clock.usual_mean(seconds, [4, 8])

    assert (ordinary, last) == (1.0, 10.0)
    assert mean == (4 * 1.0 + 2 * 2.0 + 2 * 10.0) / 8
