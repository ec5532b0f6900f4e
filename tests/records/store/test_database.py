"""A store in a folder that nothing can be written to is read all the same."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.records.store.test_store import INFO, drive
from trimtab.cli.main import main
from trimtab.core.errors import StoreError
from trimtab.records.store.database import reading_address
from trimtab.records.store.rows import UnitRequest
from trimtab.records.store.store import Store, StoreRecorder
from trimtab.records.store.studies import Studies

_NOBODY = 65534

Closed = Callable[[], AbstractContextManager[Path]]


@contextmanager
def without_privileges() -> Iterator[None]:
    """Have no more rights than a user has, since root may write everywhere."""
    if os.geteuid():
        yield
        return
    os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Give a folder that others than its owner can look into, unlike pytest's own."""
    made = Path(tempfile.mkdtemp(prefix="trimtab-test-"))
    yield made
    made.chmod(0o700)
    shutil.rmtree(made)


@pytest.fixture
def closed(folder: Path) -> Closed:
    """Give a store with a study and a run, read while its folder cannot be written to."""

    @contextmanager
    def made() -> Iterator[Path]:
        folder.chmod(0o555)
        with without_privileges():
            with pytest.raises(PermissionError):
                (folder / "new").write_bytes(b"")
            yield folder / "runs.db"

    drive(StoreRecorder(folder / "runs.db", INFO))
    with Studies(folder / "runs.db") as opened:
        study = opened.open("s", task="t", method="trimtab", budget=1.0, seed=0, settings={})
        opened.add_units(study, [UnitRequest(0, 0, "first")])
    with Store(folder / "runs.db") as reading:  # everything that is needed is imported
        assert len(reading.run(1).decisions) == 6
    assert sorted(path.name for path in folder.iterdir()) == ["runs.db"]
    return made


def test_runs_are_read_where_nothing_can_be_written(closed: Closed) -> None:
    with closed() as path, Store(path) as reading:
        assert len(reading.run("latest").decisions) == 6


def test_studies_are_listed_where_nothing_can_be_written_and_not_changed(
    closed: Closed, capsys: pytest.CaptureFixture[str]
) -> None:
    with closed() as path:
        with pytest.raises(SystemExit) as ended:
            main(["studies", "--store", str(path), "--json"])
        assert ended.value.code == 0
        assert '"study": "s"' in capsys.readouterr().out
        with Studies(path, create=False) as opened:
            study = opened.study("s")
            with pytest.raises(StoreError, match="is read-only; make the file and its folder"):
                opened.claim(study, 0)


def test_a_store_that_somebody_has_open_is_read_with_its_last_rows(
    closed: Closed, folder: Path
) -> None:
    with Studies(folder / "runs.db") as other:
        other.add_units(other.study("s"), [UnitRequest(1, 0, "restart")])
        with closed() as path, Studies(path, create=False) as opened:
            assert len(opened.units(opened.study("s"))) == 2


def test_rows_that_only_a_log_without_index_holds_are_an_error_that_says_what_to_do(
    closed: Closed, folder: Path, tmp_path: Path
) -> None:
    other = sqlite3.connect(folder / "runs.db")
    other.execute("UPDATE studies SET budget = 7.0")
    other.commit()
    for name in ("runs.db", "runs.db-wal"):  # as a killed process leaves them, but for the index
        shutil.copy(folder / name, tmp_path / name)
    other.close()
    for name in ("runs.db", "runs.db-wal"):
        shutil.copy(tmp_path / name, folder / name)
    with closed() as path:
        for opened in (Store, lambda store: Studies(store, create=False)):
            with pytest.raises(StoreError, match=r"copy runs\.db and runs\.db-wal into a folder"):
                opened(path)
    with Studies(tmp_path / "runs.db", create=False) as copied:
        assert copied.study("s").budget == 7.0


def test_a_store_is_read_as_usual_where_its_folder_can_be_written(tmp_path: Path) -> None:
    with Studies(tmp_path / "runs.db"):
        pass
    assert reading_address(tmp_path / "runs.db") is None


def test_a_name_with_marks_of_a_uri_is_read_where_nothing_can_be_written(
    closed: Closed, folder: Path
) -> None:
    odd = folder / "a b#c%20.db"
    (folder / "runs.db").rename(odd)
    with closed(), Store(odd) as reading:
        assert reading.run_ids() == [1]
