"""The journal: what was kept is there again, whatever happened in between."""

from __future__ import annotations

import importlib.metadata
import math
import re
import resource
import shutil
import signal
from pathlib import Path

import pytest

from tests.test_layering import SOURCE, import_graph
from trimtab.core import registry
from trimtab.core.errors import SpecError, StoreError
from trimtab.envs.simulators.families.registry import make_family
from trimtab.records.trackers.fan_out import Recorders
from trimtab.search.comparison.jobs import run_job
from trimtab.search.comparison.journal import Journal, code_fingerprint, fingerprint

ME = {"code": "1", "numpy": "2.0"}


def test_what_was_added_is_there_again(tmp_path):
    with Journal(tmp_path / "new", ME) as journal:
        journal.add("a", {"loss": 0.1, "worst": math.inf, "none": math.nan})
        journal.add("b", {"loss": 2})
        before = dict(journal.results)
    with Journal(tmp_path / "new", ME) as journal:
        assert journal.results == before
        assert journal.results["a"] == {"loss": 0.1, "worst": math.inf, "none": None}


def test_a_line_that_was_cut_off_is_dropped_and_the_next_one_is_whole(tmp_path):
    with Journal(tmp_path, ME) as journal:
        journal.add("a", {"loss": 1})
        journal.add("b", {"loss": 2})
    path = tmp_path / "results.jsonl"
    whole = path.read_bytes()
    for cut in range(1, len(whole)):
        path.write_bytes(whole[:-cut])
        with Journal(tmp_path, ME) as journal:
            left = dict(journal.results)
            journal.add("c", {"loss": 3})
        with Journal(tmp_path, ME) as journal:
            assert journal.results == {**left, "c": {"loss": 3}}
    assert left == {}


@pytest.mark.parametrize(
    "damaged", [b'{"key":"a","res', b"\xff\xfe", b"\0\0\0", b"[1]", b'{"key":"a"}', b""]
)
def test_a_damaged_line_is_named_and_nothing_is_touched(tmp_path, damaged):
    with Journal(tmp_path, ME) as journal:
        for key in "abc":
            journal.add(key, {"loss": 1})
    path = tmp_path / "results.jsonl"
    lines = path.read_bytes().split(b"\n")
    for number, remedy in ((1, "choose another folder"), (3, "delete this line")):
        path.write_bytes(b"\n".join([*lines[: number - 1], damaged, *lines[number:]]))
        before = path.read_bytes()
        with pytest.raises(StoreError, match=rf"results\.jsonl: line {number} .*; {remedy}"):
            Journal(tmp_path, ME).__enter__()
        assert path.read_bytes() == before
    path.write_bytes(b"\n".join(lines[:2] + lines[3:]))  # as the message says
    with Journal(tmp_path, ME) as journal:
        assert sorted(journal.results) == ["a", "c"]


def test_a_full_disk_is_one_error_and_what_was_kept_is_there_again(tmp_path):
    with pytest.raises(StoreError, match=r"results\.jsonl cannot be written \(File too large\)"):
        _add_until_full(tmp_path)
    with Journal(tmp_path, ME) as journal:
        assert sorted(journal.results) == ["a"]
        journal.add("b", {"loss": 2})
    with Journal(tmp_path, ME) as journal:
        assert sorted(journal.results) == ["a", "b"]


