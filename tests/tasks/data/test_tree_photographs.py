"""Pictures shrink smoothly, labels without inventing classes."""

from __future__ import annotations

import numpy as np

from trimtab.tasks.data.tree_photographs import resized


def test_labels_keep_their_classes_and_pictures_are_mixed() -> None:
    halves = np.array([[0, 0, 3, 3]] * 4, np.uint8) * 80
    labels, mixed = resized(halves, 3, is_labels=True), resized(halves, 3)

    assert set(np.unique(labels).tolist()) == {0, 240}
    assert 0 < mixed[0, 1] < 240
    assert resized(np.zeros((5, 5, 3), np.uint8), 2).shape == (2, 2, 3)
