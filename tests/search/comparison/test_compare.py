"""A comparison: its rows are single runs, it survives being killed, it refuses the impossible."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import trimtab

pq = pytest.importorskip("pyarrow.parquet")

TIMEOUT = 120
ASKED = ("--methods", "trimtab,reference,race,random:4", "--seeds", "2", "--pool", "8")


def compare(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(cwd)}
    return subprocess.Popen(
        [sys.executable, "-m", "trimtab", "compare", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=environment,
    )


def finished(*arguments: str, cwd: Path) -> str:
    process = compare(*arguments, cwd=cwd)
    out, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, err
    return out


def table(folder: Path) -> list[dict[str, object]]:
    columns = pq.read_table(folder / "comparison.parquet").drop_columns(["seconds"])
    return list(columns.to_pylist())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    """One comparison that nobody disturbed; its folder and its JSON."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "tiny.py").write_text(
        (Path(__file__).parents[2] / "tiny_task.py").read_text(encoding="utf-8")
    )
    out = finished("tiny:make", *ASKED, "--jobs", "2", "--out", "o", "--json", cwd=folder)
    return folder, json.loads(out)


def test_the_json_has_a_sorted_row_for_each_method_and_seed(whole):
    _, document = whole
    rows = document["rows"]
    keys = ["task", "method", "budget", "seed", "start_scale", "validation", "test", "spent"]
    assert all(list(row) == keys for row in rows)
    assert [(row["method"], row["budget"], row["seed"]) for row in rows] == [
        (method, budget, seed)
        for method, budget in (("race", 1), ("random", 4), ("reference", 1), ("trimtab", 1))
        for seed in (0, 1)
    ]
    of = {(row["method"], row["seed"]): row for row in rows}
    assert of["random", 0]["start_scale"] is None
    assert 0.01 <= of["race", 0]["start_scale"] <= 100
    assert of["race", 0]["start_scale"] == of["trimtab", 0]["start_scale"]
    assert of["random", 0]["spent"] <= 4 + 1e-9
    assert document["figures"]["regret"].keys() == {"race", "random:4", "reference", "trimtab"}


def test_rows_behind_random_are_single_runs_made_by_hand(whole):
    folder, _ = whole
    rows = [r for r in table(folder / "o") if r["row"] == "run" and r["method"] == "random"]
    assert len(rows) == 8
    for row in rows[:4]:
        process = subprocess.run(
            [
                *(sys.executable, "-m", "trimtab", "run", "tiny:make", "--policy", "none"),
                *("--start", f"lr={row['start_lr']!r}", "--seed", str(row["run_seed"])),
                *("--store", "none", "--json"),
            ],
            capture_output=True,
            text=True,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(folder)},
            timeout=TIMEOUT,
            check=True,
        )
        by_hand = json.loads(process.stdout)
        assert by_hand["best"]["loss"] == row["validation"]
        assert by_hand["test"]["loss"] == row["test"]
        assert by_hand["spent"] == row["spent"]
    pool = {r["run_seed"]: r for r in table(folder / "o") if r["row"] == "pool"}
    assert all(pool[row["run_seed"]]["test"] == row["test"] for row in rows)


def test_the_table_is_read_back_as_the_comparison_it_was_written_from(whole):
    from trimtab.search.comparison.figures import comparison_figures
    from trimtab.search.comparison.table import read_parquet, result_rows

    folder, document = whole
    found, about = read_parquet(folder / "o" / "comparison.parquet")
    assert result_rows(found) == document["rows"]
    figures = json.loads(json.dumps(comparison_figures(found)))
    assert figures.items() <= document["figures"].items()
    assert {"code", "task code", "numpy"} <= about.keys()
    told = json.loads((folder / "o" / "about.json").read_text())
    assert told["command"].endswith("--jobs 2 --out o --json")
    assert told["left_out"] == []


def test_the_json_says_what_a_steered_run_costs_and_saves(whole):
    _, document = whole
    cost = document["figures"]["cost"]
    assert cost["steered"]["runs"] == pytest.approx(1.0, abs=0.05)
    assert {row["method"] for row in cost["methods"]} == {"race", "random", "reference"}
    assert cost["training_seconds"] > 60
    assert cost["sentence"].startswith("One steered run costs 1.0")


