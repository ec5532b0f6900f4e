"""Detection: boxes, targets, loss and average precision with known answers; the tree task."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from trimtab.core.errors import MissingDependencyError, UnknownNameError
from trimtab.core.registry import make_task
from trimtab.tasks import trees
from trimtab.tasks.data.splits import SPLITS
from trimtab.tasks.torch.detection import (
    STRIDE,
    Boxes,
    LocationTargets,
    average_precision,
    decoded,
    detection_loss,
    location_targets,
    suppressed,
)
from trimtab.tasks.trees import Trees, boxes_in_tile
from trimtab.testing import check_task

GRID = 8


def boxes(*sides: list[float], cut: tuple[bool, ...] = ()) -> Boxes:
    is_cut = np.array(cut or [False] * len(sides), bool)
    return Boxes(np.array(sides, np.float32).reshape(-1, 4), is_cut)


def output_for(targets: LocationTargets, *, logit: float = 12.0) -> torch.Tensor:
    """Return the network's output that tells exactly these targets, (5, grid, grid)."""
    scores = torch.where(torch.from_numpy(targets.is_object), logit, -logit)
    distances = torch.from_numpy(targets.distances).permute(2, 0, 1)
    return torch.cat([scores[None], torch.log(distances / STRIDE)])


@pytest.fixture(scope="module")
def task() -> Trees:
    return Trees("tiny")


def test_targets_sit_near_the_middle_and_measure_to_the_sides() -> None:
    targets = location_targets(boxes([16.0, 8.0, 40.0, 32.0]), GRID)

    # The middle is (28, 20); locations at 4, 12, 20, ...: less than 8 away are 20 < x < 36.
    assert np.argwhere(targets.is_object).tolist() == [[2, 3]]
    assert targets.distances[2, 3].tolist() == [12.0, 12.0, 12.0, 12.0]
    assert not targets.is_ignored.any()


def test_the_smallest_object_wins_and_one_that_is_cut_is_not_learned_from() -> None:
    targets = location_targets(
        boxes([0, 0, 40, 40], [14, 14, 26, 26], [40, 40, 64, 64], cut=(False, False, True)), GRID
    )

    assert targets.distances[2, 2].tolist() == [6.0, 6.0, 6.0, 6.0]
    assert not targets.is_object[5:, 5:].any()
    assert targets.is_ignored[5:, 5:].all()
    assert not targets.is_ignored[:5, :5].any()


def test_an_image_without_objects_has_no_targets() -> None:
    targets = location_targets(boxes(), GRID)

    assert not targets.is_object.any()
    assert targets.distances.shape == (GRID, GRID, 4)


def test_suppression_keeps_the_first_of_those_that_overlap() -> None:
    four = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 5], [20, 20, 30, 30]], float)

    assert suppressed(four, overlap=0.5).tolist() == [0, 2, 3]
    assert suppressed(np.zeros((0, 4)), overlap=0.5).tolist() == []


def test_what_is_told_exactly_is_decoded_exactly() -> None:
    truth = boxes([16.0, 8.0, 40.0, 32.0], [42.0, 42.0, 64.0, 60.0])
    found, scores = decoded(output_for(location_targets(truth, GRID)), 64)

    assert sorted(found.round(3).tolist()) == sorted(truth.sides.tolist())
    assert (scores > 0.99).all()


def test_an_output_that_is_not_finite_gives_no_box() -> None:
    found, scores = decoded(torch.full((5, GRID, GRID), math.nan), 64)

    assert (len(found), len(scores)) == (0, 0)


def test_the_loss_is_that_of_the_papers() -> None:
    is_object = torch.zeros(1, 1, 2, dtype=torch.bool)
    is_object[0, 0, 0] = True
    distances = torch.full((1, 1, 2, 4), 8.0)
    told = torch.zeros(1, 5, 1, 2)  # scores of one half, sides of one stride: the box is exact
    nothing = torch.zeros(1, 1, 2, dtype=torch.bool)
    loss = detection_loss(told, is_object, distances, nothing)
    focal = (0.25 + 0.75) * 0.5**2 * math.log(2)

    assert loss.item() == pytest.approx(focal)
    # Twice as wide to the left and right: 256 shared, 512 together, which is what encloses both.
    told[0, [1, 3]] = math.log(2.0)
    wide = detection_loss(told, is_object, distances, nothing)
    assert wide.item() == pytest.approx(focal + 0.5)
    ignored = ~is_object
    assert detection_loss(told, is_object, distances, ignored).item() == pytest.approx(
        0.25 * 0.25 * math.log(2) + 0.5
    )


