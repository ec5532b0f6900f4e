"""The report of a comparison, from rows made by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("altair")
pytest.importorskip("vl_convert")

from tests.records.reports.test_run import too_wide
from trimtab.records.reports.comparison import write_comparison_report
from trimtab.search.comparison.compare import Comparison, Entry, TaskResult
from trimtab.search.comparison.cost import cost_answer
from trimtab.search.comparison.figures import comparison_figures
from trimtab.search.comparison.table import result_rows
from trimtab.search.methods.base import Outcome, SingleRun


def run(test: float, spent: float = 1.0) -> SingleRun:
    fields = {"seed": 0, "start": {"lr": 1.0}, "start_scale": 1.0, "steps": 10, "best_step": 5}
    return SingleRun(**fields, validation=test, test=test, spent=spent, seconds=spent)  # type: ignore[arg-type]


def report(path: Path, losses: dict[tuple[str, int], float]) -> str:
    pool = tuple(run(round(0.1 * i, 1)) for i in range(1, 9))
    task = TaskResult("<t>", "loss", "min", 1e-3, (run(0.1), run(0.1)), pool, 320.0)
    entries = tuple(
        Entry("<t>", method, budget, 0, None, Outcome((run(loss, float(budget)),), 0))
        for (method, budget), loss in losses.items()
    )
    found = Comparison({"<t>": task}, entries, ())
    figures = comparison_figures(found)
    figures["cost"] = cost_answer(figures, 600.0)
    write_comparison_report(path, result_rows(found), figures, {"numpy": "2"})
    return path.read_text(encoding="utf-8")


def test_the_report_answers_what_a_steered_run_costs_and_saves(tmp_path):
    losses = {("trimtab", 1): 0.2, ("random", 1): 0.4, ("random", 8): 0.1, ("race", 1): 0.1}
    page = report(tmp_path / "c.html", {**losses, ("trimtab", 4): 0.1})
    assert "<h2>What one steered run costs, and saves</h2>" in page
    assert "One steered run costs 1.00 whole runs (320 examples, 1 s)" in page
    assert "never at this quality" in page  # the race ends as well in one run
    assert "&lt;t&gt;" in page


def test_the_report_begins_with_a_verdict(tmp_path):
    losses = {("trimtab", 1): 0.2, ("random", 1): 0.4, ("random", 8): 0.1}
    page = report(tmp_path / "c.html", losses)
    (headline,) = re.findall(r"<h1>(.*?)</h1>", page)
    assert re.match(
        r"One steered run: gap to tuned [\d.−-]+ \(0 tuned, 1 a random run\), 2 of 3;", headline
    )
    assert "random:8 comes closest" in headline
    assert "the compute of 8 runs" in headline
    first = report(tmp_path / "d.html", {("trimtab", 1): 0.1, ("random", 1): 0.4})
    assert "the smallest of 2 methods" in first


def test_a_task_has_its_methods_on_the_axis_the_best_on_top(tmp_path):
    losses = {("race", 1): 0.3, ("trimtab", 1): 0.2, ("random", 8): 0.1}
    page = report(tmp_path / "c.html", losses)
    (text,) = re.findall(r'<script type="application/json" id="charts">(.*?)</script>', page)
    first, *others = json.loads(text)
    assert first["layer"][0]["encoding"]["y"]["sort"] == ["random:8", "trimtab", "race"]
    rows = [row for rows in first["datasets"].values() for row in rows]
    assert {row["compute"] for row in rows if "compute" in row} == {"1 run", "8 runs"}
    assert all(chart["usermeta"]["folded"] for chart in others)
    own = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"regret|n\*|whole runs (spent|to spend)", own, re.IGNORECASE)


@pytest.mark.framework
@pytest.mark.parametrize("width", [1300, 420])
def test_nothing_is_wider_than_the_window(tmp_path, width):
    losses = {("race", 1): 0.3, ("trimtab", 1): 0.2, ("random", 8): 0.1}
    report(tmp_path / "c.html", losses)
    assert too_wide(tmp_path / "c.html", width) == []


def test_a_report_without_steered_runs_has_no_cost(tmp_path):
    page = report(tmp_path / "c.html", {("random", 1): 0.4, ("random", 8): 0.1})
    assert "costs, and saves" not in page


def test_no_name_stands_on_the_larger_name_of_the_steered_run():
    from trimtab.records.reports.comparison_charts import _HEIGHT, _NAME_HEIGHT, _names

    points = [
        {"name": label, "label": label, "method": label, "kind": kind, "charge": 1.0}
        | {"regret": regret, "told": f"{regret}"}
        for label, kind, regret in (
            ("below", "single", 0.0),
            ("trimtab", "steered", 0.01),
            ("above", "single", 0.02),
        )
    ]
    searches = [
        {"name": f"s{charge}", "label": f"s{charge}", "method": f"s{charge}", "kind": "search"}
        | {"charge": charge, "regret": 0.1, "told": "0.1"}
        for charge in (4.0, 16.0)
    ]
    (beside,) = {row["from"] for row in _names(points + searches, (-1.0, 2.0))[:2]}
    assert 16.0 < beside < 32.0, "names of searches stand in one column behind all marks"
    heights = {row["label"]: row["regret"] for row in _names(points, (-1.0, 2.0))}
    assert list(heights) == ["below", "trimtab", "above"]
    gap = _NAME_HEIGHT / _HEIGHT * 3.0
    assert heights["trimtab"] - heights["below"] == pytest.approx(1.5 * gap)
    assert heights["above"] - heights["trimtab"] == pytest.approx(1.5 * gap)
