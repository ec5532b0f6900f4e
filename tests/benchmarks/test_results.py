"""The page of results, from comparisons made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("vl_convert")
results = pytest.importorskip("benchmarks.results")  # absent beside an installed wheel

from trimtab.core.errors import SpecError  # noqa: E402
from trimtab.search.comparison.compare import Comparison, Entry, TaskResult  # noqa: E402
from trimtab.search.comparison.table import write_parquet  # noqa: E402
from trimtab.search.methods.base import Outcome, SingleRun  # noqa: E402


def run(test: float, seed: int = 0, spent: float = 1.0) -> SingleRun:
    return SingleRun(
        seed=seed,
        start={"lr": 1.0},
        start_scale=1.0,
        validation=test,
        test=test,
        spent=spent,
        seconds=2.0 * spent,
        steps=10,
        best_step=5,
        tested={"loss": test},
    )


LOSSES = {
    ("trimtab", 1): 0.12,
    ("reference", 1): 0.5,
    ("race", 1): 0.11,
    ("random", 1): 0.4,
    ("random", 8): 0.1,
    ("optuna", 1): 0.3,
    ("optuna", 8): 0.35,
}


def finished(folder: Path, losses: dict[tuple[str, int], float] = LOSSES) -> Path:
    """Write a comparison of one task whose tuned loss is .1 and whose median is .45."""
    pool = tuple(run(round(0.1 * i, 1), seed=i) for i in range(1, 9))
    task = TaskResult("t", "loss", "min", 1e-3, (run(0.1), run(0.1)), pool, 320.0)
    entries = tuple(
        Entry("t", method, budget, seed, None, Outcome((run(loss, seed, float(budget)),), 0))
        for (method, budget), loss in sorted(losses.items())
        for seed in (0, 1)
    )
    folder.mkdir()
    write_parquet(
        folder / "comparison.parquet", Comparison({"t": task}, entries, ()), {"numpy": "2"}
    )
    about = {
        "command": "/home/me/bin/trimtab compare --suite fast --out /home/me/o",
        "date": "2026-01-02",
        "machine": "two cores",
        "jobs": 2,
        "policy": "trimtab-1",
        "training_seconds": 600.0,
        "left_out": [{"task": "t", "method": "manual", "reason": "none"}],
    }
    (folder / "about.json").write_text(json.dumps(about))
    return folder


@pytest.fixture
def page(tmp_path: Path) -> str:
    out, picture = tmp_path / "RESULTS.md", tmp_path / "images" / "compute.png"
    readme = tmp_path / "README.md"
    readme.write_text("# T\n\n<!-- results -->\nold\n<!-- /results -->\n\n## More\n")
    paths = ["--out", str(out), "--picture", str(picture), "--readme", str(readme)]
    results.main([str(finished(tmp_path / "o")), *paths])
    assert picture.read_bytes().startswith(b"\x89PNG")
    return out.read_text(encoding="utf-8")


def test_losses_stand_above_the_steered_run_in_one_table(page):
    table = page.split("## Suite `fast`")[1].split("###")[0]
    order = [line.split("`")[1] for line in table.splitlines() if "`" in line]
    assert order == [
        *("random:8", "race", "trimtab", "optuna:1", "optuna:8", "random:1", "reference"),
    ]


def test_the_page_says_where_it_comes_from(page):
    for words in ("`trimtab compare --suite fast --out o`", "2026-01-02", "two cores", "numpy 2"):
        assert words in page
    assert "Left out: manual on t" in page
    assert "![Regret against compute, all methods](images/compute.png)" in page


def test_a_search_that_does_not_gain_from_its_budget_is_named(page):
    rows = [line for line in page.splitlines() if "of 1 tasks" in line]
    assert any("`optuna`" in row and "0 of 1 tasks; **not on average**" in row for row in rows)
    assert any("`random`" in row and row.rstrip(" |").endswith("1 of 1 tasks") for row in rows)


def test_when_not_to_use_it_names_what_ended_better(tmp_path):
    given = results.read_finished(finished(tmp_path / "a"))
    told = results.when_not(given.figures)
    assert told.startswith(
        "Do not use trimtab if you can pay for 8.0 whole runs or more (`random:8`"
    )
    losing = {**LOSSES, ("trimtab", 1): 0.3, ("random", 8): 0.31}
    told = results.when_not(results.read_finished(finished(tmp_path / "b", losing)).figures)
    assert "one of these one-run methods fits your task (`race` 0.03; steered 0.57)" in told
    assert "random:8" not in told


def test_when_nothing_ended_better_it_says_so_without_promising_more(tmp_path):
    winning = {**LOSSES, ("trimtab", 1): 0.09}
    told = results.when_not(results.read_finished(finished(tmp_path / "o", winning)).figures)
    assert told.startswith("Nothing that was compared ended clearly better")


def test_the_readme_gets_the_picture_the_cost_and_when_not_between_its_markers(page, tmp_path):
    found = (tmp_path / "README.md").read_text(encoding="utf-8")
    before, _, rest = found.partition("<!-- results -->")
    part, _, after = rest.partition("<!-- /results -->")
    assert (before, after) == ("# T\n\n", "\n\n## More\n")
    assert "![Regret against compute, all methods](images/compute.png)" in part
    assert "One steered run costs 1.00 whole runs" in part
    assert "**When not:** Do not use trimtab if" in part
    assert "1 task, 2 seeds, 2026-01-02" in part
    assert "old" not in part
    assert results.with_part(found, part.strip()) == found


@pytest.mark.parametrize("text", ["", "<!-- results -->", "<!-- /results --><!-- results -->"])
def test_a_page_without_both_markers_is_refused(text):
    with pytest.raises(SpecError, match="put these two lines"):
        results.with_part(text, "part")


def test_larger_steered_budgets_are_no_reason_against_it_and_have_a_row_of_gain(tmp_path):
    more = {**LOSSES, ("trimtab", 1): 0.11, ("trimtab", 8): 0.05, ("random", 8): 0.12}
    given = results.read_finished(finished(tmp_path / "o", more))
    assert given.figures["cost"]["steered"]["runs"] == pytest.approx(1.0)
    assert "trimtab:8" not in results.when_not(given.figures)
    (row,) = [
        row
        for row in results.budget_rows(given.comparison, given.figures)
        if row["method"] == "trimtab"
    ]
    assert (row["least"], row["most"], row["better_on"]) == (1, 8, 1)


def test_a_folder_without_a_finished_comparison_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        results.main([str(tmp_path)])
    assert ended.value.code == 2
    assert "holds no finished comparison" in capsys.readouterr().err