def _add_until_full(folder):
    old, before = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with Journal(folder, ME) as journal:
            journal.add("a", {"loss": 1})
            size = (folder / "results.jsonl").stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5, old[1]))
            journal.add("b", {"loss": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, before)


def test_results_of_other_versions_are_never_mixed(tmp_path):
    with Journal(tmp_path, ME):
        pass
    with pytest.raises(SpecError, match=r"numpy 2\.0 there, 2\.1 here"):
        Journal(tmp_path, {**ME, "numpy": "2.1"}).__enter__()
    with pytest.raises(SpecError, match="torch – there, 3 here"):
        Journal(tmp_path, {**ME, "torch": "3"}).__enter__()


def test_a_second_comparison_in_the_folder_is_kept_out(tmp_path):
    with Journal(tmp_path, ME), pytest.raises(SpecError, match="used by another comparison"):
        Journal(tmp_path, ME).__enter__()
    with Journal(tmp_path, ME):
        pass


def test_the_fingerprint_names_the_code_of_a_users_task(folder):
    before = fingerprint(["tiny:make", "simulated/mlp"])
    assert before == fingerprint(["simulated/mlp", "tiny:make"])
    path = folder / "tiny.py"
    path.write_text(path.read_text() + "\n")
    after = fingerprint(["tiny:make"])
    assert {name for name in before if before[name] != after[name]} == {"task code"}


# What hangs on the package's own files, shown on a copy of them.


def working_files() -> list[Path]:
    """Return the files that a comparison's worker can reach, as paths inside the package.

    They are followed from the function that does a job, and from all methods and tasks, through
    every import; a simulator is chosen by a name that is put together, so all of them count.
    Trackers are left out: they are told of a run, and nothing hears from them.
    """
    graph, left = import_graph(SOURCE), {run_job.__module__}
    for kind in ("method", "task"):
        for entry in importlib.metadata.entry_points(group=registry.GROUPS[kind]):
            left.add(entry.module)
    simulators = make_family.__module__.rpartition(".")[0]
    left |= {name for name in graph if name.startswith(simulators)}
    reached: set[str] = set()
    while left:
        reached.add(left.pop())
        left |= {name for one in reached for name in graph.get(one, ())} - reached
    trackers = Recorders.__module__.rpartition(".")[0]
    modules = {name for name in reached & graph.keys() if not name.startswith(trackers)}
    files = []
    for name in modules:
        place = SOURCE.joinpath(*name.split(".")[1:])
        file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        files.append(file.relative_to(SOURCE))
    tables = [file.relative_to(SOURCE) for file in SOURCE.rglob("distributions.toml")]
    return sorted([*files, *tables])


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    copied = tmp_path_factory.mktemp("copied") / "trimtab"
    shutil.copytree(SOURCE, copied, ignore=shutil.ignore_patterns("__pycache__"))
    return copied


def code_with(package, path, text="# changed\n"):
    """Return the fingerprint with a longer file, or a new one, and take that back."""
    file = package / path
    before = file.read_bytes() if file.exists() else None
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes((before or b"") + text.encode())
    found = code_fingerprint(package)
    if before is None:
        file.unlink()
    else:
        file.write_bytes(before)
    return found


def test_a_copy_of_the_package_is_the_same_code(package):
    assert code_fingerprint(package) == fingerprint([])["code"]


def test_every_file_that_can_change_a_result_changes_the_fingerprint(package):
    before, files = code_fingerprint(package), working_files()
    assert len(files) > 100
    assert [path for path in files if code_with(package, path) == before] == []


@pytest.mark.parametrize(
    "path",
    [
        "a_new_part.py",
        "search/engines/a.py",
        "search/methods/deeper/a.py",
        "tasks/torch/a.py",
        "adapters/keras/a.py",
        "records/store/a.py",
    ],
)
def test_a_file_in_a_folder_of_any_depth_changes_the_fingerprint(package, path):
    assert code_with(package, path) != code_fingerprint(package)


@pytest.mark.parametrize(
    "path",
    [
        "../../docs/studies.md",
        "policies/trimtab-1.md",
        "records/assets/report.css",
        "records/reports/page.py",
        "records/reports/assets/watch.js",
        "records/export/schedule.py",
        "records/trackers/wandb.py",
        "cli/compare.py",
        "agents/training/ppo.py",
        "core/__pycache__/spec.cpython-313.pyc",
    ],
)
def test_what_only_shows_does_not_change_the_fingerprint(package, path):
    assert code_with(package, path) == code_fingerprint(package)


def test_todays_pages_and_commands_do_not_change_the_fingerprint(package):
    before = code_fingerprint(package)
    words = {"charts", "cli", "report", "reports", "watch"}
    shown = [
        file
        for file in package.rglob("*.py")
        if words & {*re.split(r"\W|_", file.relative_to(package).as_posix())}
    ]
    assert len(shown) > 10
    assert [file for file in shown if code_with(package, file) != before] == []