@pytest.mark.framework
def test_the_labels_themselves_score_one_and_nothing_scores_zero() -> None:
    truth = [boxes([0, 0, 10, 10], [20, 20, 40, 40]), boxes([5, 5, 9, 30])]
    exact = [(some.sides, np.ones(len(some.sides))) for some in truth]
    nothing = [(np.zeros((0, 4)), np.zeros(0))] * 2

    assert average_precision(truth, exact) == {
        "ap": pytest.approx(1.0),
        "ap50": pytest.approx(1.0),
        "objects": 3.0,
    }
    assert average_precision(truth, nothing) == {"ap": 0.0, "ap50": 0.0, "objects": 3.0}
    assert math.isnan(average_precision([boxes()], nothing[:1])["ap"])


@pytest.mark.framework
def test_average_precision_agrees_with_hand_computation() -> None:
    truth = [boxes([0, 0, 10, 10], [20, 0, 30, 10])]
    # Best: a false alarm; then one object exactly; then the other with an overlap of 0.8.
    found = [(np.array([[50, 50, 60, 60], [0, 0, 10, 10], [20, 0, 28, 10]]), np.array([3, 2, 1]))]
    scores = average_precision(truth, found)
    # At 0.5: precisions 1/2 at recall 1/2 and 2/3 at recall 1, so 2/3 at all 101 recalls.
    # Above 0.8 (0.85, 0.90, 0.95) the last one fails: 1/2 at the 51 recalls up to 0.5, then 0.
    # At 0.80 itself an overlap of 0.8 suffices.
    expected = (7 * 2 / 3 + 3 * 0.5 * 51 / 101) / 10

    assert scores["ap50"] == pytest.approx(2 / 3)
    assert scores["ap"] == pytest.approx(expected)


@pytest.mark.framework
def test_what_is_found_on_a_cut_object_is_no_false_alarm() -> None:
    truth = [boxes([0, 0, 10, 10], [20, 0, 30, 10], cut=(False, True))]
    found = [(np.array([[20, 0, 30, 10], [0, 0, 10, 10]]), np.array([0.9, 0.8]))]

    assert average_precision(truth, found) == {
        "ap": pytest.approx(1.0),
        "ap50": pytest.approx(1.0),
        "objects": 1.0,
    }


def test_a_tile_shows_boxes_cut_off_at_its_border() -> None:
    whole = np.array([[10, 10, 20, 20], [28, 10, 38, 20], [31, 10, 41, 20], [90, 9, 99, 19]], float)
    shown = boxes_in_tile(whole, 8, 2, 32)

    assert shown.sides.tolist() == [[8, 2, 18, 12], [26, 2, 32, 12], [29, 2, 32, 12]]
    assert shown.is_cut.tolist() == [False, False, True]


def test_a_task_tells_about_itself_before_loading_anything() -> None:
    for variant, limit in {"default": 60, "small": 20, "tiny": 5}.items():
        task = Trees(variant)
        assert task.describe()["seconds"] <= limit
        assert "MIT" in task.describe()["licence"]
        assert [item.name for item in task.hyperparameters] == list(task.manual["values"])
        assert "_data" not in vars(task)
    with pytest.raises(UnknownNameError, match=r"unknown variant 'huge'"):
        Trees("huge")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(trees._PACKAGES, "no_such_module", "no-such-package")
    with pytest.raises(MissingDependencyError, match=r"pip install .*no-such-package"):
        Trees("tiny").start(seed=0)


@pytest.mark.framework
def test_it_is_registered_and_keeps_its_promises(task: Any) -> None:
    assert isinstance(make_task(task.name, variant="tiny"), Trees)
    check_task(task, steps=2)


@pytest.mark.framework
def test_the_splits_lie_apart_and_hold_trees(task: Any) -> None:
    data = task._data
    rows = np.concatenate([data.splits[name] for name in SPLITS])

    assert len(np.unique(rows)) == len(rows) == len(data.features) == len(data.boxes)
    assert {name: len(data.splits[name]) for name in SPLITS[1:]} == {
        "validation": 13,
        "selection": 13,
        "test": 18,
    }
    for name in SPLITS:
        assert sum((~data.boxes[row].is_cut).sum() for row in data.splits[name]) >= 5
    contents = {data.features[row].numpy().tobytes() for row in rows}
    assert len(contents) == len(rows)


@pytest.mark.framework
def test_an_untrained_head_scores_near_zero_and_training_lowers_the_loss(task: Any) -> None:
    run = task.start(seed=0)
    start = run.evaluate("train")
    assert start["ap50"] < 0.05
    run.advance({"lr": np.full(20, 2 * task.manual["values"]["lr"])}, 20)
    end = run.evaluate("train")

    assert end["loss"] < 0.8 * start["loss"]
    assert end["objects"] == start["objects"] > 100
