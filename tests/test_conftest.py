"""The tiers keep their promise: CI sees no silent skip, golden files are compared, one thread."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest

SUITE = """
import pytest

@pytest.mark.framework
def test_with_a_framework():
    pytest.skip("no framework here")

@pytest.mark.framework
@pytest.mark.xfail(reason="known", strict=True)
def test_expected_to_fail():
    raise AssertionError

def test_of_the_unit_tier():
    pytest.skip("not on this machine")
"""
SKIPPED_MODULE = """
import pytest
pytest.importorskip("no_such_package")
pytestmark = pytest.mark.{marker}
"""
GOLDEN = 'def test_text(golden):\n    golden("greeting.txt", "hello\\n")\n'


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A folder with the project's conftest.py, for tests about tests."""
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nmarkers =\n    framework: needs a framework\n    slow: x\n    gpu: x\n"
    )
    return tmp_path


def run(suite: Path, *arguments: str, no_skip: str = "") -> str:
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=suite,
        env=os.environ | {"TRIMTAB_NO_SKIP": no_skip},
        capture_output=True,
        text=True,
        check=False,
    )
    return finished.stdout


@pytest.mark.parametrize(
    ("no_skip", "counts"),
    [("", "2 skipped, 1 xfailed"), ("1", "1 failed, 1 skipped, 1 xfailed")],
)
def test_a_skipped_framework_test_fails_in_ci(suite: Path, no_skip: str, counts: str) -> None:
    (suite / "test_suite.py").write_text(SUITE)
    assert counts in run(suite, no_skip=no_skip)


@pytest.mark.parametrize(
    ("marker", "no_skip", "counts"),
    [("framework", "", "1 skipped"), ("framework", "1", "1 error"), ("slow", "1", "1 skipped")],
)
def test_a_framework_module_skipped_whole_fails_in_ci(
    suite: Path, marker: str, no_skip: str, counts: str
) -> None:
    (suite / "test_suite.py").write_text(SKIPPED_MODULE.format(marker=marker))
    assert counts in run(suite, no_skip=no_skip)


def test_a_golden_file_is_written_on_request_and_compared_otherwise(suite: Path) -> None:
    (suite / "test_suite.py").write_text(GOLDEN)
    assert "no golden file greeting.txt" in run(suite)
    assert "1 passed" in run(suite, "--update-golden")
    assert "1 passed" in run(suite)
    (suite / "golden" / "greeting.txt").write_text("farewell\n")
    assert "1 failed" in run(suite)


def test_tests_run_with_one_thread_and_without_chance() -> None:
    assert os.environ["OMP_NUM_THREADS"] == "1"
    assert hypothesis.settings.default is not None
    assert hypothesis.settings.default.derandomize
    torch = pytest.importorskip("torch")
    assert torch.get_num_threads() == 1