def test_killed_and_finished_it_gives_the_same_table(whole, tmp_path):
    """Killed five times by kill -9, after random numbers of results; the seed is fixed."""
    folder, _ = whole
    (tmp_path / "tiny.py").write_text((folder / "tiny.py").read_text())
    moments = random.Random(7)
    lines = []
    for _ in range(5):
        process = compare("tiny:make", *ASKED, "--jobs", "2", "--out", "o", cwd=tmp_path)
        path = tmp_path / "o" / "results.jsonl"
        wanted = len(lines) + moments.randint(1, 4)
        deadline = time.monotonic() + TIMEOUT
        while process.poll() is None and time.monotonic() < deadline:
            if path.exists() and path.read_text().count("\n") >= wanted:
                break
            time.sleep(0.002)
        children = _children(process.pid)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL  # it was in the middle, not at its end
        assert _all_gone(children)
        text = path.read_text() if path.exists() else ""
        assert text.splitlines()[: len(lines)] == lines  # nothing is done again
        lines = text[: text.rfind("\n") + 1].splitlines()
    out = finished("tiny:make", *ASKED, "--jobs", "1", "--out", "o", cwd=tmp_path)
    assert "comparison.parquet" in out
    assert table(tmp_path / "o") == table(folder / "o")


def _children(parent: int) -> list[int]:
    listed = Path(f"/proc/{parent}/task/{parent}/children")
    return [int(pid) for pid in listed.read_text().split()] if listed.exists() else []


def _all_gone(processes: list[int]) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        states = [Path(f"/proc/{pid}/stat") for pid in processes]
        if all(not path.exists() or ") Z" in path.read_text() for path in states):
            return True
        time.sleep(0.05)
    return False


def test_more_methods_in_the_same_folder_repeat_nothing(whole):
    folder, document = whole
    process = compare(
        "tiny:make",
        *("--methods", "reference,cosine", "--seeds", "2", "--pool", "8", "--jobs", "1"),
        *("--out", "o", "--json"),
        cwd=folder,
    )
    out, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, err
    assert "kept from before" in err
    done = [line for line in err.splitlines() if " seed " in line]
    assert len(done) == 2
    assert all("cosine" in line for line in done)
    old = [row for row in document["rows"] if row["method"] == "reference"]
    assert [row for row in json.loads(out)["rows"] if row["method"] == "reference"] == old


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tiny:make", "--methods", "prodigy"], "takes no optimizer="),
        (["tiny:make", "--methods", "random:9", "--pool", "8"], "9 is more than the pool's 8"),
        (["tiny:make", "--methods", "open-loop"], "give --start-scale"),
        (["tiny:make", "--start-scale", "0.1,x"], "'x' is not a positive number"),
        (["tiny:make", "--hyperparameters", "lr,dropout"], "no hyperparameter 'dropout'"),
        (["tiny:make", "--hyperparameters", "momentum"], "steer exactly one learning rate"),
        (["tiny:make", "--jobs", "0"], "--jobs: 0 is below 1"),
        (["tiny:make", "--suite", "fast"], "it fixes what TASK says"),
        (["--suite", "fast", "--seeds", "2"], "it fixes what --seeds says"),
        ([], "no task is named"),
        (["tiny:make", "--hyperparameters", ""], "name at least one"),
        (["tiny:make", "--seed", "9" * 23], "from 0 to below 2147483648"),
        (["tiny:make", "--policy", "zero"], "unknown policy 'zero'; (have: trimtab-0"),
        (["tiny:make", "--out", ""], "'' names no folder; name one, or . for the working one"),
        (["tiny:make", "--out", " "], "' ' names no folder"),
        (["--suite", "quick"], "unknown suite 'quick'"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_any_run(folder, capsys, arguments, words):
    from trimtab import cli

    if "prodigy" in arguments:
        pytest.importorskip("prodigyopt")
    with pytest.raises(SystemExit) as ended:
        cli.main(["compare", *arguments])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err
    assert not (folder / "comparison").exists()


def test_fewer_decisions_than_were_asked_for_are_told_once(folder, capsys):
    from trimtab import cli

    asked = ["tiny:make", "--methods", "reference", "--seeds", "1", "--pool", "0", "--jobs", "1"]
    with pytest.raises(SystemExit):
        cli.main(["compare", *asked, "--decisions", "100000"])
    told = capsys.readouterr().err
    reason = "tiny:make has 15, since its 60 steps allow one in 4 steps"
    assert told.splitlines()[0] == f"--decisions 100000: {reason}"
    assert told.count("--decisions") == 1


def test_what_a_pool_without_test_losses_cannot_tell_is_said(folder, capsys):
    from trimtab import cli

    (folder / "untested.py").write_text(
        "from tiny import TinyTask\n\ndef make():\n    return TinyTask(has_test=False)\n"
    )
    asked = ["untested:make", "--methods", "reference", "--seeds", "1", "--pool", "4"]
    with pytest.raises(SystemExit) as ended:
        cli.main(["compare", *asked, "--jobs", "1"])
    told = capsys.readouterr()
    reason = "no n*, no regret: no run of its pool has a finite test loss"
    assert (ended.value.code, told.err.splitlines()[-1]) == (0, f"untested:make: {reason}")
    assert "0.00 (" not in told.out
    page = (folder / "comparison" / "comparison.html").read_text(encoding="utf-8")
    assert "nothing to compare with: no run of its pool has a finite test loss" in page


def test_without_what_the_table_needs_nothing_is_run(folder, capsys, monkeypatch):
    from trimtab import cli

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "pyarrow" else found(name)
    )
    with pytest.raises(SystemExit) as ended:
        cli.main(["compare", "tiny:make"])
    assert ended.value.code == 1
    assert "pip install 'trimtab[compare]'" in capsys.readouterr().err
    assert not (folder / "comparison").exists()


