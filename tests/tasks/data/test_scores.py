"""Scores of a classifier against hand-computed values."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trimtab.tasks.data.scores import classification_scores


def test_scores_agree_with_hand_computation() -> None:
    logits = np.log([[0.8, 0.2], [0.4, 0.6], [0.9, 0.1], [0.3, 0.7]])
    scores = classification_scores(logits, np.array([0, 0, 0, 1]))

    assert scores["loss"] == pytest.approx(-np.mean(np.log([0.8, 0.4, 0.9, 0.7])))
    assert scores["accuracy"] == 0.75
    assert scores["macro_f1"] == pytest.approx((2 * 2 / 5 + 2 * 1 / 3) / 2)
    assert scores["examples"] == 4.0


def test_large_logits_do_not_overflow() -> None:
    scores = classification_scores(np.array([[1e4, 0.0]]), np.array([1]))

    assert scores["loss"] == pytest.approx(1e4)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_broken_logits_give_a_loss_that_is_not_finite(bad: float) -> None:
    scores = classification_scores(np.array([[bad, 0.0], [0.0, 1.0]]), np.array([0, 1]))

    assert not math.isfinite(scores["loss"])
