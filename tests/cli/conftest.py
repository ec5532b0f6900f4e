"""A folder with a task to run, and the command line in this process."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from trimtab import cli

HERE = Path(__file__).parents[1]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder that holds tiny.py."""
    shutil.copy(HERE / "tiny_task.py", tmp_path / "tiny.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TRIMTAB_STORE", raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    # Another test's tiny.py may still be loaded.
    monkeypatch.delitem(sys.modules, "tiny", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return tmp_path


@pytest.fixture
def trimtab(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in this process; gives status, standard output, standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run
