"""A study's report: its tree, what its runs came to, its choices; every name escaped."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.records.reports.test_run import too_wide
from tests.records.study_rows_made import SPITE, made_study
from trimtab.cli.main import main
from trimtab.core.errors import SpecError, UnknownNameError
from trimtab.records.reports import importance, study_view
from trimtab.records.reports.importance import importance_of
from trimtab.records.reports.study import (
    StudyReport,
    read_study_report,
    study_figures,
    study_report_html,
    write_study_picture,
    write_study_report,
)
from trimtab.records.reports.study_tree import course, course_svg, tree_rows, tree_svg
from trimtab.records.reports.study_view import StudyView, read_view
from trimtab.records.store.store import Store


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> StudyReport:
    """The report of a study of 40 runs, of which every third is a fork."""
    path = tmp_path_factory.mktemp("study") / "runs.db"
    made_study(path, 40)
    return read_study_report("made", path)


@pytest.fixture(scope="module")
def spite(tmp_path_factory: pytest.TempPathFactory) -> StudyReport:
    """The report of a running study in which every name is hostile."""
    path = tmp_path_factory.mktemp("spite") / "runs.db"
    made_study(path, 18, text=SPITE, going=1, status="running")
    return read_study_report("made", path)


def view_of(path: Path | str) -> StudyView:
    with Store(path) as opened:
        return read_view(opened, "made")


def specifications(page: str) -> list[dict[str, Any]]:
    (text,) = re.findall(r'<script type="application/json" id="charts">(.*?)</script>', page)
    return json.loads(text)


# What is read.


def test_a_study_is_read_alike_from_every_database(store: str, tmp_path: Path) -> None:
    made_study(store, 20, going=2, status="running")
    made_study(tmp_path / "same.db", 20, going=2, status="running")
    found, same = view_of(store), view_of(tmp_path / "same.db")
    assert found.runs == same.runs
    assert (found.status, found.workers, found.total_steps) == ("running", 2, 200)


def test_what_takes_room_stays_in_the_database(store: str) -> None:
    made_study(store, 3)
    with Store(store) as opened:
        units = study_view._units(opened, 1)
    assert all("seconds" in unit.outcome for unit in units)
    assert not any({"schedule", "path"} & set(unit.outcome) for unit in units)


def test_a_fork_hangs_below_its_parent_from_where_it_began(made: StudyReport) -> None:
    rows = tree_rows(made.view)
    fork = next(row for row in rows if row.run.label == "5")
    assert fork.parent is not None
    assert rows[fork.parent].run.label == "4"
    assert (fork.run.begins, fork.run.change) == (0.3, "the moves shifted up")
    assert sorted(row.run.unit for row in rows) == list(range(40))


def test_the_best_path_leads_from_a_beginning_to_the_lowest_loss(made: StudyReport) -> None:
    path = made.view.best_path
    assert path[-1].loss == min(run.loss for run in made.view.runs if run.is_candidate)
    assert path[0].parent is None
    assert [row.run for row in tree_rows(made.view) if row.is_on_best_path] == list(path)


def test_a_large_tree_shows_the_best_path_and_the_forebears_of_what_it_shows(
    made: StudyReport,
) -> None:
    rows = tree_rows(made.view, most=8)
    labels = {row.run.label for row in rows}
    assert len(rows) in (8, 9)
    assert {run.label for run in made.view.best_path} <= labels
    known = {run.run: run.label for run in made.view.runs}
    assert all(known[row.run.parent] in labels for row in rows if row.run.parent)


def test_the_course_never_rises_and_counts_everything_that_was_spent(made: StudyReport) -> None:
    points = course(made.view)
    assert all(a.best >= b.best for a, b in pairwise(points))
    assert all(a.spent < b.spent for a, b in pairwise(points))
    failed = sum(run.status == "failed" for run in made.view.runs)
    assert failed == 2
    assert made.view.spent == pytest.approx(points[-1].spent)


def test_the_time_left_is_what_is_left_at_the_speed_so_far(tmp_path: Path) -> None:
    made_study(tmp_path / "r.db", 6, going=2, status="running")
    view = view_of(tmp_path / "r.db")
    over = [run for run in view.runs if run.is_over]
    speed = sum(run.seconds for run in over) / view.spent
    going = sum(run.ends - run.begins for run in view.runs if not run.is_over)
    expected = speed * (view.record.budget - view.spent - going) / 2
    assert view.seconds_left == pytest.approx(max(expected, 0.0))
    grown = replace(view, record=replace(view.record, budget=100.0))
    assert grown.seconds_left == pytest.approx(speed * (100 - view.spent - going) / 2)
    assert replace(view, status="finished").seconds_left is None


# Importance.


def test_the_choice_that_mattered_comes_first_by_ranks(
    made: StudyReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importance.importlib.util, "find_spec", lambda _: None)
    found = importance_of(made.view)
    assert found.method.startswith("rank correlation")
    assert next(iter(found.shares)) == "lr"  # its best value lies in the middle
    assert found.shares["lr"] > 0.7
    assert sum(found.shares.values()) == pytest.approx(1.0)


def test_the_choice_that_mattered_comes_first_by_optuna(made: StudyReport) -> None:
    pytest.importorskip("optuna")
    found = made.importance
    assert found.method.startswith("PED-ANOVA by Optuna")
    assert next(iter(found.shares)) == "lr"
    assert found == importance_of(made.view)


def test_too_few_runs_tell_no_importance(tmp_path: Path) -> None:
    made_study(tmp_path / "r.db", 4)
    found = read_study_report("made", tmp_path / "r.db")
    assert found.importance.method == ""
    assert "it takes four runs that differ in a choice" in study_report_html(found)


# The page.


def test_the_page_holds_tree_charts_runs_and_the_reason(made: StudyReport) -> None:
    page = study_report_html(made)
    titles = [chart["title"]["text"] for chart in specifications(page)]
    best = made.view.best
    assert best is not None
    assert titles[0] == "All runs: validation loss"
    assert titles[1:3] == ["Best log-loss on validation", "Gap to the best found"]
    assert titles[3:5] == ["Static choices", "Importance of the static choices"]
    assert titles[5] == f"Unit {best.label}: Loss"
    assert f"Why unit {best.label} won" in page
    assert page.count('<g class="run ') == 40
    assert f"is the best of {sum(run.is_candidate for run in made.view.runs)} runs" in page


def test_the_page_begins_with_the_answer_and_what_to_type(made: StudyReport) -> None:
    page, best = study_report_html(made), made.view.best
    assert best is not None
    (headline,) = re.findall(r"<h1>(.*?)<", page)
    assert headline.startswith("Best: ")
    assert f"{best.choices['lr']:.4g}" in headline
    assert re.search(r"(lower|higher) than the first run", headline)
    assert "<code>trimtab export made --to torch</code>" in page


def test_a_few_runs_have_no_picture_of_their_choices(tmp_path: Path) -> None:
    made_study(tmp_path / "r.db", 7)
    page = study_report_html(read_study_report("made", tmp_path / "r.db"))
    titles = [chart["title"]["text"] for chart in specifications(page)]
    assert not {"Static choices", "Importance of the static choices"} & set(titles)


def test_a_plain_winner_has_no_decisions(made: StudyReport) -> None:
    assert made.winner is not None
    plain = replace(made.winner, head={**made.winner.head, "policy": "reference"})
    assert "Decisions of the best run" in study_report_html(made)
    page = study_report_html(replace(made, winner=plain))
    assert "Decisions of the best run" not in page
    assert "was moved up" not in page


@pytest.mark.framework
@pytest.mark.parametrize("width", [1300, 420])
def test_nothing_is_wider_than_the_window(spite: StudyReport, tmp_path: Path, width: int) -> None:
    page = tmp_path / "study.html"
    write_study_report(page, spite)
    assert too_wide(page, width) == []


def test_every_name_that_a_user_chose_is_escaped(spite: StudyReport) -> None:
    page = study_report_html(spite)
    drawings = tree_svg(spite.view) + course_svg(spite.view)
    assert "alert(1)" in page
    assert "alert(1)" in drawings
    for text in (page, drawings):
        assert "<script>alert" not in text
        assert "<img src=x" not in text
    assert page.count("<script") == page.count("</script>") == 4
    assert "ValueError: &lt;script&gt;" in page


def test_a_running_study_has_a_report(spite: StudyReport) -> None:
    page = study_report_html(spite)
    assert 'class="badge running"' in page
    assert "leads</h2>" in page
    assert '<g class="run running">' in page


def test_a_study_without_any_run_has_a_report(tmp_path: Path) -> None:
    made_study(tmp_path / "r.db", 2, going=2, status="running")
    found = read_study_report("made", tmp_path / "r.db")
    page = study_report_html(found)
    assert "No run has given a value yet" in page
    assert specifications(page) == []
    with pytest.raises(SpecError, match="nothing to draw"):
        write_study_picture(tmp_path / "r.png", found)


def test_the_runs_of_another_method_are_shown_one_by_one(tmp_path: Path) -> None:
    made_study(tmp_path / "r.db", 6, shape="method")
    view = view_of(tmp_path / "r.db")
    assert [run.label for run in view.runs] == [f"0.{at}" for at in range(1, 7)]
    assert "0.6 method" in study_report_html(read_study_report("made", tmp_path / "r.db"))


def test_the_decisions_of_the_best_run_begin_with_those_before_its_fork(made: StudyReport) -> None:
    winner = made.winner
    assert winner is not None
    assert [item.decision for item in winner.decisions] == list(range(10))
    assert winner.head["parent_run"] is None or len(made.view.best_path) == 2


def test_an_unknown_study_is_named(tmp_path: Path) -> None:
    made_study(tmp_path / "r.db", 2)
    with pytest.raises(UnknownNameError, match="unknown study 'mode'; did you mean 'made'"):
        read_study_report("mode", tmp_path / "r.db")


def test_the_report_of_1000_runs_is_built(tmp_path: Path) -> None:
    made_study(tmp_path / "r.db", 1000)
    began, used = time.perf_counter(), time.process_time()
    write_study_report(tmp_path / "r.html", read_study_report("made", tmp_path / "r.db"))
    took, used = time.perf_counter() - began, time.process_time() - used
    sys.stdout.write(f"report of 1,000 runs: {took:.1f} s, {used:.1f} s of processor time\n")
    assert (tmp_path / "r.html").stat().st_size < 4_000_000


# The command.


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(words)
    printed = capsys.readouterr()
    return int(ended.value.code or 0), printed.out, printed.err


def test_the_command_takes_a_study_where_it_takes_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    made_study(tmp_path / "r.db", 6)
    words = ("report", "made", "--store", "r.db", "--png", "r.png", "--json")
    status, out, err = call(capsys, *words)
    printed = json.loads(out)
    figures = study_figures(read_study_report("made", tmp_path / "r.db"))
    assert (status, err) == (0, "")
    assert printed["report"] == str(tmp_path / "trimtab-made.html")
    assert Path(printed["picture"]).read_bytes().startswith(b"\x89PNG")
    assert printed["best"] == figures["best"]
    assert (printed["runs"], printed["study"], printed["status"]) == (6, "made", "finished")
    status, out, _ = call(capsys, "report", "3", "--store", "r.db")
    assert (status, Path("trimtab-run-3.html").exists()) == (0, True)
    status, _, err = call(capsys, "report", "mad", "--store", "r.db")
    assert (status, "unknown run or study 'mad'; did you mean 'made'" in err) == (2, True)
    status, _, err = call(capsys, "report", "made", "--store", "r.db", "--against", "1")
    assert (status, "made is a study" in err) == (2, True)


def test_a_study_that_is_called_by_a_number_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    made_study(tmp_path / "r.db", 2, name="2026")
    assert call(capsys, "report", "2026", "--store", "r.db")[0] == 0
    assert (tmp_path / "trimtab-2026.html").exists()


@pytest.mark.framework
def test_the_report_opens_in_a_browser_with_all_its_charts_drawn(
    spite: StudyReport, tmp_path: Path
) -> None:
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("chromium is not installed")
    page = tmp_path / "report.html"
    write_study_report(page, spite)
    count = len(specifications(page.read_text()))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=15000"]
    options += ["--dump-dom", f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()]
    done = subprocess.run(
        [program, *options], capture_output=True, text=True, timeout=180, check=True
    )
    assert f'data-drawn="{count}"' in done.stdout
    assert len(re.findall(r"<svg[^>]*class=\"marks\"", done.stdout)) == count
    assert "<script>alert" not in done.stdout
