"""The study of many hyperparameters: its plans, its table, its picture."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("jax")
many = pytest.importorskip("benchmarks.many_hyperparameters")  # absent beside a wheel


def figures(shift: float) -> dict[str, Any]:
    def around(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 0.1, "high": value + 0.1}

    return {
        "regret": {"random:8": around(0.5 + shift), "trimtab": around(shift), "pbt:8": None},
        "final": {"random": 0.7, "trimtab": 0.3},
    }


FOUND = {"1": figures(0.0), "8 of 32": figures(4.0)}


def test_the_table_has_a_column_for_each_count_and_a_dash_for_what_was_not_run():
    lines = many.table(FOUND).splitlines()
    assert lines[0] == "| method | 1 | 8 of 32 |"
    assert lines[2].startswith("| `trimtab` | 0.00 (-0.10 .. 0.10), 0.3 | 4.00 (3.90 .. 4.10)")
    assert lines[-1] == "| `pbt` | – | – |"


def test_the_picture_is_drawn(tmp_path):
    pytest.importorskip("vl_convert")
    from trimtab.records.reports.page import draw

    draw(tmp_path / "many.png", many.chart(FOUND))
    assert (tmp_path / "many.png").read_bytes().startswith(b"\x89PNG")


def test_plans_steer_as_many_as_they_say_and_the_tasks_of_one_share_a_shape():
    from trimtab.core.registry import make_task
    from trimtab.defaults import policy_path

    for count, number in (("1", 1), ("4", 4), ("8", 8), ("8 of 32", 32)):
        plan = many.plan_for(count, policy_path("trimtab-1"), seeds=2, tasks=3)
        assert len(plan.hyperparameters) == number
        assert plan.hyperparameters[0] == "lr"
        assert len({make_task(name).bucket for name in plan.tasks}) == 1
        assert len(set(plan.tasks)) == 3


def test_the_page_shows_no_path_of_the_machine(tmp_path, monkeypatch):
    from trimtab.records.reports import page as frame

    monkeypatch.setattr(frame, "draw", lambda *given: None)
    monkeypatch.setattr(many, "measured", lambda *given: figures(0.0))
    page, picture = tmp_path / "page.md", tmp_path / "p.png"
    page.write_text("<!-- results --><!-- end of results -->")
    given = ["--counts", "1", "--out", str(tmp_path / "o"), "--page", str(page)]
    many.main([*given, "--picture", str(picture)])
    told = page.read_text(encoding="utf-8")
    assert "many_hyperparameters --counts 1 --out o --page page.md --picture p.png`" in told
    assert str(tmp_path) not in told
