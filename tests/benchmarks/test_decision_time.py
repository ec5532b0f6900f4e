from __future__ import annotations

import json

import pytest

decision_time = pytest.importorskip("benchmarks.decision_time")  # absent beside a wheel


def test_one_row_says_what_a_decision_takes(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--json", "--runs", "1", "--tokens", "1,3", "--policy", "trimtab-0"]
    assert decision_time.main(asked) == 0
    rows = json.loads(capsys.readouterr().out)["decisions"]
    assert [row["tokens"] for row in rows] == [1, 3]
    assert all(0 < row["forward_milliseconds"] < row["milliseconds"] < 1000 for row in rows)
    assert [row["bar_milliseconds"] for row in rows] == [1.0, None]
    assert [row["decisions"] for row in rows] == [decision_time.DECISIONS] * 2


def test_a_controller_that_fails_gives_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(policy: str, items: object, *, decisions: int) -> object:
        spec, controller = made(policy, items, decisions=decisions)
        monkeypatch.setattr(controller, "act", lambda observation: 1 / 0)
        return spec, controller

    made = decision_time.controller_for
    monkeypatch.setattr(decision_time, "controller_for", broken)
    with pytest.raises(SystemExit, match="ZeroDivisionError"):
        decision_time.measure(1, "trimtab-0", 1)
