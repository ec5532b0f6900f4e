"""The journal: what was kept is there again, whatever happened in between."""

from __future__ import annotations

import math
import resource
import signal

import pytest

from trimtab.core.errors import SpecError, StoreError
from trimtab.search.journal import Journal, fingerprint

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
