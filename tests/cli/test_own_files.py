"""`trimtab init`, `trimtab runs`, tasks in a file, and which run `export` takes."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def mine(folder: Path) -> None:
    """The task lies in a folder below, which is not one that modules are imported from."""
    (folder / "mine").mkdir()
    (folder / "tiny.py").rename(folder / "mine" / "tiny.py")


def test_a_task_in_a_file_is_run_by_its_path(trimtab):
    status, out, error = trimtab("run", "mine/tiny.py:make", "--policy", "none", "--json")
    assert status == 0, error
    assert json.loads(out)["best"]["loss"] < 1.0


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("mine/huge.py:make", "there is no file mine/huge.py"),
        ("mine/tiny.py:mak", "did you mean 'make'"),
    ],
)
def test_a_wrong_path_and_a_wrong_name_in_it_are_one_line(trimtab, task, said):
    status, _, error = trimtab("run", task)
    assert status == 2
    assert said in error
    assert error.count("\n") == 1


def test_a_file_that_is_called_like_a_module_does_not_replace_it(trimtab, folder):
    shutil.copy(folder / "mine" / "tiny.py", folder / "mine" / "json.py")
    status, _, error = trimtab("run", "mine/json.py:make", "--policy", "none")
    assert status == 0, error
    assert sys.modules["json"] is json


def test_init_writes_a_task_and_overwrites_nothing(trimtab, folder):
    status, out, _ = trimtab("init")
    assert (status, out) == (0, "wrote own_task.py; try: trimtab run own_task.py:make\n")
    written = (folder / "own_task.py").read_text(encoding="utf-8")
    assert written == (HERE.parent / "examples" / "own_task.py").read_text(encoding="utf-8")

    status, _, error = trimtab("init")
    assert status == 2
    assert "own_task.py exists" in error
    assert trimtab("init", "mine/other.py")[0] == 0
    assert "run mine/other.py:make" in (folder / "mine" / "other.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("file", ["task.txt", "nowhere/task.py"])
def test_init_refuses_what_it_cannot_write(trimtab, file):
    status, _, error = trimtab("init", file)
    assert status == 2
    assert file in error


def test_the_task_that_init_writes_runs_as_it_stands(trimtab):
    pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    trimtab("init")
    status, out, error = trimtab("run", "own_task.py:make", "--policy", "none", "--json")
    assert status == 0, error
    assert json.loads(out)["best"]["loss"] < 1.0


def test_runs_are_listed_the_newest_first(trimtab):
    assert "run something first" in trimtab("runs")[2]
    for seed in ("3", "4"):
        trimtab("run", "mine/tiny.py:make", "--policy", "none", "--seed", seed)
    rows = json.loads(trimtab("runs", "--json")[1])
    assert [(row["run"], row["seed"], row["status"]) for row in rows] == [
        (2, 4, "finished"),
        (1, 3, "finished"),
    ]
    assert [row["run"] for row in json.loads(trimtab("runs", "--last", "1", "--json")[1])] == [2]
    assert "finished" in trimtab("runs")[1]


def test_export_takes_the_best_run_of_a_study_not_the_newest(trimtab):
    asked = ("tune", "mine/tiny.py:make", "--method", "trimtab", "--budget", "3", "--study", "mine")
    status, out, error = trimtab(*asked, "--json")
    assert status == 0, error
    exported = {}
    for name in ("mine", "best", "latest"):
        status, out, error = trimtab("export", name, "--out", name, "--json")
        assert status == 0, error
        exported[name] = json.loads(Path(json.loads(out)["files"]["json"]).read_text())
    assert exported["mine"] == exported["best"]


@pytest.mark.parametrize("name", ["best", "mnie"])
def test_export_of_what_there_is_not_says_what_there_is(trimtab, name):
    trimtab("run", "mine/tiny.py:make", "--policy", "none")
    status, _, error = trimtab("export", name)
    assert status == 2
    assert "latest" in error
    assert error.count("\n") == 1
