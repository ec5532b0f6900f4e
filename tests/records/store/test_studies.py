"""Studies in the store: claimed once, done once, found again when their workers die."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.records.store.test_store import INFO, drive
from trimtab.core.errors import SpecError, StoreError, UnknownNameError
from trimtab.records.store import studies, transactions
from trimtab.records.store.provenance import is_gone, process_token
from trimtab.records.store.rows import StudyRecord, UnitRequest, run_row
from trimtab.records.store.snapshots import is_snapshot_of, snapshot_folder, write_snapshot
from trimtab.records.store.store import Store, StoreRecorder
from trimtab.records.store.studies import Studies, status_now

HERE = Path(__file__).parent


def begun(opened: Studies, units: int = 3, name: str = "s", budget: float = 4.0) -> StudyRecord:
    study = opened.open(
        name, task="toy", method="trimtab", budget=budget, seed=1, settings={"a": [1, 0.5]}
    )
    opened.add_units(study, [UnitRequest(p, 0, "restart", {"lr": 0.1}) for p in range(units)])
    return study


def test_a_study_is_opened_again_with_the_same_settings_and_a_larger_budget(store: str) -> None:
    with Studies(store) as opened:
        first = begun(opened)
        opened.set_status(first, "finished", {"best": 1.0})
        same = begun(opened, budget=2.0)
        assert (same.id, same.budget, same.status) == (first.id, 4.0, "finished")
        assert same.settings == {"a": [1, 0.5]}
        assert same.summary == {"best": 1.0}
        more = begun(opened, budget=6.0)
        assert (more.budget, more.status, more.finished_at) == (6.0, "running", None)
        with pytest.raises(SpecError, match=r"study 's' was made with seed 1, not 2"):
            opened.open("s", task="toy", method="trimtab", budget=4, seed=2, settings={})
        other = {"a": [1, 2], "b": "new"}
        with pytest.raises(SpecError, match=r"was made with a \[1,0\.5\], not \[1,2\]; continue"):
            opened.open("s", task="toy", method="trimtab", budget=4, seed=1, settings=other)
        with pytest.raises(SpecError, match=r"was made with b null, not \"new\"; continue"):
            opened.open(
                "s",
                task="toy",
                method="trimtab",
                budget=4,
                seed=1,
                settings=other | {"a": [1, 0.5]},
            )
        with pytest.raises(UnknownNameError, match=r"unknown study 'z'.*have: s"):
            opened.study("z")


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "a\\b", ".hidden", "x" * 101, "a.", "ä"])
def test_a_name_that_could_leave_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    with Studies(tmp_path / "runs.db") as opened, pytest.raises(SpecError, match="a name has 1"):
        begun(opened, name=name)
    with pytest.raises(SpecError, match="a name has 1"):
        snapshot_folder("sqlite:///runs.db", name)


def test_stores_that_share_a_place_keep_their_snapshots_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRIMTAB_SNAPSHOTS", raising=False)
    server = "postgresql+psycopg://{who}@host:5432/{name}"
    mine = snapshot_folder(server.format(who="me:secret", name="runs"), "s")
    assert mine != snapshot_folder(server.format(who="me:secret", name="others"), "s")
    assert mine == snapshot_folder(server.format(who="you", name="runs"), "s")
    assert "secret" not in str(mine)
    assert snapshot_folder("sqlite:///a/runs.db", "s") == Path("a/runs.db.snapshots/s").absolute()
    monkeypatch.setenv("TRIMTAB_SNAPSHOTS", str(tmp_path))
    first, second = (snapshot_folder(f"sqlite:///{name}/runs.db", "s") for name in "ab")
    assert first != second
    assert {first.parents[1], second.parents[1]} == {tmp_path}


def test_a_relative_store_is_of_the_folder_that_one_works_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        with Studies("runs.db") as opened:
            begun(opened, name=name)
            assert [one.name for one in opened.all()] == [name]
        assert (tmp_path / name / "runs.db").is_file()


@pytest.mark.parametrize(
    ("path", "is_one"),
    [
        ("/kept/s/run-000001/latest-0003.safetensors", True),
        ("/kept/s/run-1234567/final-0020.safetensors", True),
        ("/kept/t/run-000001/latest-0003.safetensors", False),
        ("/kept/s/run-000001/notes.txt", False),
        ("/kept/s/other/latest-0003.safetensors", False),
        ("/kept/s/../s/run-000001/latest-0003.safetensors", False),
        ("s/run-000001/latest-0003.safetensors", False),
        ("/model.safetensors", False),
        ("", False),
    ],
)
def test_only_files_of_the_study_are_taken_for_its_snapshots(path: str, is_one: bool) -> None:
    assert is_snapshot_of(Path(path), "s") == is_one


def test_a_unit_is_claimed_by_one_of_many_threads(store: str) -> None:
    with Studies(store) as opened:
        study = begun(opened, 5)
        taken: list[tuple[int, str]] = []

        def take() -> None:
            with Studies(store) as mine:
                for place in range(5):
                    claim = mine.claim(study, place)
                    if claim is not None:
                        taken.append((place, claim.owner))

        threads = [threading.Thread(target=take) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(place for place, _ in taken) == [0, 1, 2, 3, 4]


def test_adding_the_same_units_again_changes_nothing(store: str) -> None:
    with Studies(store) as opened:
        study = begun(opened)
        opened.add_units(study, [UnitRequest(1, 7, "fork"), UnitRequest(3, 1, "fork", {"of": 1})])
        units = opened.units(study)
        assert [(unit.place, unit.round, unit.kind) for unit in units] == [
            (0, 0, "restart"),
            (1, 0, "restart"),
            (2, 0, "restart"),
            (3, 1, "fork"),
        ]
        assert units[3].request == {"of": 1}


def test_an_outcome_is_written_once_and_only_by_the_holder(store: str) -> None:
    with Studies(store) as opened:
        study = begun(opened)
        claim = opened.claim(study, 0)
        assert claim is not None
        assert opened.claim(study, 0) is None
        assert opened.renew(claim)
        assert opened.finish(claim, {"loss": float("nan")})
        assert not opened.finish(claim, {"loss": 2.0})
        assert not opened.renew(claim)
        assert opened.claim(study, 0) is None
        (unit,) = [unit for unit in opened.units(study) if unit.is_over]
        assert (unit.outcome, unit.status, unit.attempts) == ({"loss": None}, "done", 1)


def test_a_lease_that_ended_lets_another_take_over(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(studies, "LEASE_SECONDS", -1.0)
    with Studies(store) as opened:
        study = begun(opened)
        slow = opened.claim(study, 0)
        monkeypatch.setattr(studies, "LEASE_SECONDS", 60.0)
        quick = opened.claim(study, 0)
        assert slow is not None
        assert quick is not None
        assert not opened.finish(slow, {})
        assert opened.finish(quick, {})


def test_the_claims_of_a_killed_process_are_freed(store: str) -> None:
    code = (
        "import sys, time\nfrom trimtab.records.store.studies import Studies\n"
        "opened = Studies(sys.argv[1])\n"
        "print(opened.claim(opened.study('s'), 1).owner, flush=True)\n"
        "time.sleep(60)"
    )
    with Studies(store) as opened:
        study = begun(opened)
        alive = opened.claim(study, 0)
        other = subprocess.Popen([sys.executable, "-c", code, store], stdout=subprocess.PIPE)
        assert other.stdout is not None
        owner = other.stdout.readline().decode().strip()
        assert not is_gone(owner)
        assert opened.release_dead(study) == []
        other.kill()
        other.wait()
        other.stdout.close()
        assert is_gone(owner)
        assert opened.release_dead(study) == [1]
        assert opened.release_dead(study) == []
        again = opened.claim(study, 1)
        assert again is not None
        assert (again.record.attempts, again.record.stalled) == (2, 2)
        assert alive is not None
        assert opened.renew(alive)


def test_a_number_that_the_system_gave_away_again_is_another_process() -> None:
    host, pid, began, word = process_token().rsplit(":", 3)
    assert not is_gone(f"{host}:{pid}:{began}:{word}")
    assert is_gone(f"{host}:{pid}:{int(began) + 1}:{word}")
    assert not is_gone(f"elsewhere:{pid}:{int(began) + 1}:{word}")


def test_a_study_runs_on_while_one_of_its_processes_may_be_alive(tmp_path: Path) -> None:
    alive = process_token()
    host, pid, began, word = alive.rsplit(":", 3)
    ended = f"{host}:{pid}:{int(began) + 1}:{word}"
    with Studies(tmp_path / "runs.db") as opened:
        study = begun(opened)
        assert status_now(study, [None]) == "running"
        assert status_now(study, [ended, alive, None]) == "running"
        assert status_now(study, [ended, "elsewhere:1:1:x"]) == "running"
        assert status_now(study, [ended, None]) == "interrupted"
        opened.set_status(study, "finished")
        assert status_now(opened.study("s"), [ended]) == "finished"


def test_runs_stand_in_a_tree(store: str) -> None:
    with Studies(store) as opened:
        study = begun(opened)
        for place in (0, 1):
            claim = opened.claim(study, place)
            assert claim is not None
            parent = {} if place == 0 else {"parent_run": 1, "fork_decision": 3}
            more = parent | {"study_id": study.id, "choices": '{"lr":0.1}'}
            run = opened.begin_run(claim, run_row(INFO) | more)
            drive(StoreRecorder(store, INFO, run=run))
            assert opened.finish(claim, {})
            assert opened.begin_run(claim, run_row(INFO) | more) is None
        first, second = opened.tree(study)
        assert (first.parent, first.place, first.status) == (None, 0, "finished")
        assert (second.parent, second.fork_decision, second.choices) == (first.run, 3, {"lr": 0.1})
        assert second.figures["best"]["loss"] > 0
        assert opened.units(study)[1].run == second.run


def test_a_newer_snapshot_takes_the_place_of_the_latest_one(store: str, tmp_path: Path) -> None:
    with Studies(store) as opened:
        study = begun(opened)
        claim = opened.claim(study, 0)
        assert claim is not None
        run = StoreRecorder(store, INFO).run

        def add(decision: int, purpose: str) -> list[str] | None:
            kept = write_snapshot(tmp_path / "s" / f"{decision}.safetensors", {"d": decision})
            replaced = opened.add_snapshot(
                claim, run, kept, decision=decision, step=1, purpose=purpose
            )
            return None if replaced is None else [Path(one.path).stem for one in replaced]

        assert add(0, "latest") == []
        assert add(1, "fork") == ["0"]
        assert add(2, "latest") == []
        assert add(3, "latest") == ["2"]
        kinds = [(one.decision, one.purpose) for one in opened.snapshots(run)]
        assert kinds == [(1, "fork"), (3, "latest")]
        assert opened.units(study)[0].stalled == 0
        assert opened.finish(claim, {})
        assert add(4, "final") is None
        opened.forget_snapshots(opened.snapshots())
        assert opened.snapshots(run) == []


def test_a_locked_database_is_waited_for(tmp_path: Path) -> None:
    with Studies(tmp_path / "runs.db") as opened:
        study = begun(opened)
        blocker = sqlite3.connect(
            tmp_path / "runs.db", isolation_level=None, check_same_thread=False
        )
        blocker.execute("BEGIN IMMEDIATE")
        opening = threading.Timer(0.5, lambda: blocker.execute("ROLLBACK"))
        opening.start()
        start = time.monotonic()
        assert opened.claim(study, 0) is not None
        assert time.monotonic() - start > 0.3
        opening.join()
        blocker.close()


def test_a_database_that_stays_locked_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transactions, "BUDGET_SECONDS", 0.1)
    monkeypatch.setattr(transactions, "LEAST_SECONDS", 0.0)
    with Studies(tmp_path / "runs.db") as opened:
        study = begun(opened)
        with opened._database._writer.connect() as connection:
            connection.exec_driver_sql("PRAGMA busy_timeout = 10")
        blocker = sqlite3.connect(tmp_path / "runs.db", isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="is locked by another process"):
            opened.claim(study, 0)
        blocker.close()


def test_a_store_of_the_first_schema_is_brought_up(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    with sqlite3.connect(path) as connection:
        connection.executescript((HERE / "schema_0001.sql").read_text())
    with pytest.raises(StoreError, match="has the older schema 0001"):
        Store(path)
    with Studies(path) as opened:
        study = opened.study("old")
        (node,) = opened.tree(study)
        assert (node.parent, node.kind, node.choices, node.status) == (None, None, {}, "finished")
        assert [one.purpose for one in opened.snapshots()] == ["latest"]
        opened.add_units(study, [UnitRequest(0, 0, "first")])
        assert opened.claim(study, 0) is not None
    with Store(path) as reading:
        run = reading.run(1)
    assert [item.decision for item in run.decisions] == [0, 1, 2, 3, 4, 5]
    assert run.figures["best"]["loss"] == pytest.approx(2.0 / 47)


def test_studies_of_a_store_that_is_not_there_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no store at"):
        Studies(tmp_path / "none.db", create=False)
    assert os.listdir(tmp_path) == []  # noqa: PTH208
