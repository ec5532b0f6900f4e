"""The report: one file, nothing from the network, every name escaped, charts that are drawn."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tests import tiny_task
from trimtab.core.decision import RunInfo
from trimtab.core.errors import MissingDependencyError, SpecError
from trimtab.core.guard import Reason
from trimtab.defaults import controller_for
from trimtab.records.reports.page import require_report_extra
from trimtab.records.reports.run import (
    decisions_table,
    report_html,
    write_picture,
    write_report,
)
from trimtab.records.reports.run_charts import (
    hyperparameter_path,
    label_of,
    move_points,
    reference_path,
    used_values,
)
from trimtab.records.reports.run_story import (
    Grounds,
    beside,
    followed,
    moved_most,
    seen,
    went_back,
)
from trimtab.records.store.rows import RunRecord
from trimtab.records.store.store import StoreRecorder, load_run
from trimtab.tasks.run import RunSettings, run_task

SPITE = "<script>alert(1)</script>\"'&"


def recorded(folder: Path, policy: str | None, task: tiny_task.TinyTask) -> RunRecord:
    """Run a task with a store, and return the record."""
    spec, controller = controller_for(policy, task.hyperparameters, decisions=12)
    info = RunInfo(task.name, spec, 60, policy=controller.name, notices={SPITE: SPITE})
    keeper = StoreRecorder(folder / "runs.db", info)
    run_task(task, controller, spec, RunSettings(seed=4), recorder=keeper)
    return load_run(str(keeper.run), folder / "runs.db")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunRecord, RunRecord]:
    """A steered run with a rollback, and its reference run."""
    folder = tmp_path_factory.mktemp("report")
    steered = recorded(folder, "random", tiny_task.TinyTask(name=SPITE, nan_at=30))
    return steered, recorded(folder, None, tiny_task.make())


def specifications(page: str) -> list[dict]:
    (text,) = re.findall(r'<script type="application/json" id="charts">(.*?)</script>', page)
    return json.loads(text)


def rows_of(chart: dict) -> list[dict]:
    return [row for rows in chart["datasets"].values() for row in rows]


def test_the_page_is_whole_and_about_a_megabyte(pair):
    page = report_html(*pair)
    assert page.startswith("<!doctype html>")
    assert 500_000 < len(page) < 1_500_000
    assert "vegaEmbed" in page


def test_nothing_in_the_page_points_to_the_network(pair):
    page = report_html(*pair)
    own = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)  # the charts' library
    loaded = re.findall(r"""(?:src|href|action)\s*=\s*["']([^"']*)|url\(([^)]*)\)""", own)
    assert [first or second for first, second in loaded] == ["data:,"]
    assert "@import" not in own
    assert "default-src 'none'" in own
    assert "url" not in json.dumps([list(chart) for chart in specifications(page)])


def test_every_name_that_a_user_chose_is_escaped(pair):
    page = report_html(*pair)
    assert SPITE not in page
    assert "alert(1)" in page
    assert "<script>alert" not in page
    assert page.count("<script") == page.count("</script>") == 4
    other = replace(pair[0], head={**pair[0].head, "policy": SPITE, "command": SPITE})
    assert "<script>alert" not in report_html(pair[0], other)


def test_the_charts_hold_the_numbers_of_the_record(pair):
    record = pair[0]
    loss, lr, momentum, accuracy = specifications(report_html(record))
    measured = [item.measured["loss"] for item in record.decisions]
    drawn = {row["loss"] for row in rows_of(loss) if row.get("split") == "validation"}
    assert {value for value in measured if math.isfinite(value)} <= drawn
    assert record.figures["last"]["loss"] in drawn
    path = [row["value"] for row in rows_of(lr) if set(row) == {"run", "step", "value", "column"}]
    assert path == record.schedule["lr"]
    (start,) = {
        row["value"] for row in rows_of(momentum) if set(row) == {"step", "value", "column"}
    }
    assert start == 0.5
    assert accuracy["title"]["text"] == "accuracy"


def test_windows_undone_are_counted_where_there_are_any(pair):
    record = pair[0]
    assert "windows undone" not in report_html(record)
    bits = {"lr": int(Reason.UNDONE | Reason.BOUNDS)}
    some = [
        replace(item, reasons=bits) if k < 3 else item for k, item in enumerate(record.decisions)
    ]
    shown = report_html(replace(record, decisions=some))
    assert "short windows undone" in shown
    assert re.search(r'short windows undone</div>\s*<div class="value">3</div>', shown)
    beside = report_html(record, replace(pair[1], decisions=some))  # only the other has any
    card = r'short windows undone</div>\s*<div class="value">0</div>\s*<div class="beside">[^<]* 3<'
    assert re.search(card, beside)


def test_each_decision_carries_its_reason(pair):
    points = move_points(pair[0], "random", "lr")
    assert len(points) == len(pair[0].decisions)
    assert any("rolled back to the best weights; learning rate cut" in row["why"] for row in points)
    assert {row["kind"] for row in points} <= {
        "as proposed",
        "guard changed it",
        "went back to the best weights",
    }


def test_the_reference_under_a_path_is_that_of_the_start(pair):
    values = [row["value"] for row in reference_path(pair[0], "lr")]
    assert values == pytest.approx([row["value"] for row in _path(pair[1])])


def _path(record: RunRecord) -> list[dict]:
    return hyperparameter_path(record, "reference", "lr")


def test_a_schedule_without_a_name_is_worked_out_from_what_was_applied(pair):
    nameless = replace(pair[0], head={**pair[0].head, "reference": "my scheduler"})
    named = [row["value"] for row in reference_path(pair[0], "lr")]
    found = [row["value"] for row in reference_path(nameless, "lr")]
    assert found == pytest.approx(named)


def test_a_run_that_never_finished_has_its_path_up_to_the_last_decision(pair):
    broken = replace(pair[0], figures={}, schedule={}, status="interrupted")
    rebuilt = [row["value"] for row in hyperparameter_path(broken, "r", "lr")]
    steps = pair[0].decisions[-1].step + 1
    assert rebuilt[: steps - 1] == pytest.approx(pair[0].schedule["lr"][: steps - 1])
    page = report_html(broken)
    assert 'class="badge interrupted"' in page


def test_a_run_without_any_decision_still_has_a_page(pair):
    empty = replace(pair[0], decisions=(), figures={}, schedule={}, status="failed")
    assert "none yet" in report_html(empty)


def test_long_schedules_are_thinned_without_losing_a_jump():
    values = [1.0] * 5000 + [0.1] * 5000
    record = RunRecord(1, "finished", {"policy": "x"}, schedule={"lr": values})
    rows = hyperparameter_path(record, "x", "lr")
    assert len(rows) < 1000
    jump = [row["step"] for row in rows if 4990 < row["step"] < 5010]
    assert {4999, 5000} <= set(jump)


def test_two_runs_of_one_policy_are_told_apart(pair):
    assert label_of(pair[0], pair[0]) == "random (run 1)"
    assert label_of(pair[0], pair[1]) == "random"


@pytest.mark.parametrize(("ending", "begins"), [(".png", b"\x89PNG"), (".svg", b"<svg")])
def test_the_charts_are_drawn_as_a_picture(pair, tmp_path, ending, begins):
    path = tmp_path / f"charts{ending}"
    write_picture(path, *pair)
    data = path.read_bytes()
    assert data.startswith(begins)
    if ending == ".png":
        from PIL import Image

        pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
        assert (pixels == (0x0B, 0x6E, 0x99)).all(axis=1).sum() > 2000
    else:
        assert data.count(b"#0b6e99") > 20


def test_a_picture_of_another_kind_is_refused(pair, tmp_path):
    with pytest.raises(SpecError, match=r"a picture ends in \.png or \.svg, not '\.gif'"):
        write_picture(tmp_path / "x.gif", pair[0])


def test_a_report_that_cannot_be_written_says_so(pair, tmp_path):
    with pytest.raises(SpecError, match="cannot be written"):
        write_report(tmp_path, pair[0])


def test_without_the_extra_it_says_what_to_install(pair, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'trimtab\[report\]'"):
        require_report_extra()


# What it says.


def test_the_headline_is_the_verdict(pair):
    mine, theirs = (each.figures["test"]["loss"] for each in pair)
    way = "lower" if mine < theirs else "higher"
    page = report_html(*pair)
    (headline,) = re.findall(r"<h1>(.*?)<", page)
    assert headline.startswith(f"Steered by random: test log-loss {mine:.3g}"[:40])
    assert f"{way} than with the plain schedule" in headline
    assert "the same 60 steps" in page.lower()
    assert "one seed: an example, not a proof" in page


def test_without_a_second_run_no_baseline_is_invented(pair):
    page = report_html(pair[0])
    (headline,) = re.findall(r"<h1>(.*?)<", page)
    assert "than with" not in headline
    assert f"trimtab report {pair[0].id} --against NUMBER" in page
    assert "--against NUMBER" not in report_html(*pair)


def test_went_back_tells_the_policy_from_the_guard(pair):
    back = went_back(pair[0])
    assert back["guard"] == pair[0].figures["rollbacks"] >= 1
    page = report_html(pair[0])
    card = r'went back</div><div class="value">(\d+)</div><div class="beside">([^<]*)<'
    ((total, by),) = re.findall(card, page)
    assert int(total) == sum(back.values())
    assert by == f"policy {back['policy']}, guard {back['guard']}"


def test_arrows_follow_the_rate_used(pair):
    record = pair[0]
    values = used_values(record, "lr")
    assert values == [record.schedule["lr"][item.step] for item in record.decisions]
    shown = re.findall(r'data-label="lr used">\S+( ↑| ↓|  )</td>', decisions_table(record))
    turns = [" ↑" if now > before else " ↓" for before, now in pairwise(values)]
    assert shown == ["  ", *turns]


def test_a_decision_is_told_in_facts(pair):
    record = pair[0]
    losses = [item.measured["loss"] for item in record.decisions]
    at = next(k for k in range(1, len(losses)) if losses[k] < 0.95 * losses[k - 1])
    fell = f"{100 * (1 - losses[at] / losses[at - 1]):.3g}"[:2]
    assert seen(record, at).startswith(f"validation fell {fell}")
    assert any("not finite" in seen(record, k) for k in range(len(losses)))
    assert "as proposed" not in decisions_table(record)


def test_what_followed_is_set_beside_the_other_run(pair):
    changes = followed(pair[0])
    loss = [item.measured["loss"] for item in pair[0].decisions]
    assert changes[0] == pytest.approx(loss[1] / loss[0] - 1)
    assert len(changes) == len(beside(*pair)) == len(pair[0].decisions)
    theirs = [item.measured["loss"] for item in pair[1].decisions]
    assert beside(*pair)[0] == pytest.approx(theirs[1] / theirs[0] - 1)
    assert all(map(math.isnan, beside(pair[0], None)))


def test_what_moved_the_policy_names_two_groups_or_that_it_held():
    grounds = Grounds({"lr": [1 / 7] * 7}, {"lr": {"noise": -0.3, "training loss": 0.12, "x": 0.2}})
    assert moved_most(grounds, "lr", 2.0) == "noise ↓ 0.30, x ↑ 0.20"
    small = Grounds({"lr": [1 / 7] * 7}, {"lr": {"noise": 0.09}})
    assert moved_most(small, "lr", 1.05) == "held within 10 %"
    assert moved_most(small, "lr", 1.5) == "no group above 0.1"
    assert moved_most(None, "lr", 1.5) == "–"


def test_a_rescue_has_a_card_with_what_was_done_and_what_was_not(pair):
    event = {
        **{"step": 17, "fault": "loss spike", "treatment": "restore", "evidence": SPITE},
        **{"where": "", "batch": [3, 4], "restored": 10, "updates_lost": 7, "rate_factor": 0.5},
        **{"not_done": "the loader was left", "losses": [1.0, 0.5, math.inf, 9.0]},
        **{"gradient_norms": [], "acted": True},
    }
    record = replace(pair[0], figures={**pair[0].figures, "events": [event]})
    page = report_html(record)
    for words in ("Step 17: loss spike", "the loader was left", "7 updates were lost", "at most 9"):
        assert words in page
    assert "multiplied by 0.5" in page
    assert SPITE not in page
    assert "<h2>Rescues</h2>" not in report_html(pair[0])


def test_both_charts_share_an_axis_with_one_column_a_decision(pair):
    loss, lr = specifications(report_html(*pair))[:2]
    axes = [layer["encoding"]["x"] for chart in (loss, lr) for layer in chart["layer"]]
    assert all(axis == axes[0] for axis in axes)
    own = [row for row in rows_of(loss) if row.get("run") == "random" and "split" in row]
    columns = [row["column"] for row in own if row["split"] == "validation"]
    assert set(columns) <= set(range(len(pair[0].decisions) + 1))


# In a browser.


def chromium(page: Path, *options: str) -> str:
    """Open a page in headless Chromium and return what it prints."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("chromium is not installed")
    quiet = "background-networking component-update sync default-apps domain-reliability"
    done = subprocess.run(
        [
            program,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--hide-scrollbars",
            "--virtual-time-budget=15000",
            "--window-size=1280,1000",
            f"--user-data-dir={page.parent / 'profile'}",
            *(f"--disable-{feature}" for feature in quiet.split()),
            *options,
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
    )
    return done.stdout


def too_wide(page: Path, width: int) -> list[str]:
    """Return what of a page reaches beyond a window of some width, by the browser's own measures.

    The page is shown in a frame, since a window of Chromium is never narrower than 500 pixels. What
    a box of its own scrolls is not counted.
    """
    frame = page.with_name(f"framed-{width}.html")
    script = """
      const frame = document.querySelector("iframe");
      frame.onload = () => setTimeout(() => {
        const inner = frame.contentDocument, found = [];
        const scrolls = (e) => e && (["auto", "scroll"].includes(
          frame.contentWindow.getComputedStyle(e).overflowX) || scrolls(e.parentElement));
        for (const e of inner.body.querySelectorAll("*"))
          if (e.getBoundingClientRect().right > WIDTH + 1 && !scrolls(e.parentElement))
            found.push(`${e.tagName} ${e.className?.baseVal ?? e.className}`);
        if (inner.documentElement.scrollWidth > WIDTH) found.push("the page scrolls");
        const out = document.createElement("pre");
        out.id = "found"; out.textContent = JSON.stringify(found); document.body.append(out);
      }, 4000);
      frame.src = PAGE;
    """.replace("WIDTH", str(width)).replace("PAGE", json.dumps(page.as_uri()))
    frame.write_text(
        f'<body style="margin:0"><iframe style="border:0;width:{width}px;height:4000px"></iframe>'
        f"<script>{script}</script></body>"
    )
    dom = chromium(frame, "--dump-dom", "--allow-file-access-from-files")
    ((found),) = re.findall(r'<pre id="found">(.*?)</pre>', dom)
    return json.loads(found)


def asked_of_the_network(log: Path) -> list[str]:
    """Return the addresses that the page asked for, by a net log.

    A line is an event; what the browser asks for on its own account has no origin.
    """
    lines = log.read_text(errors="replace").splitlines()
    asked = [line for line in lines if '"initiator":' in line and "not an origin" not in line]
    return sorted(set(re.findall(r'"url":"((?:https?|wss?|ftp)://[^"]*)"', "\n".join(asked))))


@pytest.mark.framework
def test_the_report_opens_in_a_browser_with_all_its_charts_drawn(pair, tmp_path):
    page = tmp_path / "report.html"
    write_report(page, *pair)
    dom = chromium(page, "--dump-dom", f"--log-net-log={tmp_path / 'net.json'}")
    assert 'data-drawn="4"' in dom
    assert len(re.findall(r"<svg[^>]*class=\"marks\"", dom)) == 4
    assert len(re.findall(r"mark-line", dom)) >= 4
    assert len(re.findall(r'aria-roledescription="point"|mark-symbol', dom)) >= 4
    assert "<h2>Decisions</h2>" in dom
    assert asked_of_the_network(tmp_path / "net.json") == []


@pytest.mark.framework
def test_the_screenshot_shows_both_runs(pair, tmp_path):
    from PIL import Image

    page = tmp_path / "report.html"
    write_report(page, *pair)
    chromium(page, f"--screenshot={tmp_path / 'seen.png'}")
    pixels = np.asarray(Image.open(tmp_path / "seen.png").convert("RGB")).astype(int)
    charts_only = pixels[320:].reshape(-1, 3)
    for colour in ((0x0B, 0x6E, 0x99), (0xB0, 0x76, 0x3A)):
        near = np.abs(charts_only - colour).max(axis=1) < 12
        assert near.sum() > 300


@pytest.mark.framework
def test_a_request_of_the_network_would_be_noticed(tmp_path):
    page = tmp_path / "leaky.html"
    page.write_text('<img src="http://127.0.0.1:9/pixel.png">')
    chromium(page, "--dump-dom", f"--log-net-log={tmp_path / 'net.json'}")
    assert "http://127.0.0.1:9/pixel.png" in asked_of_the_network(tmp_path / "net.json")


@pytest.mark.framework
def test_what_is_wider_than_the_window_would_be_noticed(tmp_path):
    page = tmp_path / "wide.html"
    page.write_text('<div style="overflow-x:auto"><p style="width:900px">x</p></div>')
    assert too_wide(page, 420) == []
    page.write_text('<p class="far" style="width:900px">x</p>')
    assert "P far" in too_wide(page, 420)


@pytest.mark.framework
@pytest.mark.parametrize("width", [1300, 420])
def test_nothing_is_wider_than_the_window(pair, tmp_path, width):
    page = tmp_path / "report.html"
    write_report(page, *pair)
    assert too_wide(page, width) == []
