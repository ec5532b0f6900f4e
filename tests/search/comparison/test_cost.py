"""The cost answer, on figures made by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from trimtab.records.reports.comparison import cost_cells
from trimtab.search.comparison.cost import cost_answer, cost_rows


def figures(steered: float, regrets: dict[str, float], seconds: float = 2.0) -> dict[str, Any]:
    """A budget of n costs n runs of 100 examples, each as long as a steered one."""
    labels = ["trimtab", *regrets]
    runs = {label: float(label.partition(":")[2] or 1) for label in labels}
    beside = {"regret": steered, "spent": 1.0, "examples": 100.0, "seconds": seconds}
    return {
        "methods": labels,
        "regret": {
            label: {"value": value, "low": value, "high": value}
            for label, value in {"trimtab": steered, **regrets}.items()
        },
        "spent": runs,
        "examples": {label: 100.0 * n for label, n in runs.items()},
        "seconds": {label: seconds * n for label, n in runs.items()},
        "steered": dict.fromkeys(labels, beside),
    }


SEARCH = {"random:1": 1.0, "random:4": 0.5, "random:16": 0.0}


def test_a_search_reaches_equal_quality_between_two_budgets_on_the_log_scale():
    (row,) = cost_rows(figures(0.25, SEARCH), 600.0)
    assert row["reaches"] == "yes"
    assert row["runs"] == pytest.approx(8.0)  # half way from 4 to 16 in log runs
    assert row["saved_runs"] == pytest.approx(7.0)
    assert row["saved_examples"] == pytest.approx(700.0)
    assert row["saved_seconds"] == pytest.approx(14.0)
    assert row["paid_back_after"] == math.ceil(600 / 14)


def test_a_search_that_never_gets_there_needs_more_than_was_tried():
    (row,) = cost_rows(figures(-0.1, SEARCH), 600.0)
    assert (row["reaches"], row["runs"]) == ("beyond", pytest.approx(16.0))
    assert row["paid_back_after"] == math.ceil(600 / 30)  # at most
    told = cost_answer(figures(-0.1, SEARCH), 600.0)["sentence"]
    assert "random search needs more than 16.0 to end as well, so at least 15.0" in told
    assert "are paid back after at most 20 such runs" in told


def test_a_loss_is_told_as_plainly_as_a_win():
    answer = cost_answer(figures(1.5, SEARCH), 600.0)
    assert answer["methods"][0]["reaches"] == "below"
    assert answer["methods"][0]["paid_back_after"] is None
    assert answer["sentence"].endswith(
        "random search ends as well with 1.0, so nothing is saved and the policy's meta-training "
        "never pays for itself at this quality."
    )
    assert cost_answer(figures(1.5, SEARCH), None)["sentence"].endswith("so nothing is saved.")


def test_a_search_that_was_run_with_one_larger_budget_bounds_what_is_saved():
    told = cost_answer(figures(0.3, {"random:8": 0.1}), 600.0)["sentence"]
    assert told.endswith(
        "random search ends as well with 8.0, the least that was run, so at most 7.0 "
        "(700 examples, 14 s) are saved; a smaller budget of it would tell."
    )


def test_the_cells_of_a_table_say_what_is_a_bound_and_what_never_pays():
    row = {"method": "random", "reaches": "yes", "runs": 8.0, "saved_runs": 7.0}
    row |= {"saved_examples": 700.0, "saved_seconds": 14.0, "paid_back_after": 43}
    assert cost_cells(row) == ("random", "8.0", "700", "14", "43 runs")
    tried = row | {"reaches": "beyond"}
    assert cost_cells(tried)[1::3] == ("more than 8.0", "at most 43 runs")
    lost = row | {"reaches": "below", "saved_seconds": -1.0, "paid_back_after": None}
    assert cost_cells(lost)[1::3] == ("at most 8.0", "never at this quality")
    alone = dict.fromkeys(("saved_runs", "saved_examples", "saved_seconds", "paid_back_after"))
    assert cost_cells(row | {"reaches": "beyond"} | alone) == (
        *("random", "not in one run", "–", "–", "–"),
    )


def test_a_method_of_one_run_saves_nothing_that_can_be_counted():
    rows = {row["method"]: row for row in cost_rows(figures(0.25, {"cosine": 1.0, "race": 0.2}))}
    assert (rows["cosine"]["reaches"], rows["cosine"]["saved_runs"]) == ("beyond", None)
    assert (rows["race"]["reaches"], rows["race"]["saved_runs"]) == ("below", pytest.approx(0.0))


def test_a_method_is_measured_against_steered_runs_of_its_own_tasks():
    given = figures(0.25, SEARCH)
    other = {"regret": 0.5, "spent": 2.0, "examples": 200.0, "seconds": 4.0}
    given["steered"] = dict.fromkeys(given["methods"], other)
    (row,) = cost_rows(given)
    assert (row["runs"], row["saved_runs"]) == (pytest.approx(4.0), pytest.approx(2.0))


def test_without_steered_runs_there_is_no_answer():
    given = figures(0.0, SEARCH)
    given["regret"]["trimtab"] = None
    assert cost_answer(given, 600.0) == {}
