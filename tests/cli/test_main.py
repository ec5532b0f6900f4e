"""The command line: what it prints, what it refuses, how it ends, and what it leaves behind."""

from __future__ import annotations

import json
import os
import pickle
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from trimtab.core.decision import Decision
from trimtab.records.store.store import load_run

TIMEOUT = 120
pytestmark = pytest.mark.usefixtures("folder")


def start(*arguments: str, **options: object) -> subprocess.Popen[str]:
    """Start a command line in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "trimtab", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


# What it prints.


def test_help_is_the_golden_text(trimtab, golden):
    golden("cli-help.txt", trimtab("--help")[1])


@pytest.mark.parametrize("command", ["run", "compare", "report", "demo"])
def test_the_help_of_a_command_is_the_golden_text(trimtab, golden, command):
    golden(f"cli-help-{command}.txt", trimtab(command, "--help")[1])


def test_help_takes_under_a_second_of_processor_time():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = start("--help")
    ended.communicate(timeout=TIMEOUT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert ended.returncode == 0
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


def test_version_is_printed(trimtab):
    from trimtab import __version__ as version

    assert trimtab("--version") == (0, f"trimtab {version}\n", "")


def test_without_a_command_it_says_what_there_is(trimtab):
    status, out, _ = trimtab()
    assert status == 0
    assert "Commands:" in out


def test_run_prints_one_json_document_with_the_promised_keys(trimtab):
    status, out, err = trimtab("run", "tiny:make", "--policy", "none", "--json")
    document = json.loads(out)
    assert status == 0
    assert list(document) == [
        "run",
        "best",
        "test",
        "spent_steps",
        "spent",
        "seconds",
        "rollbacks",
        "diverged",
        "schedule",
    ]
    assert (document["run"], document["spent_steps"], document["rollbacks"]) == (1, 60, 0)
    assert document["schedule"][0].keys() == {"step", "lr"}
    assert "step 60/60" in err


def test_run_without_json_ends_with_the_command_for_its_report(trimtab):
    status, out, _ = trimtab("run", "tiny:make", "--policy", "random", "--store", "other.db")
    assert status == 0
    assert "accuracy" in out
    assert out.rstrip().endswith("trimtab report 1 --store other.db")


def test_the_last_line_of_a_run_counts_the_short_windows_that_were_undone(capsys):
    from trimtab.cli.run import _print_result
    from trimtab.core.guard import Reason

    def printed(*bits: int) -> str:
        decisions = [SimpleNamespace(reason={"lr": each}) for each in bits]
        result = SimpleNamespace(
            best={}, test={}, run=None, decisions=decisions, rollbacks=1, diverged=False,
            spent_steps=60, spent=1.0, seconds=2.0,
        )  # fmt: skip
        _print_result(result, None)
        return capsys.readouterr().out

    last = "1 rolled back, 1.00 whole runs"
    assert f"60 steps, {last}" in printed(0, Reason.ROLLBACK | Reason.CUT)
    assert f"60 steps, 1 short window undone, {last}" in printed(0, Reason.UNDONE)
    assert f"60 steps, 2 short windows undone, {last}" in printed(1 | Reason.UNDONE, Reason.UNDONE)


def test_a_random_policy_runs_equal_with_equal_seeds(trimtab):
    asked = ("run", "tiny:make", "--policy", "random", "--seed", "3", "--json", "--store", "none")
    documents = [json.loads(trimtab(*asked)[1]) for _ in range(2)]
    for document in documents:
        document.pop("seconds")
    assert documents[0] == documents[1]
    assert documents[0]["run"] is None


def test_plain_lines_tell_loss_metric_values_decision_and_time_left(trimtab):
    _, _, err = trimtab("run", "tiny:nan_at_30", "--policy", "random")
    lines = [line for line in err.splitlines() if line.startswith("step")]
    assert len(lines) >= 15
    assert all(part in lines[5] for part in ("loss ", "accuracy ", "lr now", "decision 6", "left"))
    assert any("rolled back to the best weights; learning rate cut" in line for line in lines)


def test_the_store_can_be_named_in_the_environment(trimtab, monkeypatch):
    monkeypatch.setenv("TRIMTAB_STORE", "named.db")
    assert trimtab("run", "tiny:make", "--policy", "none")[0] == 0
    assert load_run("latest", "named.db").status == "finished"
    assert not Path("trimtab.db").exists()


def test_start_and_start_scale_set_where_a_run_begins(trimtab):
    asked = ("run", "tiny:make", "--policy", "none", "--reference", "constant", "--json")
    given = json.loads(trimtab(*asked, "--start", "lr=0.02")[1])
    scaled = json.loads(trimtab(*asked, "--start-scale", "0.01")[1])
    assert {row["lr"] for row in given["schedule"]} == {0.02}
    assert {row["lr"] for row in scaled["schedule"]} == {0.001}
    assert load_run("latest").head["start_scale"] == 0.01


def test_a_start_of_what_is_not_steered_is_held(trimtab):
    asked = ("run", "tiny:make", "--policy", "none", "--json")
    usual = json.loads(trimtab(*asked)[1])
    held = json.loads(trimtab(*asked, "--start", "momentum=0.9")[1])
    assert held["test"]["loss"] != usual["test"]["loss"]
    assert held["schedule"] == usual["schedule"]


def test_fewer_decisions_than_were_asked_for_are_told_once(trimtab):
    asked = ("run", "tiny:make", "--policy", "none", "--store", "none")
    told = "--decisions {}: tiny:make has {}, since its 60 steps allow one {}"
    assert trimtab(*asked, "--decisions", "99")[2].splitlines()[0] == told.format(99, 60, "a step")
    _, _, error = trimtab(*asked, "--decisions", "20")
    assert error.count("--decisions") == 1
    assert told.format(20, 15, "in 4 steps") in error
    assert "--decisions" not in trimtab(*asked)[2]
    assert "--decisions" not in trimtab(*asked, "--decisions", "15")[2]


def test_fewer_decisions_are_not_told_where_nothing_is_run(trimtab):
    _, _, error = trimtab("run", "tiny:make", "--decisions", "99", "--reference", "cosin")
    assert error.count("\n") == 1


def test_watch_only_records_proposals_and_changes_nothing(trimtab):
    plain = json.loads(trimtab("run", "tiny:make", "--policy", "none", "--json")[1])
    asked = ("run", "tiny:make", "--policy", "random", "--watch-only", "--json")
    watched = json.loads(trimtab(*asked)[1])
    assert watched["schedule"] == plain["schedule"]
    record = load_run("latest")
    assert record.head["watch_only"] is True
    assert all("watching only" in item.why for item in record.decisions)


def test_tasks_are_listed_with_kind_metric_licence_and_seconds(trimtab):
    rows = json.loads(trimtab("tasks", "tiny:make", "simulated/quadratic", "--json")[1])
    assert [row["name"] for row in rows] == ["tiny:make", "simulated/quadratic"]
    assert all({"kind", "metric", "licence", "seconds"} <= row.keys() for row in rows)


def test_tasks_are_timed_here(trimtab):
    (row,) = json.loads(trimtab("tasks", "tiny:make", "--time", "--json")[1])
    assert 0 < row["seconds_here"] < 10
    assert row["seconds_at_most"] is None


def test_every_size_of_a_task_is_listed_when_all_are_asked_for(trimtab):
    pytest.importorskip("torch")
    asked = ("tasks", "text/newsgroups", "tiny:make", "--variant", "all")
    rows = json.loads(trimtab(*asked, "--json")[1])
    sizes = [(row["name"], row.get("variant")) for row in rows]
    assert sizes[:3] == [("text/newsgroups", size) for size in ("tiny", "small", "default")]
    assert sizes[-1][0] == "tiny:make"
    assert "small-lora" in trimtab(*asked)[1]


def test_tasks_without_a_size_are_passed_over_unless_asked_for(trimtab):
    pytest.importorskip("torch")
    listed = json.loads(trimtab("tasks", "--variant", "tiny-lora", "--json")[1])
    assert [row["name"] for row in listed] == ["text/newsgroups", "text/reuters"]

    status, _, error = trimtab("tasks", "vision/animals", "--variant", "tiny-lora")
    assert status == 2
    assert "tiny-lora" in error


@pytest.mark.parametrize(("variant", "option"), [("foo", "--time"), ("", "--json")])
def test_a_size_that_no_task_has_is_refused_with_those_that_there_are(trimtab, variant, option):
    status, out, error = trimtab("tasks", "--variant", variant, option)
    assert (status, out) == (2, "")
    message, _, have = error.partition(" (have: ")
    assert message == f"trimtab: unknown variant {variant!r};"
    assert {"all", "default", "small", "tiny"} <= set(have.rstrip(")\n").split(", "))
    assert error.count("\n") == 1


@pytest.mark.parametrize("command", ["methods", "policies", "doctor"])
def test_lists_are_tables_for_people_and_json_for_programs(trimtab, command):
    status, out, _ = trimtab(command)
    assert status == 0
    assert out
    assert json.loads(trimtab(command, "--json")[1]) is not None


def test_doctor_tells_versions_extras_threads_store_and_policy(trimtab):
    trimtab("run", "tiny:make", "--policy", "none")
    found = json.loads(trimtab("doctor", "--json")[1])
    assert list(found) == ["versions", "extras", "threads", "store", "policy"]
    assert found["versions"]["python"].startswith("3.")
    assert found["store"] | {"megabytes": 0} == {
        "store": "trimtab.db",
        "state": "readable",
        "runs": 1,
        "writable": True,
        "megabytes": 0,
    }
    Path("trimtab.db").write_bytes(b"rubbish" * 999)
    assert "not an SQLite database" in json.loads(trimtab("doctor", "--json")[1])["store"]["state"]


# What it refuses, before anything is trained.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("run vision/solar-cell", "did you mean 'vision/solar-cells'?"),
        ("run tiny:mak", "unknown attribute of tiny 'mak'; did you mean 'make'?"),
        ("run nowhere:make", "there is no module 'nowhere'; check the spelling"),
        ("run tiny:not_a_task", "'tiny:not_a_task' is a int, neither a task nor"),
        ("run tiny:make --variant tiny", "takes no variant and was asked for 'tiny'"),
        ("run tiny:bounds_the_wrong_way", "lr: low=1 is not below high=0.01; swap the bounds"),
        ("run tiny:log_scale_with_zero", "low=0 cannot stand on a log scale"),
        ("run tiny:negative_steps --policy none", "-5"),
        ("run tiny:make --policy none --start lr=nan", "nan is not a finite number"),
        ("run tiny:make --policy none --start lr=-1", "-1 is below low="),
        ("run tiny:make --policy none --start lr=abc", "lr='abc' is no number; write lr=1e-5"),
        ("run tiny:make --policy none --start 0.1", "'0.1' is no assignment; write it as lr=1e-5"),
        ("run tiny:make --policy none --start lr=1 --start lr=2", "lr is given twice"),
        ("run tiny:make --policy none --start leaning=1", "unknown hyperparameter 'leaning'"),
        ("run tiny:make --start-scale 1 --start lr=1", "both set the learning rate; give one"),
        ("run tiny:make --lr-range 1e-3..1e-5", "'1e-3..1e-5' is not two learning rates"),
        ("run tiny:make --lr-range 1e-3", "'1e-3' is not two learning rates"),
        ("run tiny:make --lr-range 1e-9..1e-8", "leaves out the learning rate"),
        (
            "run tiny:make --policy none --start-scale 0",
            "0.0 is not a positive number; 0.01 starts 100 times too low",
        ),
        ("run tiny:make --policy none --start-scale inf", "inf is not a positive number"),
        ("run tiny:make --hyperparameters momentun", "did you mean 'momentum'?"),
        ("run tiny:make --hyperparameters lr,lr", "lr is named twice"),
        ("run tiny:make --hyperparameters ,", "name at least one"),
        (
            "run tiny:make --policy none --decisions 0",
            "decisions: 0 is not a whole number of at least 1",
        ),
        ("run tiny:make --policy none --decisions many", "invalid value for '--decisions'"),
        ("run tiny:make --policy none --seed -1", "--seed: -1 is below 0"),
        ("run tiny:make --policy none --reference cosin", "did you mean 'cosine'?"),
        ("run tiny:make --policy refrence", "unknown policy 'refrence'; did you mean 'reference'"),
        ("run tiny:make --policy no-such.safetensors", "No such file or directory"),
        ("run tiny:make --polcy none", "no such option: --polcy"),
        ("run", "missing argument"),
        ("runn tiny:make", "no such command 'runn'"),
        ("report latest --store none", "none keeps no record to report on"),
        ("demo --store none", "the demo reports on what it recorded"),
        ("demo --task tiny:make --policy refrence", "did you mean 'reference'?"),
    ],
)
def test_a_wrong_request_is_one_line_and_status_2(trimtab, arguments, message):
    status, out, err = trimtab(*arguments.split(" "))
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert err.startswith("trimtab: ")
    assert not Path("trimtab.db").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({"weights": [1.0]}), "is a pickle or zip archive; only safetensors"),
        (b"PK\x03\x04" + b"\0" * 200, "is a pickle or zip archive"),
        (b"", "is not a safetensors file or is truncated (0 bytes)"),
        (b"\x40\x1f\0\0\0\0\0\0{", "is not a safetensors file or is truncated (9 bytes)"),
        (b"#!/bin/sh\nexit 0\n" * 40, "is not a safetensors file or is truncated"),
        ((2).to_bytes(8, "little") + b"{}", "has format None, expected 'trimtab-policy-1'"),
    ],
)
def test_a_file_that_is_no_policy_is_refused(trimtab, content, message):
    Path("bad.safetensors").write_bytes(content)
    status, out, err = trimtab("run", "tiny:make", "--policy", "bad.safetensors")
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


# What fails on the way.


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            "tiny:raises",
            "trimtab: task 'tiny:raises': ZeroDivisionError: three sheep short (--debug shows",
        ),
        ("tiny:unknown_monitor", "no 'f1'; it has accuracy, examples, loss"),
        ("tiny:validates_to_text", "{'loss': 'low'}"),
        ("tiny:forgetful", "advance() reports steps=1 after a window of 2"),
        ("tiny:breaks_in_the_middle", "OSError: the disk with the validation images is gone"),
    ],
)
def test_a_task_that_fails_is_one_line_and_status_1(trimtab, task, message):
    status, out, err = trimtab("run", task, "--policy", "none")
    assert (status, out) == (1, "")
    (told,) = (line for line in err.splitlines() if not line.startswith("step"))
    assert message in told


@pytest.mark.parametrize("command", ["tasks", "compare", "tune", "demo --task"])
def test_a_task_that_cannot_be_made_is_named_by_every_command(trimtab, command):
    pytest.importorskip("pyarrow")
    assert trimtab(*command.split(" "), "tiny:raises") == (
        1,
        "",
        "trimtab: task 'tiny:raises': ZeroDivisionError: three sheep short (--debug shows where)\n",
    )
    assert not Path("comparison").exists()


def test_the_module_of_a_task_that_fails_is_named_with_it(trimtab, monkeypatch):
    Path("broken.py").write_text("raise ValueError\n", encoding="utf-8")
    message = "trimtab: task 'broken:make': ValueError: no message (--debug shows where)\n"
    assert trimtab("run", "broken:make") == (1, "", message)


def test_the_record_of_a_run_that_failed_is_whole(trimtab):
    trimtab("run", "tiny:breaks_in_the_middle", "--policy", "none")
    record = load_run("latest")
    assert record.status == "failed"
    assert [item.decision for item in record.decisions] == list(range(len(record.decisions)))
    assert record.decisions[-1].step == 20


def test_debug_shows_the_traceback():
    ended = start("run", "tiny:raises", "--policy", "none", "--debug")
    _, err = ended.communicate(timeout=TIMEOUT)
    assert ended.returncode == 1
    assert "Traceback (most recent call last)" in err
    assert "three sheep short" in err


def test_a_locked_store_is_refused_before_training(trimtab, monkeypatch):
    from trimtab.records.store import database, store

    trimtab("run", "tiny:make", "--policy", "none")
    for module in (database, store):
        monkeypatch.setattr(module, "BUSY_SECONDS", 0.05)
    held = sqlite3.connect("trimtab.db", isolation_level=None)
    held.execute("BEGIN IMMEDIATE")
    status, out, err = trimtab("run", "tiny:make", "--policy", "none")
    held.close()
    assert (status, out) == (1, "")
    assert err.startswith("trimtab: the store trimtab.db is locked by another process; end that")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("store", "message"),
    [
        ("rubbish.db", "rubbish.db is not an SQLite database; move it away"),
        ("sqlite:///file:read-only.db?mode=ro&uri=true", "is read-only; make the file"),
        ("none/of/these/runs.db", "folder none/of/these does not exist; create it"),
        (".", "the store . is a folder; name a file in it"),
    ],
)
def test_a_store_that_cannot_be_written_is_refused_before_training(trimtab, store, message):
    Path("rubbish.db").write_bytes(b"rubbish" * 999)
    trimtab("run", "tiny:make", "--policy", "none", "--store", "read-only.db")
    status, out, err = trimtab("run", "tiny:make", "--policy", "none", "--store", store)
    assert (status, out) == (1, "")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.filterwarnings("default")
def test_a_full_disk_in_the_middle_stops_nothing_and_loses_nothing(trimtab, monkeypatch):
    from trimtab.records.store.store import StoreRecorder

    keep = StoreRecorder.decision

    def fill_the_disk(self: StoreRecorder, decision: Decision) -> None:
        if decision.index == 4 and self._connection is not None:
            raw = self._connection.connection.dbapi_connection
            pages = raw.execute("PRAGMA page_count").fetchone()[0]
            raw.execute(f"PRAGMA max_page_count = {pages}")
        keep(self, decision)

    monkeypatch.setattr(StoreRecorder, "decision", fill_the_disk)
    status, _, err = trimtab("run", "tiny:make", "--policy", "random", "--decisions", "40")
    assert status == 0
    assert err.count("the disk is full; free some space") == 1
    assert len(load_run("latest").decisions) == 40


def test_a_file_size_limit_leaves_the_record_in_a_file_that_is_named():
    """A disk that takes no more bytes at all: the limit of the process is set below the store."""
    script = (
        "import resource, signal, sys\n"
        "from trimtab import cli\n"
        "from trimtab.records.store.store import StoreRecorder\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "keep = StoreRecorder.decision\n"
        "def limited(self, decision):\n"
        "    if decision.index == 2:\n"
        "        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, resource.RLIM_INFINITY))\n"
        "    keep(self, decision)\n"
        "StoreRecorder.decision = limited\n"
        "cli.main(sys.argv[1:])\n"
    )
    arguments = ["run", "tiny:make", "--policy", "random", "--decisions", "50", "--json"]
    ended = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["spent_steps"] == 60
    assert "training goes on, and decisions wait in memory" in ended.stderr
    (path,) = Path().glob("trimtab-run-1-*.jsonl")
    assert str(path.resolve()) in ended.stderr
    assert [item.decision for item in load_run(str(path)).decisions] == list(range(50))


# Ctrl-C.


def interrupt_after(process: subprocess.Popen[str], lines: int) -> str:
    """Send a real SIGINT once so many lines were told; give the rest of standard error."""
    assert process.stderr is not None
    told = "".join(process.stderr.readline() for _ in range(lines))
    process.send_signal(signal.SIGINT)
    return told + process.communicate(timeout=TIMEOUT)[1]


def test_ctrl_c_ends_with_130_one_line_and_a_whole_record():
    process = start("run", "tiny:slow", "--policy", "random")
    err = interrupt_after(process, 4)
    assert process.returncode == 130
    (told,) = (line for line in err.splitlines() if not line.startswith("step"))
    assert told == "trimtab: interrupted; trimtab report latest shows what had run"
    record = load_run("latest")
    assert record.status == "interrupted"
    assert len(record.decisions) >= 4
    assert [item.decision for item in record.decisions] == list(range(len(record.decisions)))
    assert record.figures["best"]["step"] >= 0


def test_ctrl_c_in_compare_says_how_to_go_on():
    methods = ("--methods", "reference", "--pool", "0", "--seeds", "2", "--jobs", "1")
    process = start("compare", "tiny:slow", *methods, "--out", "there")
    err = interrupt_after(process, 1)
    assert process.returncode == 130
    assert err.splitlines()[-1].startswith("trimtab: interrupted; results so far are in there: run")
    assert "Traceback" not in err


def test_kill_9_leaves_a_whole_record():
    process = start("run", "tiny:slow", "--policy", "random")
    assert process.stderr is not None
    for _ in range(4):
        process.stderr.readline()
    process.kill()
    process.communicate(timeout=TIMEOUT)
    record = load_run("latest")
    assert record.status == "interrupted"
    assert len(record.decisions) >= 4


def test_ctrl_c_in_the_demo_closes_both_records():
    process = start("demo", "--task", "tiny:slow", "--policy", "random")
    assert process.stderr is not None
    told: list[str] = []
    deadline = time.monotonic() + TIMEOUT
    while not {"left alone", "steered"} <= {line.split(":")[0] for line in told}:
        told.append(process.stderr.readline())
        assert told[-1], "".join(told)
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130
    assert "Traceback" not in err
    for number in ("1", "2"):
        record = load_run(number)
        assert record.status == "interrupted"
        assert record.head["finished_at"] is not None
        assert record.decisions


# The demo.


def test_the_demo_shows_both_runs_a_table_the_caveat_and_the_report():
    process = start("demo", "--task", "tiny:make", "--policy", "random", "--out", "seen.html")
    out, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, err
    for words in ("left alone", "steered", "test log-loss", "test accuracy", "steps", "seconds"):
        assert words in out
    assert "One seed of one task proves nothing" in out
    assert f"report: {Path('seen.html').resolve()}" in out
    assert "steered: step 60/60" in err
    assert "left alone: step 60/60" in err
    assert load_run("1").head["start_scale"] == load_run("2").head["start_scale"] == 0.01
    assert Path("seen.html").stat().st_size > 500_000


def test_a_demo_run_that_fails_is_told_in_one_line():
    process = start("demo", "--task", "tiny:breaks_in_the_middle", "--policy", "random")
    out, err = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, out) == (1, "")
    assert err.splitlines()[-1].startswith("trimtab: OSError: the disk with the")
    assert "Traceback" not in err


def test_a_demo_run_that_is_ended_while_a_library_closes_something_logs_no_traceback():
    script = """
import logging, os, queue, signal
from trimtab.cli import demo, options
from trimtab.cli.run import Request

def closed_in_the_middle(*_, **__):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.sigtimedwait([], 5)
    except BaseException:
        logging.getLogger("pool").error("Exception closing connection", exc_info=True)
        raise

demo.execute = closed_in_the_middle
options.find_task = lambda *_: None
demo._work("steered", Request(task=""), queue.Queue())
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert (ended.returncode, ended.stderr) == (130, "")


def test_a_closed_pipe_is_no_traceback():
    ended = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m trimtab methods | true"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert "Traceback" not in ended.stderr
