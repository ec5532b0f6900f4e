"""Animals and trees from the air: readers, splits, promises."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trimtab.core.errors import MissingDependencyError, UnknownNameError
from trimtab.core.registry import make_task
from trimtab.tasks import animals, tree_density
from trimtab.tasks.animals import Animals, PictureNetwork
from trimtab.tasks.data.splits import SPLITS
from trimtab.tasks.data.tree_photographs import (
    TEST_SITE,
    TRAINING_SITE,
    read_boxes,
    read_photograph,
    tile_corners,
)
from trimtab.tasks.tree_density import TreeDensity, density_classes
from trimtab.tasks.variants import Pretraining
from trimtab.testing import check_task

TASKS = [Animals, TreeDensity]


@pytest.fixture(scope="module", params=TASKS)
def task(request: pytest.FixtureRequest) -> Any:
    return request.param("tiny")


def test_a_tree_counts_once_in_the_tile_that_holds_its_middle() -> None:
    corners = tile_corners(4, 6, 2)
    boxes = np.array([[1.0, 0.0, 3.0, 2.0]] * 3 + [[3.5, 1.5, 5.5, 3.5]] * 4)

    assert corners.tolist() == [[0, 0], [0, 2], [0, 4], [2, 0], [2, 2], [2, 4]]
    assert density_classes(boxes, corners, 2).tolist() == [0, 1, 0, 0, 0, 2]
    assert density_classes(np.zeros((0, 4)), corners, 2).tolist() == [0] * 6


def test_boxes_are_read_and_none_is_none() -> None:
    assert read_boxes("<annotation/>").shape == (0, 4)


def test_a_new_head_starts_nearly_even_on_the_old_convolutions() -> None:
    old = PictureNetwork(8, 4)
    new = PictureNetwork(8, 10).take_body(old.state_dict(), seed=3)

    assert torch.equal(new.body[3].weight, old.body[3].weight)
    assert new.eval()(torch.rand(2, 1, 28, 28)).abs().max() < 0.5


@pytest.mark.parametrize("kind", TASKS)
def test_a_task_tells_about_itself_before_loading_anything(kind: Any) -> None:
    for variant, limit in {"default": 60, "small": 20, "tiny": 5}.items():
        task = kind(variant)
        assert task.describe()["seconds"] <= limit
        assert "MIT" in task.describe()["licence"]
        assert [item.name for item in task.hyperparameters] == list(task.manual["values"])
        (lr,) = [item for item in task.hyperparameters if item.name == "lr"]
        for factor in (0.01, 100.0):
            assert lr.starting_at(factor * task.tuned_lr).default == factor * task.tuned_lr
        assert "_data" not in vars(task)
    with pytest.raises(UnknownNameError, match=r"unknown variant 'huge'"):
        kind("huge")


@pytest.mark.parametrize(("module", "kind"), [(animals, Animals), (tree_density, TreeDensity)])
def test_a_missing_package_is_named(
    module: Any, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(module._PACKAGES, "no_such_module", "no-such-package")
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


@pytest.mark.framework
def test_the_splits_of_tree_density_lie_apart() -> None:
    data = TreeDensity("tiny")._data
    sizes = {name: len(data.splits[name]) for name in SPLITS}
    rows = tree_density._ROWS

    assert sizes == {"train": 308, "validation": 28, "selection": 28, "test": 42}
    assert "vs" not in rows
    assert "sv" not in rows
    for name in SPLITS:
        assert len(data.labels[torch.from_numpy(data.splits[name])].unique()) == 3


@pytest.mark.framework
def test_the_photographs_hold_the_published_number_of_trees() -> None:
    for site, count in ((TRAINING_SITE, 574), (TEST_SITE, 279)):
        photograph = read_photograph("x/y", site)
        height, width = photograph.pixels.shape[:2]
        assert len(photograph.boxes) == count
        assert (photograph.boxes[:, 2:] > photograph.boxes[:, :2]).all()
        assert (photograph.boxes.max(0) <= [width, height, width, height]).all()


@pytest.mark.framework
def test_pretraining_on_digits_is_deterministic_and_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(Animals, "_pretraining", Pretraining(5, 16, 1e-3))
    first, second = Animals("tiny")._pretrained, Animals("tiny")._pretrained
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    anew = Animals("tiny")._pretrained

    assert len(list((tmp_path / "trimtab").iterdir())) == 1
    for name, value in first.items():
        assert torch.equal(value, second[name])
        assert torch.equal(value, anew[name])


@pytest.mark.framework
def test_training_lowers_the_loss(task: Any) -> None:
    run = task.start(seed=0)
    start = run.evaluate("train")
    assert abs(start["loss"] - math.log(run.model.head.out_features)) < 0.3
    assert set(start) == {"loss", "accuracy", "macro_f1", "examples"}
    run.advance({"lr": np.full(20, 2 * task.manual["values"]["lr"])}, 20)

    assert run.evaluate("train")["loss"] < start["loss"] - 0.05
