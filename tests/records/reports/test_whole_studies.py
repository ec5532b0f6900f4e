"""A whole study on each kind of database: the same result, gone on with, and collected."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trimtab.core.protocols import Task
from trimtab.core.registry import make_task
from trimtab.records.store.store import Store
from trimtab.records.store.studies import Studies
from trimtab.search.study.coordinator import TuneResult
from trimtab.search.study.garbage import collect
from trimtab.search.study.tune import resume, tune


def quadratic() -> Task:
    return make_task("simulated/quadratic", variant="tiny", default_member=0)


def spend(store: str | None, budget: float) -> TuneResult:
    return tune(
        quadratic(),
        budget=budget,
        seed=1,
        store=store,
        study="s",
        policy="trimtab-0",
        sampler="random",
        snapshot_seconds=0.0,
    )


def best(result: TuneResult) -> str:
    return json.dumps(result.to_dict()["best"], sort_keys=True)


def test_a_study_is_the_same_on_every_database(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIMTAB_SNAPSHOTS", str(tmp_path / "kept"))
    expected = spend(None, 2.7)
    result = spend(store, 2.7)
    assert best(result) == best(expected)
    assert best(resume("s", store=store, task=quadratic())) == best(expected)
    with Studies(store) as opened:
        study = opened.study("s")
        nodes = opened.tree(study)
        assert {node.kind for node in nodes} == {"first", "reference", "fork"}
        fork = next(node for node in nodes if node.kind == "fork")
        assert fork.parent in {node.run for node in nodes}
        assert collect(opened, study).kept == 1
    with Store(store) as reading:
        assert len(reading.run(nodes[0].run).decisions) == 10
    kept = [file for file in (tmp_path / "kept").glob("*/s/**/*") if file.is_file()]
    assert [file.name.split("-")[0] for file in kept] == ["final"]
