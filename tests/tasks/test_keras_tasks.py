"""Tasks in Keras: readers, splits without copies, and a pretraining that no split has seen."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trimtab.core.errors import MissingDependencyError, UnknownNameError
from trimtab.core.registry import make_task
from trimtab.tasks import keras_credit, keras_digits
from trimtab.tasks.data.splits import SPLITS
from trimtab.tasks.keras_credit import KerasCredit, read_credit
from trimtab.tasks.keras_digits import KerasDigits, read_digits
from trimtab.tasks.variants import Pretraining
from trimtab.testing import check_task

TASKS = [KerasDigits, KerasCredit]


@pytest.fixture(scope="module", params=TASKS)
def task(request: pytest.FixtureRequest) -> Any:
    return request.param("tiny")


def test_digits_are_read() -> None:
    pictures, labels = read_digits("\n".join(",".join(["8"] * 64) + f",{n}" for n in (3, 9)) + "\n")

    assert pictures.shape == (2, 8, 8, 1)
    assert pictures.dtype == np.float32
    assert (pictures == 0.5).all()
    assert labels.tolist() == [3, 9]


def test_credit_leaves_out_label_account_and_education_and_takes_logarithms_of_amounts() -> None:
    names = "ID,LIMIT_BAL,AGE,PAY_0,BILL_AMT1,PAY_AMT1,default-payment-next-month"
    head = f"{names},EDUCATION_1,EDUCATION_2,EDUCATION_3,MARRIAGE_1"
    some = math.expm1(2.0)
    rows = [f"1,{some},37,2,{-some},0,1,0,1,0,1", f"2,{some},20,-1,{some},0,0,0,0,1,0"]
    table, labels, has_degree = read_credit("\n".join([head, *rows]))

    np.testing.assert_allclose(table, [[2, 37, 2, -2, 0, 1], [2, 20, -1, 2, 0, 0]])
    assert labels.tolist() == [1, 0]
    assert has_degree.tolist() == [True, False]


@pytest.mark.parametrize("kind", TASKS)
def test_a_task_tells_about_itself_before_loading_anything(kind: Any) -> None:
    for variant, limit in {"default": 60, "small": 20, "tiny": 5}.items():
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


@pytest.mark.framework
@pytest.mark.parametrize(
    ("module", "kind"), [(keras_digits, KerasDigits), (keras_credit, KerasCredit)]
)
def test_a_missing_package_is_named(
    module: Any, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(module._PACKAGES, "no_such_module", "no-such-package")
    with pytest.raises(MissingDependencyError, match=r"pip install .*no-such-package"):
        kind("tiny").start(seed=0)


@pytest.mark.framework
def test_it_is_registered_and_keeps_its_promises_to_the_last_bit(task: Any) -> None:
    assert isinstance(make_task(task.name, variant="tiny"), type(task))
    check_task(task, tolerance=0.0, splits=SPLITS)


@pytest.mark.framework
def test_splits_are_disjoint_and_free_of_copies(task: Any) -> None:
    data = task._data
    rows = np.concatenate([data.splits[name] for name in SPLITS])
    contents = {data.inputs[row].tobytes() for row in rows}

    assert len(np.unique(rows)) == len(rows) == len(contents)


@pytest.mark.framework
def test_no_split_holds_what_the_pretraining_saw() -> None:
    digits, (_, _, has_degree) = KerasDigits("tiny"), (credit := KerasCredit("tiny"))._tables
    pretraining = set(digits._dealt[2]["pretrain"].tolist())

    assert all(pretraining.isdisjoint(digits._data.splits[name].tolist()) for name in SPLITS)
    assert not any(has_degree[credit._data.splits[name]].any() for name in SPLITS)


@pytest.mark.framework
def test_the_pretraining_is_deterministic_and_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(KerasDigits, "_pretraining", Pretraining(10, 16, 1e-3))
    first, second = KerasDigits("tiny")._body, KerasDigits("tiny")._body
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    anew = KerasDigits("tiny")._body

    assert len(list((tmp_path / "trimtab").iterdir())) == 1
    for one, two, three in zip(first, second, anew, strict=True):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one, three)


@pytest.mark.framework
def test_training_lowers_the_loss(task: Any) -> None:
    run = task.start(seed=0)
    start = run.evaluate("validation")
    n_classes = run.setup.targets.shape[1]
    assert abs(start["loss"] - math.log(n_classes)) < 0.2
    assert set(start) == {"loss", "accuracy", "macro_f1", "examples"}
    run.advance({"lr": np.full(60, 3 * task.manual["values"]["lr"])}, 60)

    assert run.evaluate("validation")["loss"] < start["loss"] - 0.1
