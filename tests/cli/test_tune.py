"""The commands of studies: their JSON, exit codes and messages."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(folder: Path, trimtab: Call) -> Call:
    """Run a command line in a folder of its own."""
    return trimtab


TUNE = ("tune", "simulated/quadratic", "--variant", "tiny", "--policy", "trimtab-0")


def test_a_study_is_made_listed_continued_and_collected(call: Call, tmp_path: Path) -> None:
    status, out, err = call(*TUNE, "--budget", "2", "--study", "s", "--json")
    assert (status, err.count("whole runs, best")) == (0, 2)
    first = json.loads(out)
    assert set(first) == {"study", "best", "runs", "spent", "pareto"}
    assert set(first["best"]) == {"choices", "validation", "test", "schedule"}
    assert [row["place"] for row in first["runs"]] == [0, 1]

    status, out, err = call("resume", "s", "--json")
    assert (status, json.loads(out), err) == (0, first, "")
    status, out, _ = call(*TUNE, "--budget", "2", "--study", "s", "--json")
    assert (status, json.loads(out)) == (0, first)

    status, out, _ = call("studies", "--json")
    (row,) = json.loads(out)
    assert (row["study"], row["status"], row["budget"], row["done"]) == ("s", "finished", 2.0, 2)
    assert "finished" in call("studies")[1]

    would = json.loads(call("gc", "s", "--dry-run", "--json")[1])
    files = would["studies"][0]["files"]
    assert would["dry_run"] is True
    assert files
    assert all(Path(file).exists() for file in files)
    assert "Removed" in call("gc")[1]
    assert not any(Path(file).exists() for file in files)
    assert len(list((tmp_path / "trimtab.db.snapshots").rglob("final-*"))) == 1


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("resume", "s"), 1, "there is no store at trimtab.db"),
        (("studies",), 1, "there is no store at trimtab.db"),
        (("gc",), 1, "there is no store at trimtab.db"),
        ((*TUNE, "--budget", "0"), 2, "budget: 0.0 is not a number from 1"),
        ((*TUNE, "--jobs", "0"), 2, "jobs: 0 is not a whole number from 1"),
        ((*TUNE, "--engine", "slurm"), 2, "unknown engine 'slurm'"),
        ((*TUNE, "--method", "randum"), 2, "unknown method 'randum'; did you mean 'random'"),
        ((*TUNE, "--method", "cosine"), 2, "a budget of 4 whole runs is not in 1..1"),
        ((*TUNE, "--study", "../up"), 2, "study '../up': a name has 1 to 100"),
        ((*TUNE, "--store", "none"), 2, "a study needs a store"),
        ((*TUNE, "--stop-when-gain-below", "-1"), 2, "stop_when_gain_below: -1.0 is not a number"),
        ((*TUNE, "--vary", "sheep"), 2, "unknown hyperparameter or choice 'sheep'"),
        ((*TUNE, "--method", "random", "--vary", "momentum"), 2, "by the method trimtab only"),
        ((*TUNE, "--gpus", "-1"), 2, "gpus: -1.0 is below 0"),
        ((*TUNE, "--start", "lr=3,lr=4"), 2, "lr is given twice"),
        ((*TUNE, "--start", "sheep=3"), 2, "unknown hyperparameter 'sheep'"),
        ((*TUNE, "--address", "auto"), 2, "'auto' is for the Ray engine"),
        (("tune", "simulated/kwadratic"), 2, "unknown task 'simulated/kwadratic'"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    call: Call, words: tuple[str, ...], status: int, message: str
) -> None:
    found, out, err = call(*words)
    assert (found, out) == (status, ""), err
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert call("studies")[0] == 1 or call("studies", "--json")[1].strip() == "[]"  # none was made


@pytest.mark.filterwarnings("default")
def test_an_objective_that_no_run_has_is_told(call: Call) -> None:
    status, out, err = call(*TUNE, "--budget", "1", "--objectives", "loss,speed", "--json")
    assert (status, json.loads(out)["pareto"]) == (0, [])
    assert "no run has 'speed', so there is no Pareto set (have: examples, loss" in err


@pytest.mark.parametrize(
    ("method", "count", "most"), [("trimtab", 40, "a step"), ("random", 10, "in 4 steps")]
)
def test_fewer_decisions_than_were_asked_for_are_told_once(
    call: Call, method: str, count: int, most: str
) -> None:
    asked = (*TUNE, "--budget", "1", "--method", method)
    _, _, error = call(*asked, "--decisions", "100000")
    told = f"has {count}, since its 40 steps allow one {most}"
    assert error.splitlines()[0] == f"--decisions 100000: simulated/quadratic {told}"
    assert error.count("--decisions") == 1


def test_an_unknown_study_is_named(call: Call) -> None:
    call(*TUNE, "--budget", "1", "--study", "sweep")
    status, _, err = call("resume", "sweeep")
    assert status == 2
    assert "unknown study 'sweeep'; did you mean 'sweep'" in err


def test_an_interruption_says_how_to_go_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "trimtab", *TUNE, "--budget", "200", "--study", "long"]
    command += ["--store", str(tmp_path / "runs.db")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stderr is not None
    process.stderr.readline()  # the first unit is over
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"trimtab resume long --store {tmp_path / 'runs.db'} goes on" in err
    time.sleep(0.1)
    again = [sys.executable, "-m", "trimtab", "studies", "--json"]
    again += ["--store", str(tmp_path / "runs.db")]
    listed = subprocess.run(again, capture_output=True, text=True, check=True, env=os.environ)
    assert json.loads(listed.stdout)[0]["status"] == "interrupted"
