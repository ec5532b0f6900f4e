"""Mistakes and accidents of every command: one line that names what there is, or what to do."""

from __future__ import annotations

import importlib
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TIMEOUT = 120
TUNE = "tune tiny:make --budget 1 --method reference"
RUN = "run tiny:make --policy none"
READING = [
    "runs", "studies", "report latest", "export latest", "export best", "resume alpha",
    "watch alpha --no-browser", "gc", "gc alpha",
]  # fmt: skip
pytestmark = pytest.mark.usefixtures("folder")


def one_line(answer: tuple[int, str, str], status: int) -> str:
    assert answer[:2] == (status, "")
    assert answer[2].startswith("trimtab: ")
    assert answer[2].count("\n") == 1
    return answer[2]


LIMITED = (
    "import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0})); "
    "runpy.run_module('trimtab', run_name='__main__')"
)
"""Runs the command line with a largest size of files; a forked child would warn beside JAX."""


def ended(command: str, largest: int = 0, **how: Any) -> subprocess.CompletedProcess[str]:
    start = ["-c", LIMITED.format(largest)] if largest else ["-m", "trimtab"]
    words = [sys.executable, *start, *command.split()]
    usual = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "check": False}
    return subprocess.run(words, timeout=TIMEOUT, **(usual | how))


# Stores that are not there, or no stores.


@pytest.mark.parametrize("command", READING)
def test_where_nothing_was_run_yet_it_says_so_and_makes_no_file(trimtab, command):
    error = one_line(trimtab(*command.split()), 1)
    assert "there is no store at trimtab.db; run something first" in error
    assert [path.name for path in Path().iterdir()] == ["tiny.py"]


def rubbish(path: Path) -> None:
    path.write_bytes(b"rubbish" * 99)


def cut_off(path: Path) -> None:
    path.write_bytes(b"SQLite format 3\0")


def foreign(path: Path) -> None:
    with sqlite3.connect(path) as opened:
        opened.execute("create table cats (name)")
    opened.close()


@pytest.mark.parametrize("command", [*READING, RUN, TUNE])
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (rubbish, "no.db is not an SQLite database; move it away, or choose another"),
        (cut_off, "no.db is not an SQLite database"),
        (foreign, "no.db is the database of something else (it has the tables cats); choose"),
        (Path.mkdir, "no.db is a folder; name a file in it"),
    ],
)
def test_what_is_no_store_is_named_and_left_as_it_is(trimtab, command, make, said):
    make(Path("no.db"))
    before = Path("no.db").read_bytes() if Path("no.db").is_file() else b""
    assert said in one_line(trimtab(*command.split(), "--store", "no.db"), 1)
    assert (Path("no.db").read_bytes() if Path("no.db").is_file() else b"") == before


@pytest.mark.parametrize("command", ["runs", "report latest", RUN])
def test_an_address_of_no_database_is_named(trimtab, command):
    error = one_line(trimtab(*command.split(), "--store", "foo://bar"), 1)
    assert "'foo://bar' is no database address" in error


# Names that there are not.


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("report 99", "no run '99' (the last ones: 1, 2)"),
        ("report 1 --against 99", "no run '99' (the last ones: 1, 2)"),
        ("report alpa", "unknown run or study 'alpa'; did you mean 'alpha'? (have: alpha, latest)"),
        ("export nix", "unknown run or study 'nix'; (have: alpha, latest)"),
        ("export 1 --to jsn", "did you mean 'json'?"),
        ("export x.jsonl", "x.jsonl cannot be read"),
        ("resume alpa", "unknown study 'alpa'; did you mean 'alpha'? (have: alpha)"),
        ("watch alpa --no-browser", "did you mean 'alpha'?"),
        ("gc alpa", "did you mean 'alpha'?"),
        ("resume alpha --engine lokal", "unknown engine 'lokal'; did you mean 'local'?"),
        ("tasks vision/animal", "did you mean 'vision/animals'?"),
        ("tune vision/animal", "did you mean 'vision/animals'?"),
        ("compare vision/animal", "did you mean 'vision/animals'?"),
        ("demo --task vision/animal", "did you mean 'vision/animals'?"),
        ("run tiny.py", "a file may hold several; name what makes the task, such as tiny.py:make"),
        ("compare tiny.py", "such as tiny.py:make"),
        ("run tinny.py:make", "there is no file tinny.py"),
        ("tune tiny:mak", "did you mean 'make'?"),
        ("compare tiny:make --policy trimtab-9", "did you mean 'trimtab-1'? (have: trimtab-0"),
        ("tune tiny:make --policy trimtab-9", "did you mean 'trimtab-1'? (have: trimtab-0"),
        ("evaluate trimtab-9", "did you mean 'trimtab-1'? (have: trimtab-0"),
        ("evaluate trimtab-1 --ring z", "unknown ring 'z'; (have: a, b, c"),
        ("tune tiny:make --method refrence", "unknown method 'refrence'; did you mean 'reference'"),
        ("compare tiny:make --methods refrence", "did you mean 'reference'?"),
        ("compare --suite fst", "unknown suite 'fst'; did you mean 'fast'? (have: fast, real)"),
        ("tune tiny:make --engine lokal", "did you mean 'local'? (have: local, ray)"),
        ("tune tiny:make --sampler optna", "did you mean 'optuna'?"),
        ("tune tiny:make --vary lrr", "did you mean 'lr'?"),
        ("tune tiny:make --hyperparameters learning_rate", "did you mean 'lr'?"),
        ("run tiny:make --policy none --log-to mlflw:x", "unknown tracker 'mlflw'; did you mean"),
        ("run tiny:make --policy none --log-to comet:x", "(have: mlflow, tensorboard, wandb)"),
    ],
)
def test_a_name_that_there_is_not_lists_real_ones(trimtab, command, said):
    pytest.importorskip("pyarrow")
    if command.split()[0] in ("report", "export", "resume", "watch", "gc"):
        trimtab(*RUN.split())
        trimtab(*TUNE.split(), "--study", "alpha")
    status, out, error = trimtab(*command.split())
    assert (status in (1, 2), out) == (True, "")
    assert said in error
    assert error.count("\n") == 1


