"""Tabular tasks: readers, splits without copies, and a pretraining that helps."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trimtab.core.errors import MissingDependencyError, UnknownNameError
from trimtab.core.registry import make_task
from trimtab.tasks import adult, letters
from trimtab.tasks.adult import Adult, read_adult
from trimtab.tasks.data.splits import SPLITS
from trimtab.tasks.letters import Letters, read_letters
from trimtab.tasks.torch.pretraining import TabularNetwork, standardised
from trimtab.testing import check_task

TASKS = [Letters, Adult]


@pytest.fixture(scope="module", params=TASKS)
def task(request: pytest.FixtureRequest) -> Any:
    return request.param("tiny")


def test_columns_are_standardised_by_another_table_and_bounded() -> None:
    like = torch.tensor([[0.0, 3.0, 0.0], [2.0, 3.0, 0.0]])
    table = torch.tensor([[3.0, 4.0, 0.0], [1e6, 3.0, 5.0]])

    assert standardised(table, like).tolist() == [[2.0, 1.0, 0.0], [10.0, 0.0, 5.0]]


def test_a_new_head_starts_nearly_even_on_the_old_body() -> None:
    old, new = TabularNetwork(4, 8, 3), TabularNetwork(4, 8, 5)
    new.take_body(old.state_dict(), seed=1)
    again = TabularNetwork(4, 8, 5).take_body(old.state_dict(), seed=1)

    assert torch.equal(new.body[0].weight, old.body[0].weight)
    assert torch.equal(new.head.weight, again.head.weight)
    assert new.eval()(torch.ones(1, 4)).softmax(1).tolist()[0] == pytest.approx([0.2] * 5, abs=0.05)


def test_adult_leaves_out_labels_weights_and_what_defines_the_groups(tmp_path: Path) -> None:
    path = tmp_path / "some.zip"
    names = "age,fnlwgt,workclass_Private,workclass_State-gov,sex_Male,salary_<=50K,salary_>50K"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("some.csv", f"{names}\n37,52630,1,0,1,0,1\n20,7,0,1,0,1,0\n")
    table, labels, is_private = read_adult(path)

    assert table.tolist() == [[37.0, 1.0], [20.0, 0.0]]
    assert labels.tolist() == [1, 0]
    assert is_private.tolist() == [True, False]


def test_letters_are_read() -> None:
    table, labels = read_letters("\n".join(",".join(["4"] * 16) + f",{c}" for c in "AZ") + "\n")

    assert table.shape == (2, 16)
    assert labels.tolist() == [0, 25]


@pytest.mark.parametrize("kind", TASKS)
def test_a_task_tells_about_itself_before_loading_anything(kind: Any) -> None:
    limits = {"default": 60, "small": 20, "tiny": 5}
    for variant, limit in limits.items():
        task = kind(variant)
        assert task.describe()["seconds"] <= limit
        assert "CC BY 4.0" in task.describe()["licence"]
        assert [item.name for item in task.hyperparameters] == list(task.manual["values"])
        (lr,) = [item for item in task.hyperparameters if item.name == "lr"]
        for factor in (0.01, 100.0):
            assert lr.starting_at(factor * task.tuned_lr).default == factor * task.tuned_lr
        assert not {"_data", "_tables", "_dealt"} & set(vars(task))
    with pytest.raises(UnknownNameError, match=r"unknown variant 'huge'"):
        kind("huge")


@pytest.mark.parametrize("module", [letters, adult])
def test_a_missing_package_is_named(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module._PACKAGES, "no_such_module", "no-such-package")
    kind = Letters if module is letters else Adult
    with pytest.raises(MissingDependencyError, match=r"pip install .*no-such-package"):
        kind("tiny").start(seed=0)


@pytest.mark.framework
def test_it_is_registered_and_keeps_its_promises(task: Any) -> None:
    assert isinstance(make_task(task.name, variant="tiny"), type(task))
    check_task(task)


@pytest.mark.framework
def test_splits_are_disjoint_and_free_of_copies(task: Any) -> None:
    data = task._data
    rows = np.concatenate([data.splits[name] for name in SPLITS])
    contents = {data.inputs[row].numpy().tobytes() for row in rows}

    assert len(np.unique(rows)) == len(rows) == len(contents)
    for name in SPLITS:
        share = data.labels[torch.from_numpy(data.splits[name])].double().mean()
        assert share == pytest.approx(data.labels[rows].double().mean().item(), rel=0.05)


@pytest.mark.framework
def test_no_split_holds_what_the_pretraining_saw() -> None:
    task = Letters("tiny")
    pretraining = set(task._dealt[2]["pretrain"].tolist())
    _, _, private = (adult_task := Adult("tiny"))._tables

    assert all(pretraining.isdisjoint(task._data.splits[name].tolist()) for name in SPLITS)
    assert not any(private[adult_task._data.splits[name]].any() for name in SPLITS)


@pytest.mark.framework
def test_the_pretraining_is_deterministic_and_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(letters.Letters, "_pretraining", letters.Pretraining(20, 32, 1e-3))
    first, second = Letters("tiny")._pretrained, Letters("tiny")._pretrained
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    anew = Letters("tiny")._pretrained

    assert len(list((tmp_path / "trimtab").iterdir())) == 1
    for name, value in first.items():
        assert torch.equal(value, second[name])
        assert torch.equal(value, anew[name])


@pytest.mark.framework
def test_training_lowers_the_loss(task: Any) -> None:
    run = task.start(seed=0)
    start = run.evaluate("validation")
    n_classes = run.model.head.out_features
    assert abs(start["loss"] - math.log(n_classes)) < 0.2
    assert set(start) == {"loss", "accuracy", "macro_f1", "examples"}
    run.advance({"lr": np.full(100, 3 * task.manual["values"]["lr"])}, 100)

    assert run.evaluate("validation")["loss"] < start["loss"] - 0.15
