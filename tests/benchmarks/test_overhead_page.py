"""The page of what steering costs: a row a task, and which of them miss what was aimed at."""

import pytest

pytest.importorskip("torch")

from benchmarks.overhead import page

ROW = {
    "name": "tabular/letters",
    "variant": "small",
    "steps": 1500,
    "ms_per_step": 2.714,
    "steering_us_per_step": 48.6,
    "share": 0.0179,
    "snapshot_share": 0.0123,
    "within_limits": True,
}


def test_each_row_says_whether_it_is_within_what_was_aimed_at() -> None:
    late = ROW | {"name": "vision/animals", "steering_us_per_step": 71.4, "within_limits": False}
    told = page([ROW, late], {"cores": 2, "torch": "2.13"}, "python -m benchmarks.overhead")
    assert "| `tabular/letters` | small | 1500 | 2.71 | 49 | 1.79% | 1.23% | yes |" in told
    assert "| `vision/animals` | small | 1500 | 2.71 | 71 | 1.79% | 1.23% | **no** |" in told
    assert "`python -m benchmarks.overhead`; cores 2, torch 2.13." in told
