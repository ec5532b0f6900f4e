"""The fault benchmark in a size of seconds, and its figures from rows made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from benchmarks.rescue import __main__ as command
from benchmarks.rescue import cost
from benchmarks.rescue.faults import FAULTS, FREQUENT
from benchmarks.rescue.page import chart, page, summary
from benchmarks.rescue.runs import MOMENTS, Unit, is_possible, run_unit
from trimtab.rescue.events import Fault


def row(arm: str, final: float | None, fault: str = "bias nan", **fields: Any) -> dict[str, Any]:
    made = {"task": "rows", "fault": fault, "moment": "middle", "arm": arm, "seed": 0}
    made |= {"survived": final is not None, "final": final, "noticed": None, "named": None}
    made |= {"as": "", "events": 0, "lost": 0, "weights": "a"}
    return made | fields


ROWS = [
    row("plain", 1.0, "clean", moment=""),
    row("rescue", 1.0, "clean", moment="", weights="a"),
    row("plain", None),
    row("best", 1.2),
    row("rescue", 1.01, noticed=0, named=0, events=1, lost=4, **{"as": "weights not finite"}),
    row("rescue", 1.5, "gradients zero", noticed=9, named=9, events=1),
    row("rescue", 1.5, "loader stuck", moment="end"),
]


def test_at_least_28_kinds_and_three_moments_are_there_and_ten_are_frequent() -> None:
    assert len(FAULTS) >= 28
    assert len(MOMENTS) == 3
    assert len(set(FREQUENT) & set(FAULTS)) == 10


def test_the_figures_of_an_arm_are_those_of_its_rows() -> None:
    found = summary(ROWS)
    ours, plain = found["arms"]["rescue"], found["arms"]["plain"]
    assert (ours["survived"], ours["good"], ours["median"]) == (1.0, 1.0, 1.01)
    assert (ours["noticed_soon"], ours["updates_lost"]) == (1.0, 4)
    assert ours["told_in_time"] == 1.0, "six steps before the end no loader can be known as stuck"
    assert (plain["survived"], plain["good"]) == (0.0, 0.0)
    assert found["best_or_better"] == {"cells": 1, "as_good": 1}
    assert found["false"]["clean"] == {"runs": 1, "with_events": 0, "bit_identical": 1}


def test_a_false_event_and_a_bit_that_differs_are_counted() -> None:
    bad = [*ROWS[:1], row("rescue", 1.0, "clean", moment="", weights="b", events=2)]
    assert summary(bad)["false"]["clean"] == {"runs": 1, "with_events": 1, "bit_identical": 0}


def test_the_page_tells_where_the_rescue_is_not_good() -> None:
    text = page([*ROWS, row("rescue", 1.4, "layer zeroed")], "python -m benchmarks.rescue")
    assert "* layer zeroed, middle, rows: 1.400" in text
    assert "1 of 2 cells" in text
    assert "| bias nan | – | 1.010 | – | 1.010 | died | 1.20 | 0 | weights not finite |" in text


def test_the_picture_has_a_cell_for_each_fault_and_arm_that_was_run() -> None:
    made = chart(ROWS)
    (values,) = made["datasets"].values() if "datasets" in made else [made["data"]["values"]]
    assert {(one["fault"], one["told"]) for one in values} == {
        ("bias nan", "died"),
        ("bias nan", "1.20"),
        ("bias nan", "1.01"),
    }


def test_a_clean_run_ends_with_the_plain_loops_bits() -> None:
    plain, ours = (run_unit(Unit("images", "clean", "", arm, 3)) for arm in ("plain", "rescue"))
    assert ours["events"] == 0
    assert ours["weights"] == plain["weights"]


@pytest.mark.parametrize("fault", sorted(FREQUENT))
def test_the_most_frequent_faults_are_mended_or_told(fault: str) -> None:
    base = run_unit(Unit("rows", "clean", "", "plain", 4))["final"]
    made = run_unit(Unit("rows", fault, "middle", "rescue", 4))
    assert made["survived"], made["error"]
    assert made["before"] == 0
    assert made["noticed"] <= 10
    assert not FAULTS[fault].mendable or made["final"] <= 1.03 * base
    assert made["as"] in {str(name) for name in FAULTS[fault].names}


def test_every_name_that_is_awaited_is_one_of_the_rescues() -> None:
    assert all(set(fault.names) <= set(Fault) for fault in FAULTS.values())


def test_a_controller_meets_no_fault_of_a_loader_and_a_rescue_none_of_validation() -> None:
    assert not is_possible(Unit("rows", "loader raises", "end", "guard", 0))
    assert not is_possible(Unit("rows", "validation nan", "end", "rescue", 0))


def test_what_was_made_is_not_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tmp_path / "rows.jsonl"
    assert command.main(["--quick", "--json", "--rows", str(rows)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["arms"]["rescue"]["good"] == found["arms"]["rescue"]["survived"] == 1.0
    with rows.open("a") as file:
        file.write('{"cut off')
    monkeypatch.setattr(command, "run_unit", lambda unit: pytest.fail(f"{unit} was made again"))
    assert command.main(["--quick", "--json", "--rows", str(rows)]) == 0


def test_an_unknown_arm_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--arms", "plain,prayer"])
    assert "--arms: unknown prayer (have: plain," in capsys.readouterr().err


def test_each_arm_has_a_row_with_its_share_of_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--json", "--nets", "transformer", "--cycles", "1", "--warm-up", "0"]
    assert cost.main(options) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [one["arm"] for one in rows] == list(cost.ARMS)
    for one in rows:
        assert one["share"] == pytest.approx(
            one["added_us_per_step"] / (1e3 * one["ms_per_step"]), rel=1e-6
        )


def test_an_unknown_network_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cost.main(["--nets", "transformer,lstm"])
    assert "unknown lstm (have: perceptron," in capsys.readouterr().err