def test_a_table_that_cannot_be_written_loses_no_result(folder, capsys):
    from trimtab import cli

    asked = ["tiny:make", "--methods", "reference", "--seeds", "1", "--pool", "0", "--jobs", "1"]
    report = folder / "comparison" / "comparison.html"
    report.mkdir(parents=True)
    with pytest.raises(SystemExit) as ended:
        cli.main(["compare", *asked])
    told = capsys.readouterr()
    assert (ended.value.code, told.out) == (1, "")
    assert "the table or the report cannot be written (Is a directory)" in told.err.splitlines()[-1]
    report.rmdir()
    with pytest.raises(SystemExit) as ended:
        cli.main(["compare", *asked])
    told = capsys.readouterr()
    assert ended.value.code == 0
    assert "kept from before" in told.err
    assert " seed " not in told.err  # nothing is done again


def test_a_run_that_fails_is_named_and_the_others_are_kept(folder):
    process = compare(
        *("tiny:breaks_in_the_middle", "--methods", "reference", "--seeds", "1", "--pool", "0"),
        *("--jobs", "1"),
        cwd=folder,
    )
    _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 1
    assert "OSError: the disk with the validation images is gone" in err
    assert "run the same command again" in err


def test_a_task_in_the_working_folder_is_found_by_the_installed_command(folder):
    """Python's ``-P`` leaves the working folder out of the path, as the script ``trimtab`` does."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    source = Path(trimtab.__file__).parents[1]
    process = subprocess.run(
        [
            *(sys.executable, "-P", "-m", "trimtab", "compare", "tiny:make", "--pool", "0"),
            *("--methods", "reference", "--seeds", "1", "--jobs", "1", "--json"),
        ],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment | {"PYTHONPATH": str(source)},
        timeout=TIMEOUT,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert [row["task"] for row in json.loads(process.stdout)["rows"]] == ["tiny:make"]


def test_controls_that_are_told_of_steered_runs_are_run_after_them(folder):
    out = finished(
        *("tiny:make", "--methods", "shuffled,open-loop", "--start-scale", "0.1,1", "--seeds", "2"),
        *("--pool", "0", "--jobs", "2", "--json"),
        cwd=folder,
    )
    document = json.loads(out)
    rows = [(r["method"], r["start_scale"], r["seed"]) for r in document["rows"]]
    assert rows == [
        (method, scale, seed)
        for method in ("open-loop", "shuffled")
        for scale in (0.1, 1.0)
        for seed in (0, 1)
    ]
    assert document["figures"]["regret"] == {"open-loop": None, "shuffled": None}
