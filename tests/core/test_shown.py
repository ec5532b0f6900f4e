"""What decisions and runs show of themselves: short, true, escaped."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.core.episodes import spec_of
from tests.core.sessions import Windows, session_of, train
from trimtab.controllers.fixed import RandomController
from trimtab.core.decision import Summary
from trimtab.core.shown import ShowsRun, decision_line


@pytest.fixture(scope="module")
def summary() -> Summary:
    spec = spec_of(1, decisions=12)
    session = session_of(RandomController(spec), spec, 60, seed=1)
    train(session, Windows(1))
    return session.summary


def test_a_decision_is_one_line_with_the_value_used(summary: Summary) -> None:
    decision = summary.decisions[3]
    (name,) = decision.used
    shown = repr(decision)
    assert "\n" not in shown
    assert f"step {decision.step}" in shown
    assert f"{name} {decision.used[name]:.3g}" in shown
    assert "array(" not in shown


def test_the_line_tells_the_move_against_the_decision_before(summary: Summary) -> None:
    one, two = summary.decisions[2:4]
    (name,) = one.applied
    two = replace(two, applied={name: 2 * one.applied[name]}, measured={"loss": 1.0})
    line = decision_line(two, replace(one, measured={"loss": 2.0}))
    assert "(x 2)" in line
    assert "(-50.0 %)" in line


def test_a_run_is_at_most_ten_lines(summary: Summary) -> None:
    lines = repr(summary).splitlines()
    assert len(lines) <= 10
    assert lines[0] == "Summary: finished: 60 steps, 12 decisions"
    assert repr(Summary()) == "Summary: not begun"
    full = replace(summary, restores=3, rollbacks=1, events=[{}] * 4)
    assert len(repr(full).splitlines()) <= 10
    assert "guard 1" in repr(full)


def test_names_are_escaped_for_a_notebook(summary: Summary) -> None:
    spite = "<script>alert(1)</script>"
    shown = replace(summary, best={"step": 3, spite: 1.0})
    assert spite in repr(shown)
    assert spite not in shown._repr_html_()
    assert "<b>Decision</b>" in summary.decisions[0]._repr_html_()


def test_a_controller_shows_its_summary(summary: Summary) -> None:
    class Steering(ShowsRun):
        @property
        def summary(self) -> Summary:
            return summary

    assert repr(Steering()).startswith("Steering: finished: 60 steps")
    assert len(repr(Steering()).splitlines()) <= 10
    assert "Steering" in Steering()._repr_html_()


def test_a_run_is_drawn_with_each_value_used(summary: Summary) -> None:
    pytest.importorskip("altair")
    pytest.importorskip("vl_convert")
    chart = summary.plot().to_dict()
    titles = [one["title"]["text"] for one in chart["vconcat"]]
    (name,) = summary.decisions[0].used
    assert titles == ["validation loss", f"{name} used"]
    rows = [row for rows in chart["datasets"].values() for row in rows]
    assert {"step": 5, "value": summary.schedule[5][name]} in rows
