"""Object detection without anchors: network, loss and box average precision (PyTorch).

One class of objects, one level of features at an eighth of the image: each location tells whether
it lies near the middle of an object, and how far the object's four sides are. Tian et al., "FCOS"
(ICCV 2019), with samples near the centre only.
"""

from __future__ import annotations

import contextlib
import copy
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from trimtab.tasks.torch.efficientnet import PretrainedStages
from trimtab.tasks.torch.pretraining import draw_head, seeded
from trimtab.tasks.torch.task import RunParts, outputs_of

FROZEN_STAGES = (5,)
"""After how many stages the frozen trunk's output is kept: at an eighth of the image."""
STRIDE = 8
"""Pixels between two locations."""

_TRAINED_STAGES = slice(5, 11)  # down to a sixteenth
_EARLY_CHANNELS = 40
_DEEP_CHANNELS = 112
_NECK_CHANNELS = 64
_PRIOR = 0.05  # share of locations that are objects to the untrained head
_LARGEST_LOG_SIDE = 5.0  # exp of it is 148 strides: no image here is larger
_EVALUATED_TOGETHER = 16
_MOST_BOXES = 100  # of an image, as in COCO's own evaluation
_LOWEST_SCORE = 0.01


class Boxes(NamedTuple):
    """Objects of one image.

    Attributes:
        sides: (m, 4) float32: left, top, right, bottom, in pixels.
        is_cut: (m,) bool: mostly outside the image; neither to be found nor held against it.
    """

    sides: np.ndarray
    is_cut: np.ndarray


class LocationTargets(NamedTuple):
    """What each location of an image should tell; grid is pixels over `STRIDE`.

    Attributes:
        is_object: (grid, grid) bool, row by row: near the middle of an object.
        distances: (grid, grid, 4) float32: to its left, top, right and bottom side, in pixels.
        is_ignored: (grid, grid) bool: inside an object that is cut, and so not learned from.
    """

    is_object: np.ndarray
    distances: np.ndarray
    is_ignored: np.ndarray


@dataclass(frozen=True)
class BoxedImages:
    """What the frozen trunk made of images, and the objects in them.

    Attributes:
        features: (n, 40, grid, grid) float32.
        boxes: Of each image.
        pixels: Height and width of an image.
        splits: For each split its rows, (n_split,) int64.
    """

    features: torch.Tensor
    boxes: Sequence[Boxes]
    pixels: int
    splits: Mapping[str, np.ndarray]


