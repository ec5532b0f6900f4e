"""Studies: what a budget is spent on, never worse than one run, and gone on with exactly."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

import trimtab
from tests.tiny_task import TinyTask
from trimtab.core.decision import Progress
from trimtab.core.errors import SpecError, StoreError, UnknownNameError
from trimtab.core.protocols import Task
from trimtab.core.registry import make_task
from trimtab.records.store.store import Store
from trimtab.records.store.studies import Studies
from trimtab.search.engines.local import InlineEngine
from trimtab.search.study import worker
from trimtab.search.study.coordinator import TuneResult
from trimtab.search.study.garbage import collect
from trimtab.search.study.pareto import pareto_set
from trimtab.search.study.runs import RunPath
from trimtab.search.study.steered_strategy import expected_gain
from trimtab.search.study.tune import resume, tune

Spend = Callable[..., TuneResult]


def quadratic() -> Task:
    return make_task("simulated/quadratic", variant="tiny", default_member=0)


@pytest.fixture
def spend() -> Spend:
    def made(task: Task | None = None, **given: Any) -> TuneResult:
        chosen = task or quadratic()
        usual = {"policy": "trimtab-0", "seed": 1, "sampler": "random", "snapshot_seconds": 0.0}
        return tune(chosen, **(usual | given))

    return made


def whole(result: TuneResult) -> str:
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in result.runs]
    best = None if result.best is None else vars(result.best)
    return json.dumps([best, rows, result.spent], sort_keys=True)


def test_a_budget_of_one_is_one_steered_run(spend: Spend) -> None:
    result = spend(budget=1)
    assert [(row["kind"], row["status"]) for row in result.runs] == [("first", "finished")]
    assert result.spent == pytest.approx(1.0)
    assert result.best is not None
    assert len(result.schedule) == 40
    assert not {"run", "id", "path", "seconds"} & set(result.to_dict()["best"])


def test_more_budget_is_never_worse_and_never_overspent(spend: Spend) -> None:
    results = [spend(budget=budget) for budget in (1, 2, 6.6)]
    losses = [result.best.validation for result in results if result.best]
    assert losses == sorted(losses, reverse=True)
    for result, budget in zip(results, (1, 2, 6.6), strict=True):
        assert result.spent <= budget + 1e-6
        assert result.best is not None
        assert result.best.validation == min(row["validation"] for row in result.runs)
    kinds = {row["kind"] for row in results[-1].runs}
    assert kinds == {"first", "reference", "restart", "fork"}
    assert [row["place"] for row in results[-1].runs] == list(range(len(results[-1].runs)))


def test_the_second_run_is_the_reference_at_the_rate_that_steering_found(
    spend: Spend, tmp_path: Path
) -> None:
    result = spend(budget=3, start={"lr": 1e-7}, store=tmp_path / "runs.db", study="s")
    first, second, third = result.runs
    assert second["kind"] == "reference"
    assert second["choices"]["lr"] > 10 * first["choices"]["lr"]  # far from the start, if need be
    assert third["kind"] == "restart"
    assert third["round"] == second["round"]
    assert third["choices"]["lr"] == pytest.approx(second["choices"]["lr"])
    with Store(tmp_path / "runs.db") as reading:
        assert reading.run(2).head["policy"] == "reference"


def test_a_study_is_continued_up_to_a_larger_budget(spend: Spend, tmp_path: Path) -> None:
    store = tmp_path / "runs.db"
    small = spend(budget=2, store=store, study="s")
    again = spend(budget=2, store=store, study="s")
    assert whole(again) == whole(small)
    large = spend(budget=4, store=store, study="s")
    assert json.dumps(large.runs[: len(small.runs)]) == json.dumps(small.runs)
    assert large.spent > small.spent
    assert whole(resume("s", store=store, task=quadratic())) == whole(large)
    with pytest.raises(SpecError, match="study 's' was made with seed 1, not 2"):
        spend(budget=4, store=store, study="s", seed=2)


def test_a_task_that_is_an_object_has_to_be_given_to_go_on(spend: Spend, tmp_path: Path) -> None:
    store = tmp_path / "runs.db"
    spend(budget=1, store=store, study="s")
    words = r"given as an object \(object simulated/quadratic@0\).*give it here as task="
    with pytest.raises(SpecError, match=words):
        resume("s", store=store)
    with pytest.raises(
        SpecError, match="its task is object simulated/quadratic@0, not object tiny"
    ):
        resume("s", store=store, task=TinyTask())


def test_tasks_of_one_name_are_not_taken_for_each_other(spend: Spend) -> None:
    """Two studies in one process, each on the object that it was given."""
    seen: list[str] = []

    class Counted(TinyTask):
        def __init__(self, label: str) -> None:
            super().__init__()
            self.label = label

        def start(self, **given: Any) -> Any:
            seen.append(self.label)
            return super().start(**given)

    for label in ("a", "b", "a"):
        seen.clear()
        spend(Counted(label), budget=1)
        assert set(seen) == {label}


@pytest.mark.parametrize("name", ["local", "ray"])
def test_an_engine_of_other_processes_is_refused_for_a_task_that_is_an_object(
    spend: Spend, name: str
) -> None:
    class Elsewhere(InlineEngine):
        pass

    engine = Elsewhere()
    engine.name = name
    with pytest.raises(SpecError, match=f"jobs=1, engine='{name}': a task that is an object"):
        spend(engine=engine)


class Stop(BaseException):
    """Ends a process in the middle, as far as a test in one process can show it."""


def test_a_study_that_was_cut_off_anywhere_goes_on_to_the_same_end(
    spend: Spend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = spend(budget=3)
    store = tmp_path / "runs.db"
    original = worker._Tail.after
    calls = 0

    def cut(self: Any, now: Progress, state: Any) -> str | None:
        nonlocal calls
        calls += 1
        status = original(self, now, state)
        if calls % 7 == 0 or (status == "stopped" and calls % 2):
            raise Stop
        return status

    monkeypatch.setattr(worker._Tail, "after", cut)
    cuts = 0
    while True:
        try:
            result = spend(budget=3, store=store, study="s")
            break
        except Stop:
            cuts += 1
            with sqlite3.connect(store) as connection:  # as if the process had died
                connection.execute("UPDATE units SET lease_until = 0 WHERE status = 'claimed'")
    assert cuts >= 4
    assert whole(result) == whole(quiet)
    with Studies(store) as opened, Store(store) as reading:
        for unit in opened.units(opened.study("s")):
            run = reading.run(unit.run or 0)
            numbers = [item.decision for item in run.decisions]
            first = unit.request["fork"]["decision"] + 1 if unit.kind == "fork" else 0
            assert numbers == list(range(first, first + len(numbers)))
            assert run.status in ("finished", "stopped")


def test_a_task_that_cannot_be_kept_begins_again_and_says_so(spend: Spend, tmp_path: Path) -> None:
    store = tmp_path / "runs.db"
    result = spend(TinyTask(), budget=2, store=store, study="tiny")
    assert [row["kind"] for row in result.runs] == ["first", "reference"]
    with Store(store) as reading:
        assert "begins again" in reading.run(1).head["notices"]["resume"]
    assert not (tmp_path / "runs.db.snapshots").exists()


def test_one_choice_that_fails_does_not_end_the_study(spend: Spend) -> None:
    class Fragile(TinyTask):
        choices: ClassVar[Mapping[str, Any]] = {"sheep": (2, 3, 4, 5)}

        def start(self, *, seed: int, sheep: int = 2) -> Any:
            if sheep > 2:
                raise ZeroDivisionError("three sheep short")
            return super().start(seed=seed)

    result = spend(Fragile(), budget=6)
    failed = [row for row in result.runs if row["status"] == "failed"]
    assert failed
    assert failed[0]["error"] == "ZeroDivisionError: three sheep short"
    assert result.best is not None


def test_a_study_whose_every_run_fails_is_an_error(spend: Spend) -> None:
    def broken(*, seed: int) -> Any:
        raise ZeroDivisionError("no sheep")

    with pytest.raises(StoreError, match=r"every run failed.*ZeroDivisionError: no sheep"):
        spend(TinyTask(start=broken), budget=1)


@pytest.mark.parametrize("method", ["reference", "random", "grid", "shuffled", "hyperopt"])
def test_every_method_spends_a_budget(spend: Spend, method: str, tmp_path: Path) -> None:
    budget = 1 if method in ("reference", "shuffled") else 3
    if method == "hyperopt":
        pytest.importorskip("hyperopt")
    result = spend(method=method, budget=budget, store=tmp_path / "runs.db", study="s")
    own = [row for row in result.runs if row["kind"] == "method"]
    assert sum(row["spent"] for row in own) == pytest.approx(budget)
    assert result.best is not None
    assert result.best.validation == min(row["validation"] for row in own)
    with Studies(tmp_path / "runs.db") as opened:
        nodes = opened.tree(opened.study("s"))
    told = 2 if method == "shuffled" else 0
    assert len(nodes) == budget + told
    assert all(node.status in ("finished", "diverged") for node in nodes)


def test_a_method_that_trains_once_takes_a_budget_of_one(spend: Spend) -> None:
    with pytest.raises(SpecError, match=r"a budget of 4 whole runs is not in 1\.\.1"):
        spend(method="cosine", budget=4)
    with pytest.raises(UnknownNameError, match="unknown method 'randum'; did you mean 'random'"):
        spend(method="randum")


def test_a_search_by_chance_grows_with_its_budget(spend: Spend, tmp_path: Path) -> None:
    given = {"method": "random", "store": tmp_path / "runs.db", "study": "s"}
    spend(budget=2, **given)
    assert whole(spend(budget=4, **given)).count('"place"') == 4


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"budget": 0.5}, "budget: 0.5 is not a number from 1"),
        ({"budget": math.nan}, "budget: nan"),
        ({"seed": -1}, "seed: -1 is not in 0"),
        ({"jobs": 2}, "a task that is an object is trained in this process"),
        ({"study": "../../x"}, "a name has 1 to 100"),
        ({"objectives": ()}, "name each of loss"),
    ],
)
def test_wrong_settings_are_refused(spend: Spend, given: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        spend(**given)


def test_a_study_ends_when_no_gain_is_expected(spend: Spend) -> None:
    patient = spend(TinyTask(), budget=6)
    brief = spend(TinyTask(), budget=6, stop_when_gain_below=100.0)
    assert brief.spent < patient.spent
    assert expected_gain([1.0, 2.0, 3.0]) == pytest.approx(0.0833, abs=1e-3)


def test_the_pareto_set_holds_what_nothing_dominates(spend: Spend) -> None:
    rows = [
        {"place": place, "loss": loss, "seconds": 1.0, "spent": spent, "metrics": {"accuracy": a}}
        for place, (loss, spent, a) in enumerate([(1, 3, 0.5), (2, 1, 0.9), (3, 2, 0.9), (1, 4, 0)])
    ]
    assert [one["place"] for one in pareto_set(rows, ("loss", "spent"))] == [0, 1]
    assert [one["place"] for one in pareto_set(rows, ("accuracy",))] == [1, 2]
    result = spend(budget=3, objectives=("loss", "spent"))
    assert result.best is not None
    assert result.pareto[0]["loss"] == pytest.approx(result.best.validation)
    assert set(result.pareto[0]) == {"place", "loss", "spent"}


def test_collecting_keeps_the_best_weights_only(spend: Spend, tmp_path: Path) -> None:
    store = tmp_path / "runs.db"
    spend(budget=3, store=store, study="s")
    folder = tmp_path / "runs.db.snapshots" / "s"
    (folder / "run-000001").mkdir(exist_ok=True)
    (folder / "run-000001" / "half.partial").write_bytes(b"x")
    with Studies(store) as opened:
        study = opened.study("s")
        before = sorted(folder.rglob("*.*"))
        would = collect(opened, study, dry_run=True)
        assert sorted(folder.rglob("*.*")) == before
        did = collect(opened, study)
        assert (did.files, did.size) == (would.files, would.size)
        (left,) = opened.snapshots()
        assert left.purpose == "final"
        assert list(folder.rglob("*.*")) == [Path(left.path)]
        assert collect(opened, study).files == ()


def test_collecting_removes_nothing_that_a_forged_record_points_at(
    spend: Spend, tmp_path: Path
) -> None:
    store, mine = tmp_path / "runs.db", tmp_path / "thesis.safetensors"
    mine.write_bytes(b"years of work")
    spend(budget=1, store=store, study="s")
    with sqlite3.connect(store) as connection:
        changed = connection.execute(
            "update snapshots set path = ? where purpose <> 'final'", (str(mine),)
        )
        assert changed.rowcount > 0
    connection.close()
    with Studies(store) as opened:
        freed = collect(opened, opened.study("s"))
    assert mine not in freed.files
    assert mine.read_bytes() == b"years of work"


def test_a_fork_of_a_file_that_was_changed_is_refused(spend: Spend, tmp_path: Path) -> None:
    store = tmp_path / "runs.db"
    spend(budget=1, store=store, study="s")
    for file in (tmp_path / "runs.db.snapshots").rglob("fork-*"):
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    result = spend(budget=1.6, store=store, study="s")
    forks = [row for row in result.runs if row["kind"] == "fork"]
    assert forks
    assert all(row["spent"] == 0 for row in forks)
    assert all("was changed after it was written" in row["error"] for row in forks)


def progress_at(step: int, loss: float) -> Progress:
    from trimtab.core.metrics import Metrics

    return Progress(step, 10, 10, Metrics(val_loss=loss), {}, {}, None, {}, 0.0)


def test_a_run_is_stopped_only_when_the_best_is_out_of_reach() -> None:
    rule = {"progress": [0.0, 0.5, 1.0], "potential": [0.0, -1.0, -1.5], "margin": 0.05}
    rule |= {"since": 0.35}

    def stopped_at(losses: list[float]) -> int | None:
        path = RunPath(rule)
        for step, loss in enumerate(losses):
            path.add(progress_at(step, loss))
            if path.cannot_win:
                return step
        return None

    falling = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2, 0.2]
    assert stopped_at(falling) is None
    assert stopped_at([1.0] * 11) == 6
    late = [1.0, 1.0, 1.0, 1.0, 0.9, 0.4, 0.3, 0.2, 0.2, 0.2, 0.2]
    assert stopped_at(late) is None


def test_tune_is_offered_by_the_package() -> None:
    assert trimtab.tune is tune
