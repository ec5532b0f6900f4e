"""A ring from tasks to figures, on the quadratic, which is quick."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("jax")
pytest.importorskip("pyarrow")

from trimtab.agents.evaluation import evaluate, runs
from trimtab.agents.evaluation.evaluate import (
    EvaluationSettings,
    evaluate_policy,
    evaluation_definitions,
)
from trimtab.controllers.learned import PolicyFile, parameters_digest, read_policy
from trimtab.core.errors import UnknownNameError
from trimtab.defaults import policy_path

RING = {
    "families": [{"name": "simulated/quadratic", "variants": [0], "steps": 60, "decisions": 10}]
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "evaluation_definitions", lambda: {"a": RING})
    for module in (evaluate, runs):
        monkeypatch.setattr(module, "SIZE", 20)
    monkeypatch.setattr(evaluate, "BATCH", 2)
    monkeypatch.setattr(evaluate, "_POOL", 8)


@pytest.fixture
def policy() -> PolicyFile:
    return read_policy(policy_path("trimtab-0"))


def test_every_ring_names_families_that_exist() -> None:
    known = {"simulated/mlp", "simulated/cnn", "simulated/wide", "simulated/transformer"}
    for name, ring in evaluation_definitions().items():
        assert name in evaluate.EVALUATIONS
        assert {family["name"] for family in ring["families"]} <= known


def test_an_unknown_ring_is_refused_by_name(policy: PolicyFile, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="'z'"):
        evaluate_policy(policy, EvaluationSettings("z", 1), tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_rows_are_kept_and_never_made_twice(policy: PolicyFile, tmp_path: Path) -> None:
    settings = EvaluationSettings("a", tasks=4, seed=7)
    told: list[tuple[int, int]] = []
    first = evaluate_policy(policy, settings, tmp_path, on_progress=lambda *x: told.append(x))
    assert told == [(2, 4), (4, 4)]
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "ring-a-rows").iterdir()}
    assert len(files) == 4  # with and without the policy, two batches of tasks
    assert sum(path.name.startswith(parameters_digest(policy)[:12]) for path in files) == 2
    again = evaluate_policy(policy, settings, tmp_path)
    assert again == first
    assert files == {path: path.stat().st_mtime_ns for path in files}


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_figures_of_a_ring_lie_where_they_must(policy: PolicyFile, tmp_path: Path) -> None:
    figures = evaluate_policy(policy, EvaluationSettings("a", tasks=4, seed=7), tmp_path)
    assert figures["tasks"] == 4
    assert 0 <= figures["n_star"]["value"] <= 8
    for name in ("harm", "harm_floor", "diverged", "frozen", "p_over_race", "p_over_shuffled"):
        item = figures[name]
        assert 0 <= item["low"] <= item["value"] <= item["high"] <= 1, name
    assert set(figures["n_star_by_start"]) == {"0.01", "0.1", "1", "10", "100"}
    assert "p_over_lr_alone" not in figures  # nothing else is steered

    import pyarrow.parquet as pq

    rows = pq.read_table(tmp_path / "ring-a.parquet").to_pylist()
    tuned = {row["task"]: row["lr"] for row in rows if row["method"] == "tuned"}
    for row in rows:
        if row["method"] in ("trimtab", "zero"):
            assert np.isclose(row["lr"], tuned[row["task"]] * row["factor"], rtol=1e-4)
