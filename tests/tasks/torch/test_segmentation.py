"""Segmentation: scores with known answers, blocks that lie apart, promises."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from trimtab.core.errors import MissingDependencyError, UnknownNameError
from trimtab.core.registry import make_task
from trimtab.tasks import brain_tissue, nuclei
from trimtab.tasks.brain_tissue import BrainTissue, slice_blocks, tissue_labels
from trimtab.tasks.data.splits import SPLITS
from trimtab.tasks.nuclei import Nuclei, eight_bits, nuclei_regions
from trimtab.tasks.torch.segmentation import segmentation_scores
from trimtab.testing import check_task

TASKS = [BrainTissue, Nuclei]


@pytest.fixture(scope="module", params=TASKS)
def task(request: pytest.FixtureRequest) -> Any:
    return request.param("tiny")


def logits_of(classes: list[list[int]], n_classes: int, scale: float = 20.0) -> torch.Tensor:
    told = torch.tensor(classes)[None]
    return scale * nn.functional.one_hot(told, n_classes).permute(0, 3, 1, 2).float()


@pytest.mark.framework
def test_scores_agree_with_hand_computation() -> None:
    labels = torch.tensor([[[0, 0, 1], [0, 1, 1]]])
    scores = segmentation_scores(logits_of([[0, 1, 1], [0, 1, 0]], 2), labels)

    # Class 0: 2 of 4 in the union; class 1: 2 of 4. Dice: 2 * 2 / (3 + 3) each.
    assert scores["mean_iou"] == pytest.approx(0.5)
    assert scores["dice"] == pytest.approx(2 / 3)
    assert scores["pixel_accuracy"] == pytest.approx(4 / 6)
    assert scores["loss"] == pytest.approx(20.0 * 2 / 6, rel=1e-4)
    assert scores["examples"] == 1.0


@pytest.mark.framework
def test_all_images_count_together_and_absent_classes_do_not() -> None:
    labels = torch.tensor([[[0, 0]], [[0, 1]]])
    told = torch.cat([logits_of([[0, 0]], 3), logits_of([[1, 1]], 3)])
    scores = segmentation_scores(told, labels)

    # Class 0: 2 of 3; class 1: 1 of 2; class 2 occurs nowhere.
    assert scores["mean_iou"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert scores["dice"] == pytest.approx((4 / 5 + 2 / 3) / 2)


@pytest.mark.framework
def test_the_labels_themselves_score_one() -> None:
    classes = [[0, 1, 2], [2, 1, 0]]
    scores = segmentation_scores(logits_of(classes, 3), torch.tensor(classes)[None])

    assert (scores["mean_iou"], scores["dice"], scores["pixel_accuracy"]) == (1.0, 1.0, 1.0)
    assert scores["loss"] < 1e-6


def test_blocks_of_different_splits_are_ten_slices_apart() -> None:
    blocks = slice_blocks()
    assert {name: len(rows) for name, rows in blocks.items()} == {
        "train": 60,
        "validation": 14,
        "selection": 14,
        "test": 19,
    }
    for one, other in combinations(SPLITS, 2):
        assert np.abs(blocks[one][:, None] - blocks[other][None]).min() > 10


def test_tiles_of_different_splits_share_no_pixel_and_lie_in_the_image() -> None:
    regions = nuclei_regions()
    assert {name: len(corners) for name, corners in regions.items()} == {
        "train": 35,
        "validation": 8,
        "selection": 8,
        "test": 24,
    }
    owners = np.zeros((512, 512), int)
    for number, name in enumerate(SPLITS):
        covered = np.zeros((512, 512), bool)
        for top, left in regions[name]:
            assert top + 64 <= 512
            assert left + 64 <= 512
            covered[top : top + 64, left : left + 64] = True
        owners += covered
        assert covered[:, :256].any() == (name != "test"), number
    assert owners.max() == 1


def test_a_voxel_outside_the_brain_is_background_whatever_the_maps_say() -> None:
    of = np.array
    labels = tissue_labels(of([0, 1]), of([255, 127]), of([255, 127]))

    assert labels.tolist() == [0, 3]


def test_brightness_outside_the_range_is_cut() -> None:
    assert eight_bits(np.array([-5.0, 2.0, 9.0]), 0.0, 4.0).tolist() == [0, 128, 255]


@pytest.mark.parametrize("kind", TASKS)
def test_a_task_tells_about_itself_before_loading_anything(kind: Any) -> None:
    for variant, limit in {"default": 60, "small": 20, "tiny": 5}.items():
        task = kind(variant)
        assert task.describe()["seconds"] <= limit
        assert "BSD-3-Clause" in task.describe()["licence"]
        assert [item.name for item in task.hyperparameters] == list(task.manual["values"])
        assert "_data" not in vars(task)
    with pytest.raises(UnknownNameError, match=r"unknown variant 'huge'"):
        kind("huge")


@pytest.mark.parametrize(("module", "kind"), [(brain_tissue, BrainTissue), (nuclei, Nuclei)])
def test_a_missing_package_is_named(
    module: Any, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(module._PACKAGES, "no_such_module", "no-such-package")
    with pytest.raises(MissingDependencyError, match=r"pip install .*no-such-package"):
        kind("tiny").start(seed=0)


@pytest.mark.framework
def test_it_is_registered_and_keeps_its_promises(task: Any) -> None:
    assert isinstance(make_task(task.name, variant="tiny"), type(task))
    check_task(task, steps=2)


@pytest.mark.framework
def test_every_split_holds_every_class(task: Any) -> None:
    data = task._data
    rows = np.concatenate([data.splits[name] for name in SPLITS])
    assert len(np.unique(rows)) == len(rows) == len(data.labels)
    for name in SPLITS:
        labels = data.labels[torch.from_numpy(data.splits[name])]
        assert labels.unique().tolist() == list(range(data.n_classes))


@pytest.mark.framework
def test_an_untrained_head_scores_low_and_training_raises_it(task: Any) -> None:
    run = task.start(seed=0)
    before = [item.clone() for item in run.model.encoder.buffers()]
    start = run.evaluate("test")
    n_classes = task._data.n_classes
    assert abs(start["loss"] - math.log(n_classes)) < 0.2
    assert start["mean_iou"] < 1 / n_classes
    run.advance({"lr": np.full(15, 2 * task.manual["values"]["lr"])}, 15)
    end = run.evaluate("test")

    assert end["loss"] < start["loss"] - 0.1
    assert end["mean_iou"] > start["mean_iou"]
    after = run.model.encoder.buffers()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