class DetectionNetwork(PretrainedStages):
    """The middle stages of EfficientNet-Lite0, a neck at an eighth of the image, and two heads.

    The neck joins enlarged deep features with the frozen trunk's; it and the heads are normalised
    in groups (Wu and He, ECCV 2018), without which so few images teach them nothing.
    """

    def __init__(self, network: Any, *, seed: int) -> None:
        """Take a copy of the middle stages of ``network`` and draw the rest.

        Args:
            network: What `trimtab.tasks.torch.efficientnet.pretrained_network` returns.
            seed: Draws neck and heads.
        """
        super().__init__()
        self.encoder = copy.deepcopy(nn.Sequential(*list(network._blocks)[_TRAINED_STAGES]))
        self.neck = seeded(lambda: _layer(_DEEP_CHANNELS + _EARLY_CHANNELS, _NECK_CHANNELS), seed)
        self.dropout = nn.Dropout(0.1)
        self.tower = seeded(lambda: _layer(_NECK_CHANNELS, _NECK_CHANNELS), seed + 1)
        self.head = nn.Conv2d(_NECK_CHANNELS, 5, 1)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        draw_head(self.head, seed)
        assert self.head.bias is not None, "a head has one"
        with torch.no_grad():  # Lin et al. 2017, section 4.1
            self.head.bias[0] = -math.log((1.0 - _PRIOR) / _PRIOR)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return (n, 5, grid, grid): object logit, and logs of the four distances over `STRIDE`.

        Args:
            features: Output of the frozen trunk, see `BoxedImages`.
        """
        early = features.contiguous(memory_format=torch.channels_last)
        deep = nn.functional.interpolate(
            self.encoder(early), early.shape[-2:], mode="bilinear", align_corners=False
        )
        joined = self.neck(torch.cat([deep, early], dim=1))
        told: torch.Tensor = self.head(self.tower(self.dropout(joined)))
        return told


def location_targets(boxes: Boxes, grid: int) -> LocationTargets:
    """Return what each location should tell.

    A location belongs to the smallest whole object that holds it and whose middle is less than one
    `STRIDE` away in either direction.

    Args:
        boxes: Of the image.
        grid: Locations of a row.
    """
    at = (np.arange(grid) + 0.5) * STRIDE
    y, x = np.meshgrid(at, at, indexing="ij")
    left, top, right, bottom = boxes.sides.T[:, None, None, :]
    x, y = x[..., None], y[..., None]
    distances = np.stack([x - left, y - top, right - x, bottom - y], axis=-1)  # (g, g, m, 4)
    inside = distances.min(-1, initial=np.inf) > 0
    near_x = np.abs(x - (left + right) / 2) < STRIDE
    near_y = np.abs(y - (top + bottom) / 2) < STRIDE
    chosen = inside & near_x & near_y & ~boxes.is_cut
    area = np.where(chosen, (right - left) * (bottom - top), np.inf)
    is_object = chosen.any(-1)
    is_ignored = (inside & boxes.is_cut).any(-1) & ~is_object
    if not len(boxes.sides):
        return LocationTargets(is_object, np.ones((grid, grid, 4), np.float32), is_ignored)
    smallest = area.argmin(-1)[..., None, None]
    of_smallest = np.take_along_axis(distances, smallest, axis=2)[:, :, 0]
    kept = np.where(is_object[..., None], of_smallest, 1.0).astype(np.float32)
    return LocationTargets(is_object, kept, is_ignored)


def detection_loss(
    told: torch.Tensor,
    is_object: torch.Tensor,
    distances: torch.Tensor,
    is_ignored: torch.Tensor,
) -> torch.Tensor:
    """Return focal loss plus generalised-IoU loss, each for one location of an object, as ().

    Source: Lin et al., "Focal loss" (ICCV 2017), equation 5 with alpha 0.25 and gamma 2;
    Rezatofighi et al., "Generalized intersection over union" (CVPR 2019), algorithm 1.

    Args:
        told: (n, 5, grid, grid), see `DetectionNetwork.forward`.
        is_object: (n, grid, grid) bool.
        distances: (n, grid, grid, 4) float32, in pixels.
        is_ignored: (n, grid, grid) bool.
    """
    count = is_object.sum().clamp(min=1)
    logits = told[:, 0]
    cross_entropy = nn.functional.binary_cross_entropy_with_logits(
        logits, is_object.to(logits.dtype), reduction="none"
    )
    probability = torch.sigmoid(logits)
    miss = torch.where(is_object, 1.0 - probability, probability)
    weight = torch.where(is_object, 0.25, 0.75) * miss**2
    focal = (weight * cross_entropy)[~is_ignored].sum() / count
    found = _sides(told)[is_object]
    return focal + (1.0 - _generalised_iou(found, distances[is_object])).sum() / count


def decoded(told: torch.Tensor, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the boxes and scores that one image's output stands for, best first.

    Args:
        told: (5, grid, grid), see `DetectionNetwork.forward`.
        pixels: Height and width of the image, at which boxes are cut off.

    Returns:
        (m, 4) float64 left, top, right, bottom, and (m,) scores in the unit interval; at most 100.
    """
    scores = torch.sigmoid(told[0]).double().flatten().numpy()
    distances = _sides(told[None])[0].double().reshape(-1, 4).numpy()
    grid = told.shape[-1]
    at = (np.arange(grid) + 0.5) * STRIDE
    y, x = (axis.reshape(-1, 1) for axis in np.meshgrid(at, at, indexing="ij"))
    left, top, right, bottom = np.split(distances, 4, axis=1)
    boxes = np.concatenate([x - left, y - top, x + right, y + bottom], axis=1).clip(0, pixels)
    usable = np.flatnonzero(np.isfinite(boxes).all(1) & (scores > _LOWEST_SCORE))
    order = usable[np.argsort(-scores[usable], kind="stable")][:_MOST_BOXES]
    kept = suppressed(boxes[order], overlap=0.5)
    return boxes[order][kept], scores[order][kept]


def suppressed(boxes: np.ndarray, *, overlap: float) -> np.ndarray:
    """Return which boxes stay when those that overlap an earlier kept one too much are dropped.

    Args:
        boxes: (m, 4) left, top, right, bottom, best first.
        overlap: Intersection over union above which the later one goes.

    Returns:
        (k,) int64, increasing.
    """
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    left, kept = np.ones(len(boxes), bool), []
    for index in range(len(boxes)):
        if not left[index]:
            continue
        kept.append(index)
        low = np.maximum(boxes[index, :2], boxes[:, :2])
        high = np.minimum(boxes[index, 2:], boxes[:, 2:])
        shared = np.prod(np.clip(high - low, 0.0, None), axis=1)
        left &= shared <= overlap * (area + area[index] - shared)
    return np.array(kept, np.int64)


