"""The store: what goes in comes out, failures are one clear line, and training never stops."""

from __future__ import annotations

import math
import os
import shutil
import sqlite3
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trimtab.core.decision import Decision, Recorder, RunInfo, Summary
from trimtab.core.errors import MissingDependencyError, StoreError, TrimtabWarning
from trimtab.core.hyperparameters import hyperparameter
from trimtab.core.metrics import Metrics
from trimtab.core.session import Session
from trimtab.core.spec import ControlSpec
from trimtab.records.store import database, store
from trimtab.records.store.store import Store, StoreRecorder, load_run

SPEC = ControlSpec(
    hyperparameters=(hyperparameter("lr", 1e-5), hyperparameter("momentum", 0.9)), decisions=6
)
INFO = RunInfo("toy/<b>", SPEC, 60, policy="random", seed=3, notices={"data": "CC BY-NC"})


def drive(keeper: Recorder | None, *, until: int = 60, status: str | None = None) -> Session:
    """Drive a session of 60 steps whose loss falls, rises to nan once, and falls again."""
    session = Session(
        SPEC, None, total_steps=60, reference=np.linspace(1, 0.1, 60), recorder=keeper
    )
    session.step(Metrics(val_loss=2.0), {"loss": 2.0, "accuracy": 0.1})
    while not session.finished and session.steps_done < until:
        steps = session.window()
        bad = session.decisions_made == 3
        loss = math.nan if bad else 2.0 / (1 + session.steps_done)
        metrics = Metrics(
            train_loss=0.5, val_loss=loss, steps=steps, charge=8.0 * steps, finite=float(not bad)
        )
        session.step(metrics, {"loss": loss, "accuracy": 0.5})
    if not session.finished:
        session.close(status)
    return session


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for a locked database only briefly."""
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    monkeypatch.setattr(store, "BUSY_SECONDS", 0.05)
    monkeypatch.setattr(store, "_BUSY_SECONDS_IN_A_RUN", 0.01)


def keep_all(keeper: Recorder, decisions: list[Decision], summary: Summary | None = None) -> None:
    for decision in decisions:
        keeper.decision(decision)
    if summary is not None:
        keeper.finish(summary, "finished")


def lock(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    return connection


def same_numbers(left: dict[str, float], right: dict[str, float]) -> bool:
    return left.keys() == right.keys() and all(
        left[key] == right[key] or (math.isnan(left[key]) and math.isnan(right[key]))
        for key in left
    )


def assert_equal(read: object, made: Decision) -> None:
    assert (read.decision, read.step, read.progress) == (made.index, made.step, made.progress)
    assert np.array_equal(np.array(read.metrics), np.array(made.metrics), equal_nan=True)
    assert same_numbers(dict(read.measured), dict(made.measured))
    assert np.array_equal(read.observation, made.observation)
    assert read.proposed == dict(made.proposed)
    assert read.applied == dict(made.applied)
    assert np.array_equal(np.float32(read.offset), made.offset)
    assert read.reasons == dict(made.reason)
    assert (read.why, read.note) == (made.why(), made.note)
    assert (read.restored, read.terminated) == (made.restored, made.terminated)
    assert read.reward == made.reward


def test_what_was_decided_comes_back_to_the_last_bit(tmp_path):
    keeper = StoreRecorder(tmp_path / "runs.db", INFO)
    session = drive(keeper)
    keeper.add_figures({"test": {"loss": 0.25, "accuracy": math.nan}})
    read = load_run(str(keeper.run), tmp_path / "runs.db")
    assert read.status == "finished"
    assert len(read.decisions) == len(session.summary.decisions) == 6
    for stored, made in zip(read.decisions, session.summary.decisions, strict=True):
        assert_equal(stored, made)
    assert any(item.restored for item in read.decisions)
    assert read.schedule["lr"] == [row["lr"] for row in session.summary.schedule]
    assert read.figures["test"] == {"loss": 0.25, "accuracy": None}
    assert read.figures["rollbacks"] == session.summary.rollbacks == 1
    assert read.figures["last"]["step"] == 60.0
    assert ControlSpec.from_json(SPEC.to_json()) == SPEC
    head = read.head
    assert (head["task"], head["seed"], head["policy"]) == ("toy/<b>", 3, "random")
    assert head["start"] == {"lr": 1e-5, "momentum": 0.9}
    assert head["notices"] == {"data": "CC BY-NC"}
    assert head["versions"]["numpy"] == np.__version__
    assert head["spec"]["decisions"] == 6


def test_each_decision_can_be_read_by_another_connection_as_soon_as_it_is_made(tmp_path):
    seen = []

    class Watched(StoreRecorder):
        def decision(self, decision):
            super().decision(decision)
            with Store(tmp_path / "runs.db") as store:
                seen.append(len(store.run("latest").decisions))

    keeper = Watched(tmp_path / "runs.db", INFO)
    drive(keeper)
    assert seen == [1, 2, 3, 4, 5, 6]


def test_a_run_whose_process_died_reads_as_interrupted_and_is_whole(tmp_path):
    script = (
        "import os, sys; sys.path.insert(0, sys.argv[2])\n"
        "from test_store import INFO, drive\n"
        "from trimtab.records.store.store import StoreRecorder\n"
        "class Dies(StoreRecorder):\n"
        "    def decision(self, decision):\n"
        "        super().decision(decision)\n"
        "        if decision.index == 3: os._exit(9)\n"
        "drive(Dies(sys.argv[1], INFO))\n"
    )
    store = tmp_path / "runs.db"
    here = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", script, str(store), here], check=False)
    assert done.returncode == 9
    read = load_run("latest", store)
    assert read.status == "interrupted"
    assert [item.decision for item in read.decisions] == [0, 1, 2, 3]


def test_a_run_in_progress_reads_as_running(tmp_path):
    keeper = StoreRecorder(tmp_path / "runs.db", INFO)
    assert load_run("latest", tmp_path / "runs.db").status == "running"
    drive(keeper, until=30, status="interrupted")
    assert load_run("latest", tmp_path / "runs.db").status == "interrupted"


def test_a_resumed_run_replaces_the_decisions_that_it_makes_again(tmp_path):
    store = tmp_path / "runs.db"
    first = StoreRecorder(store, INFO)
    drive(first, until=30)
    again = StoreRecorder(store, INFO, **{"run": first.state()["run"]})
    assert again.run == first.run
    session = drive(again)
    read = load_run("latest", store)
    assert read.status == "finished"
    assert len(read.decisions) == 6
    assert_equal(read.decisions[-1], session.summary.decisions[-1])
    with pytest.raises(StoreError, match="no run 77"):
        StoreRecorder(store, INFO, run=77)


def test_a_decision_written_just_before_ctrl_c_is_not_written_twice(tmp_path, monkeypatch):
    keeper = StoreRecorder(tmp_path / "runs.db", INFO)
    made = drive(None).summary
    write = keeper._write

    def interrupted(connection, *, doubtful):
        write(connection, doubtful=doubtful)
        connection.commit()
        raise KeyboardInterrupt

    keeper.decision(made.decisions[0])
    monkeypatch.setattr(keeper, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        keeper.decision(made.decisions[1])
    monkeypatch.setattr(keeper, "_write", write)
    keeper.finish(made, "interrupted")
    read = load_run("latest", tmp_path / "runs.db")
    assert ([item.decision for item in read.decisions], read.status) == ([0, 1], "interrupted")


def test_many_decisions_stand_in_the_store_when_they_are_made(tmp_path):
    keeper = StoreRecorder(tmp_path / "runs.db", INFO)
    decision = drive(None).summary.decisions[3]
    for index in range(200):
        keeper.decision(Decision(**{**vars(decision), "index": index}))
    read = load_run("latest", tmp_path / "runs.db")  # of a run that goes on
    assert [item.decision for item in read.decisions] == list(range(200))


def test_a_locked_store_costs_one_warning_and_nothing_else(tmp_path, impatient):
    keeper = StoreRecorder(tmp_path / "runs.db", INFO)
    held = lock(tmp_path / "runs.db")
    made = drive(None).summary
    with pytest.warns(TrimtabWarning, match=r"runs\.db is locked by another process") as caught:
        keep_all(keeper, made.decisions)
    (warning,) = caught
    assert "training goes on, and decisions wait in memory" in str(warning.message)
    held.close()
    keeper.finish(made, "stopped")
    read = load_run("latest", tmp_path / "runs.db")
    assert [item.decision for item in read.decisions] == [0, 1, 2, 3, 4, 5]
    assert read.status == "stopped"


def test_what_a_store_never_took_lies_in_a_file_that_reads_like_a_run(tmp_path, impatient):
    store = tmp_path / "runs.db"
    keeper = StoreRecorder(store, INFO)
    made = drive(None).summary
    keeper.decision(made.decisions[0])
    held = lock(store)
    with pytest.warns(TrimtabWarning) as caught:
        keep_all(keeper, made.decisions[1:], made)
    held.close()
    said = str(caught[-1].message)
    assert "did not take 5 decisions of run 1" in said
    (path,) = tmp_path.glob("*.jsonl")
    assert str(path) in said
    read = load_run(str(path), store)
    assert read.status == "finished"
    assert [item.decision for item in read.decisions] == [0, 1, 2, 3, 4, 5]
    for stored, decision in zip(read.decisions, made.decisions, strict=True):
        assert_equal(stored, decision)


def test_warnings_as_errors_do_not_stop_training(tmp_path, impatient, caplog):
    keeper = StoreRecorder(tmp_path / "runs.db", INFO)
    held = lock(tmp_path / "runs.db")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert drive(keeper).finished
    held.close()
    assert "is locked" in caplog.text


def test_a_store_that_vanishes_in_the_middle_does_not_stop_training(tmp_path, impatient):
    folder = tmp_path / "gone"
    folder.mkdir()
    keeper = StoreRecorder(folder / "runs.db", INFO)
    made = drive(None).summary
    keeper.decision(made.decisions[0])
    keeper._disconnect()
    shutil.rmtree(folder)
    with pytest.warns(TrimtabWarning) as caught:
        keep_all(keeper, made.decisions[1:], made)
    assert "cannot be opened" in str(caught[0].message)
    path = Path(str(caught[-1].message).split("they are in ")[1].split(" (trimtab")[0])
    try:
        assert len(load_run(str(path)).decisions) == 5
    finally:
        path.unlink()


def test_a_full_disk_costs_one_warning_and_loses_nothing(tmp_path, impatient):
    keeper = StoreRecorder(tmp_path / "runs.db", INFO)
    raw = keeper._connect(0.05).connection.dbapi_connection
    pages = raw.execute("PRAGMA page_count").fetchone()[0]
    raw.execute(f"PRAGMA max_page_count = {pages}")
    made = drive(None).summary
    many = [Decision(**{**vars(made.decisions[0]), "index": index}) for index in range(40)]
    with pytest.warns(TrimtabWarning, match="the disk is full; free some space"):
        keep_all(keeper, many)
    keeper.finish(made, "finished")  # a new connection: there is room again
    assert len(load_run("latest", tmp_path / "runs.db").decisions) == 40


def test_opening_a_locked_store_says_what_to_do(tmp_path, impatient):
    StoreRecorder(tmp_path / "runs.db", INFO)
    held = lock(tmp_path / "runs.db")
    with pytest.raises(StoreError, match=r"runs\.db is locked by another process; end that"):
        StoreRecorder(tmp_path / "runs.db", INFO)
    held.close()


@pytest.mark.parametrize(
    ("url", "module", "package"),
    [
        ("mysql://me:secret@host/runs", "MySQLdb", "mysqlclient"),
        ("mysql+mysqlconnector://host/runs", "mysql", "mysql-connector-python"),
        ("mysql+pymysql://host/runs", "pymysql", "pymysql"),
        ("postgresql+psycopg://host/runs", "psycopg", "'trimtab[postgres]'"),
        ("postgresql+psycopg2://host/runs", "psycopg2", "psycopg2-binary"),
    ],
)
def test_a_missing_driver_is_told_with_the_package_that_brings_it(
    url, module, package, monkeypatch
):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError) as told:
        Store(url)
    words = str(told.value)
    assert f"needs {module}, the driver of {url.split('://')[0]}" in words
    assert words.endswith(f"pip install {package}")
    assert "secret" not in words


def test_a_driver_that_lacks_a_library_of_its_own_is_told_in_its_words(monkeypatch):
    import sqlalchemy

    def fail(*_: Any, **__: Any) -> Any:
        raise ImportError("no pq wrapper available")

    monkeypatch.setattr(sqlalchemy, "create_engine", fail)
    with pytest.raises(MissingDependencyError, match=r"cannot be loaded \(no pq wrapper available"):
        Store("postgresql+psycopg://host/runs")


@pytest.mark.parametrize("content", [b"this is no database, surely" * 200, b"PAR1" * 2000])
def test_opening_what_is_no_database_says_so(tmp_path, content):
    (tmp_path / "runs.db").write_bytes(content)
    for opened in (
        lambda: StoreRecorder(tmp_path / "runs.db", INFO),
        lambda: Store(tmp_path / "runs.db"),
    ):
        with pytest.raises(StoreError, match=r"runs\.db is not an SQLite database; move it away"):
            opened()
    assert (tmp_path / "runs.db").read_bytes() == content


def test_a_damaged_store_says_so(tmp_path):
    keeper = StoreRecorder(tmp_path / "runs.db", INFO)
    drive(keeper)
    data = bytearray((tmp_path / "runs.db").read_bytes())
    data[1024:] = b"\xff" * (len(data) - 1024)
    (tmp_path / "runs.db").write_bytes(data)
    with pytest.raises(StoreError, match=r"runs\.db is damaged; restore it from a copy"):
        load_run("latest", tmp_path / "runs.db")


def test_a_read_only_store_is_refused_for_writing_and_can_be_read(tmp_path):
    drive(StoreRecorder(tmp_path / "runs.db", INFO))
    url = f"sqlite:///file:{tmp_path}/runs.db?mode=ro&uri=true"
    with pytest.raises(StoreError, match=r"is read-only; make the file and its folder writable"):
        StoreRecorder(url, INFO)
    assert len(load_run("latest", url).decisions) == 6


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_store_in_a_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="cannot be opened; check its folder"):
        StoreRecorder(tmp_path / "runs.db", INFO)


def test_a_store_of_a_newer_trimtab_is_refused(tmp_path):
    StoreRecorder(tmp_path / "runs.db", INFO)
    with sqlite3.connect(tmp_path / "runs.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0099'")
    connection.close()
    for opened in (
        lambda: StoreRecorder(tmp_path / "runs.db", INFO),
        lambda: Store(tmp_path / "runs.db"),
    ):
        with pytest.raises(StoreError, match=r"newer trimtab \(schema 0099, this one knows up to"):
            opened()


def test_a_database_of_something_else_is_left_alone(tmp_path):
    with sqlite3.connect(tmp_path / "runs.db") as connection:
        connection.execute("CREATE TABLE customers (id INTEGER)")
    connection.close()
    with pytest.raises(StoreError, match=r"is the database of something else .*customers"):
        StoreRecorder(tmp_path / "runs.db", INFO)


@pytest.mark.parametrize(
    ("store", "message"),
    [
        ("no/such/folder/runs.db", "folder no/such/folder does not exist; create it"),
        ("", "store: '' is empty; give a path"),
        ("tests", "the store tests is a folder; name a file in it"),
        ("nonsense://x", "is no database address"),
    ],
)
def test_an_impossible_address_says_what_is_wrong(store, message):
    with pytest.raises(StoreError, match=message):
        StoreRecorder(store, INFO)


def test_reading_where_nothing_is_creates_nothing(tmp_path):
    with pytest.raises(StoreError, match=r"there is no store at .*runs\.db; run something first"):
        Store(tmp_path / "runs.db")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_not_there_is_named_with_those_that_are(tmp_path):
    StoreRecorder(tmp_path / "runs.db", INFO)
    with pytest.raises(StoreError, match=r"no run '12' \(the last ones: 1\)"):
        load_run("12", tmp_path / "runs.db")


def test_passwords_are_never_shown():
    assert "secret" not in database.shown("postgresql://me:secret@host/runs")


def test_two_processes_may_create_one_store_at_once(tmp_path):
    script = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from test_store import INFO, drive\n"
        "from trimtab.records.store.store import StoreRecorder\n"
        "drive(StoreRecorder(sys.argv[1], INFO))\n"
    )
    arguments = [
        sys.executable,
        "-c",
        script,
        str(tmp_path / "a.db"),
        str(Path(__file__).parent),
    ]
    started = [subprocess.Popen(arguments) for _ in range(2)]
    assert [process.wait() for process in started] == [0, 0]
    with Store(tmp_path / "a.db") as store:
        assert [len(store.run(number).decisions) for number in store.run_ids()] == [6, 6]


def test_migrations_give_the_tables_that_the_code_declares(tmp_path):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    from trimtab.records.store.models import METADATA, SCHEMA_VERSION

    engine = database.open_engine(tmp_path / "runs.db", write=True)
    database.prepare_schema(engine, "runs.db", write=True)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, METADATA) == []
        assert context.get_current_revision() == SCHEMA_VERSION
    engine.dispose()


def test_an_engine_that_was_let_go_of_is_opened_again_by_one_only(tmp_path: Path) -> None:
    (tmp_path / "runs.db").touch()
    url = f"sqlite:///{tmp_path / 'runs.db'}"
    first = database.open_engine(url, write=True)
    assert database.open_engine(url, write=True) is not first  # nobody let go of it
    database.close_engine(first)
    database.close_engine(first)
    assert database.open_engine(url, write=True) is first  # its compiled statements come with it
    assert database.open_engine(url, write=True) is not first
    database.close_engine(first)
    assert database.open_engine(url, write=False) is not first