# Accidents.


@pytest.mark.parametrize("command", ["methods", "tasks --json", "--help", f"{RUN} --json"])
def test_a_reader_that_has_left_is_met_in_silence(command):
    words = f"{sys.executable} -m trimtab {command} | true"
    gone = subprocess.run(
        ["bash", "-c", words], capture_output=True, text=True, timeout=TIMEOUT, check=True
    )
    assert [line for line in gone.stderr.splitlines() if not line.startswith("step")] == []


@pytest.mark.parametrize("command", ["methods", "--help", f"{RUN} --json"])
def test_an_output_without_room_is_one_line(command):
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
        answer = ended(command, stdout=full)
    assert answer.returncode == 1
    assert answer.stderr.splitlines()[-1] == (
        "trimtab: the output cannot be written (No space left on device); make room, or send it "
        "elsewhere"
    )


@pytest.mark.parametrize(
    ("command", "limit", "said"),
    [
        ("report {file} --out r.html", 4096, "r.html cannot be written"),
        ("report {file} --out o/old.html", 4096, "old.html cannot be written"),
        ("export {file} --out e", 16, "e: the export cannot be written"),
        ("init new.py", 16, "new.py cannot be written"),
        ("compare tiny:make --methods reference --pool 0 --out o", 16, "results.jsonl cannot be"),
        (RUN, 16, "cannot be read or written"),
        (TUNE, 16, "cannot be read or written"),
    ],
)
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(command, limit, said):
    pytest.importorskip("altair")
    old = Path(__file__).parents[1] / "old_files" / "run.jsonl"
    Path("o").mkdir()
    Path("o/old.html").write_text("an older report", encoding="utf-8")
    answer = ended(command.format(file=old), largest=limit)
    assert answer.returncode in (1, 2)
    assert said in answer.stderr.splitlines()[-1]
    assert "Traceback" not in answer.stderr
    made = {path.name for path in Path().rglob("*") if path.is_file() and path.suffix != ".db"}
    assert made - {"results.jsonl"} == {"tiny.py", "old.html"}
    assert Path("o/old.html").read_text(encoding="utf-8") == "an older report"


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("command", "place", "said"),
    [
        (RUN, "trimtab.tasks.run.run_task", "; trimtab report latest shows what had run"),
        (f"{RUN} --store a.db", "trimtab.tasks.run.run_task", "report latest --store a.db shows"),
        (f"{RUN} --store none", "trimtab.tasks.run.run_task", ""),
        (f"{TUNE} --study beta", "trimtab.search.study.tune.tune", "; trimtab resume beta goes on"),
        ("resume alpha", "trimtab.search.study.tune.resume", "; trimtab resume alpha goes on"),
        (
            "compare tiny:make --out there",
            "trimtab.search.comparison.compare.compare",
            "; results so far are in there: run the same command again to go on from there",
        ),
        (
            "compare tiny:make --out there --methods reference --seeds 1 --pool 0 --jobs 1",
            "trimtab.search.comparison.figures.comparison_figures",
            "; results so far are in there: run the same command again to go on from there",
        ),
        (
            "demo --task tiny:make",
            "trimtab.cli.demo._side_by_side",
            "; trimtab runs lists what had run: the same command begins anew",
        ),
        (
            "learn --config s.toml --out there",
            "trimtab.agents.training.learn.learn",
            "; there is no checkpoint yet: run the same command again",
        ),
        (
            "evaluate trimtab-1 --out there",
            "trimtab.agents.evaluation.evaluate.evaluate_policy",
            "; what was done is kept in there: run the same command again to go on from there",
        ),
        ("tasks tiny:make --time", "trimtab.tasks.run.run_task", ""),
    ],
)
def test_ctrl_c_says_how_to_go_on(trimtab, monkeypatch, command, place, said):
    pytest.importorskip("pyarrow")
    if command.split()[0] in ("learn", "evaluate"):
        pytest.importorskip("jax")
    text = 'families = [{ name = "simulated/quadratic" }]\n'
    Path("s.toml").write_text(text, encoding="utf-8")
    if "alpha" in command:
        trimtab(*TUNE.split(), "--study", "alpha")
    module, _, name = place.rpartition(".")
    monkeypatch.setattr(importlib.import_module(module), name, interrupt)
    status, out, error = trimtab(*command.split())
    assert (status, out) == (130, "")
    assert error.splitlines()[-1].startswith("trimtab: interrupted")
    assert said in error.splitlines()[-1]


def test_ctrl_c_in_meta_training_names_the_checkpoint(trimtab, monkeypatch):
    pytest.importorskip("jax")
    from trimtab.agents.training import checkpoints

    text = 'families = [{ name = "simulated/quadratic" }]\n'
    Path("s.toml").write_text(text, encoding="utf-8")
    monkeypatch.setattr("trimtab.agents.training.learn.learn", interrupt)
    monkeypatch.setattr(checkpoints, "checkpoint_file", lambda folder: folder / "checkpoint")
    status, _, error = trimtab("learn", "--config", "s.toml", "--out", "there")
    assert status == 130
    assert "with --resume goes on from the last checkpoint in there" in error.splitlines()[-1]