def average_precision(
    truth: Sequence[Boxes], found: Sequence[tuple[np.ndarray, np.ndarray]]
) -> dict[str, float]:
    """Return ``ap`` and ``ap50`` as COCO defines them, and ``objects``, by pycocotools.

    ``ap`` is the mean of the average precision over overlaps (intersection over union) of 0.50,
    0.55, ..., 0.95, ``ap50`` that at 0.50; unit interval, nan if there is no object. Objects that
    are cut count neither way (COCO's "crowd").

    Args:
        truth: Objects of each image.
        found: Boxes (m, 4) and scores (m,) of each image, in the same order.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    annotations = [
        {**_annotation(box, image), "id": 0, "iscrowd": int(cut)}
        for image, boxes in enumerate(truth)
        for box, cut in zip(boxes.sides, boxes.is_cut, strict=True)
    ]
    for number, annotation in enumerate(annotations, start=1):
        annotation["id"] = number
    results = [
        {**_annotation(box, image), "score": float(score)}
        for image, (boxes, scores) in enumerate(found)
        for box, score in zip(boxes, scores, strict=True)
    ]
    count = sum(1 for item in annotations if not item["iscrowd"])
    if not count:
        return {"ap": math.nan, "ap50": math.nan, "objects": 0.0}
    if not results:
        return {"ap": 0.0, "ap50": 0.0, "objects": float(count)}
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": image} for image in range(len(truth))],
            "categories": [{"id": 1, "name": "object"}],
            "annotations": annotations,
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    ap, ap50 = (float(value) for value in evaluation.stats[:2])
    return {"ap": ap, "ap50": ap50, "objects": float(count)}


def detection_parts(network: Any, data: BoxedImages, *, seed: int) -> RunParts:
    """Return the parts of a run that minimises `detection_loss`; scored by `average_precision`.

    Args:
        network: What `trimtab.tasks.torch.efficientnet.pretrained_network` returns; copied.
        data: Stays as it is.
        seed: Draws the neck and the heads.
    """
    train = data.splits["train"]
    each = [location_targets(boxes, data.pixels // STRIDE) for boxes in data.boxes]
    targets = [torch.from_numpy(np.stack(part)) for part in zip(*each, strict=True)]

    def loss(model: nn.Module, indices: np.ndarray, _: Mapping[str, float]) -> torch.Tensor:
        rows = torch.from_numpy(train[indices])
        return detection_loss(model(data.features[rows]), *(part[rows] for part in targets))

    def evaluate(model: nn.Module, split: str) -> dict[str, float]:
        rows = torch.from_numpy(data.splits[split])
        told = outputs_of(model, data.features.__getitem__, rows, together=_EVALUATED_TOGETHER)
        found = [decoded(image, data.pixels) for image in told]
        return {
            "loss": detection_loss(told, *(part[rows] for part in targets)).item(),
            **average_precision([data.boxes[row] for row in data.splits[split]], found),
            "examples": float(len(rows)),
        }

    return RunParts(DetectionNetwork(network, seed=seed), len(train), loss, evaluate)


def _layer(inside: int, outside: int) -> nn.Sequential:
    convolution = nn.Conv2d(inside, outside, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.GroupNorm(8, outside), nn.ReLU())


def _sides(told: torch.Tensor) -> torch.Tensor:
    """Return (n, grid, grid, 4) distances to the four sides, in pixels."""
    return STRIDE * told[:, 1:].permute(0, 2, 3, 1).clamp(max=_LARGEST_LOG_SIDE).exp()


def _generalised_iou(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return (m,) of pairs of boxes, each given by (m, 4) distances from one and the same point."""
    shared = torch.minimum(one, other)
    around = torch.maximum(one, other)
    intersection, enclosing = _area(shared), _area(around)
    union = _area(one) + _area(other) - intersection
    return intersection / union - (enclosing - union) / enclosing


def _area(distances: torch.Tensor) -> torch.Tensor:
    left, top, right, bottom = distances.unbind(-1)
    return (left + right) * (top + bottom)


def _annotation(box: np.ndarray, image: int) -> dict[str, Any]:
    left, top, right, bottom = (float(side) for side in box)
    size = [left, top, right - left, bottom - top]
    return {"image_id": image, "category_id": 1, "bbox": size, "area": size[2] * size[3]}
